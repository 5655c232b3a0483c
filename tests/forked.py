"""Training jobs as processes that begin with torch, transformers and TRL loaded, which takes each some five seconds of CPU.

A process of `python -m jobs sft` spends most of a test's time on these imports. So one process, started once for all tests
of a session (of each of its workers), imports them and forks for every job: what runs is `jobs/__main__.py` in a process of
its own, with its own folder, environment, streams and exit code. Two such jobs have one seed of hashes (PYTHONHASHSEED);
where a test is of bytes that must be equal whatever it is, one of them is to be started alone (`apart` of program.run).

The server is this file: it reads one request after the other from the socket that is its stdin, each a JSON object with
three open files, and answers with the exit code. It first sends its environment, once all is
loaded.
"""

import atexit
import ctypes
import gc
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
JOBS = ("sft", "grpo")  # which load what is loaded here, and prepare for it as it was prepared here
PR_SET_PDEATHSIG = 1
# What a test runner changes by itself, or a shell: no job asks for it.
UNASKED = {"PYTEST_CURRENT_TEST", "PWD", "OLDPWD", "_", "COLUMNS", "LINES"}


def sent(message: object) -> bytes:
    text = json.dumps(message).encode()
    return len(text).to_bytes(4, "big") + text


def received(asked: socket.socket, head: bytes = b"") -> bytes:
    """A message without its length. Errors: RuntimeError where the other end is gone."""
    head = head or asked.recv(4, socket.MSG_WAITALL)
    message = asked.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL) if head else b""
    if not message:
        raise RuntimeError("the process that forks for jobs has ended")
    return message


class Server:
    """Started in an environment, which its libraries have read: to be asked for jobs in that environment alone."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.started = environment
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen([sys.executable, __file__], stdin=theirs, env=environment, cwd=ROOT)
        atexit.register(self.close)
        self.loaded = json.loads(received(self.socket))

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether a job may begin in this environment here: nobody has changed it, but as the libraries do."""
        changed = {
            name
            for name in environment.keys() | self.started.keys()
            if environment.get(name) not in (self.started.get(name, ""), self.loaded.get(name))
        }
        return changed <= UNASKED

    def run(self, words: list[str], folder: Path, environment: dict[str, str], stdin: str, timeout: float):
        """A job from its words, `jobs` not among them: its exit code, stdout and stderr."""
        request = sent({"words": words, "folder": str(folder), "environment": environment})
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            given.write(stdin.encode())
            given.seek(0)
            self.socket.settimeout(timeout)
            socket.send_fds(self.socket, [request[:4]], [given.fileno(), out.fileno(), said.fileno()])
            self.socket.sendall(request[4:])
            code = json.loads(received(self.socket))
            return subprocess.CompletedProcess(words, code, read(out), read(said))

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()


def read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def serve() -> None:
    """Forks for each request until nobody is there to ask."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    asker = socket.socket(fileno=os.dup(0))
    load()
    gc.collect()
    gc.freeze()  # else a job looks through all of it when it ends
    asker.sendall(sent(dict(os.environ)))
    while True:
        head, files, _, _ = socket.recv_fds(asker, 4, 3)
        if len(head) < 4:
            return
        request = received(asker, head)
        job = os.fork()
        if not job:
            asker.close()
            become(json.loads(request), files)
            return
        for file in files:
            os.close(file)
        _, status = os.waitpid(job, 0)
        asker.sendall(sent(os.waitstatus_to_exitcode(status)))


def load() -> None:
    """What both jobs import, after what they set before it; the jobs themselves are imported by each job."""
    from jobs.training.loop import prepare

    prepare("transformers")
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: F401


def become(request: dict, files: list[int]) -> None:
    """The job, in a process that was just forked: as `python -m jobs` begins, but for what is loaded."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    sys.argv[1:] = request["words"]
    sys.path[0] = request["folder"]
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    serve()
