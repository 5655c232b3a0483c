"""Extraction in a process with limits: no text that a model wrote is compiled in a job's own process.

    with Extractor() as extractor:
        found = extractor.extract_all([(answer, prompt, entry_point, mode, truncated), ...])    # in order

The worker is an interpreter of its own with the standard library alone, started once and replaced when it dies. Each
text has `seconds` of CPU time, a wall limit that is far above, and `memory_mib` of address space. CPython's compiler
cannot be stopped from within, so the kernel ends the worker (SIGPROF). Such a text is "too_hard"; its likeliest program
is made without compiling anything, and the sandbox, which has limits of its own, judges it as any other.
"""

import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.common.answer_format import TAGS
from jobs.common.errors import JobError
from jobs.extraction.program import Extraction, extract
from jobs.extraction.source import binds, tree_or_line
from jobs.extraction.whole import extract_whole

ROOT = str(Path(__file__).resolve().parents[2])
WALL = 30.0  # seconds; only a worker that the machine holds up comes near it
LENGTH = struct.Struct("<I")
Text = tuple[str, str, str, str, bool]  # answer, prompt, entry point ("": a whole program), mode, truncated


class Extractor:
    """One worker, shared by threads. Errors: JobError if this machine cannot start it."""

    def __init__(self, seconds: float = 2.0, memory_mib: int = 512) -> None:
        self.seconds, self.memory_mib = seconds, memory_mib
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None
        self.thread = ThreadPoolExecutor(1)  # for an event loop that must not wait, in the order of asking
        self.start()

    def __enter__(self) -> "Extractor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.close()

    def extract_all(self, texts: Iterable[Text]) -> list[Extraction]:
        """`program.extract` of each text; in the place of what the limits ended, an extraction that is "too_hard"."""
        return [self.extract(*text) for text in texts]

    def extract(self, answer: str, prompt: str, entry_point: str, mode: str, truncated: bool = False) -> Extraction:
        reply = self.ask("extract", answer, prompt, entry_point, mode, truncated)
        return Extraction(*reply) if reply is not None else unparsed(answer, prompt, entry_point, mode)

    def fault(self, code: str, entry_point: str) -> tuple[str, str]:
        """What is wrong with a program on sight, and the detail: syntax, entry_point, too_hard; or two empty strings."""
        reply = self.ask("fault", code, entry_point)
        return tuple(reply) if reply is not None else ("too_hard", "compiling it takes too much time or memory")

    def ask(self, *request: Any) -> list | None:
        """The worker's reply, or None if the text ended it. A worker that was ended by others is asked once more."""
        data = json.dumps(request).encode()
        with self.lock:
            for _ in range(2):
                if self.process is None:
                    self.start()
                assert self.process is not None
                try:
                    return json.loads(self.exchange(data))
                except TimeoutError:
                    self.close()
                    return None
                except (OSError, EOFError):
                    ended = self.close()
                    if ended in (-signal.SIGPROF, -signal.SIGXCPU):
                        return None
            return None

    def start(self) -> None:
        code = "import sys; sys.path[:0] = [sys.argv.pop(1)]; from jobs.extraction.worker import main; main()"
        command = [sys.executable, "-I", "-S", "-B", "-c", code, ROOT, str(self.seconds), str(self.memory_mib)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})  # fmt: skip
            if json.loads(self.exchange(json.dumps(["check", "f = 1", "f"]).encode())) != ["", ""]:
                raise OSError("it answers wrongly")
        except (OSError, EOFError) as error:
            self.close()
            raise JobError(f"extraction: its worker does not start on this machine ({error})") from None

    def exchange(self, data: bytes) -> bytes:
        assert self.process is not None
        assert self.process.stdin is not None
        view = memoryview(LENGTH.pack(len(data)) + data)
        while view:
            view = view[os.write(self.process.stdin.fileno(), view) :]
        deadline = time.monotonic() + WALL
        (length,) = LENGTH.unpack(self.receive(LENGTH.size, deadline))
        return self.receive(length, deadline)

    def receive(self, size: int, deadline: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        descriptor, data = self.process.stdout.fileno(), b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while len(data) < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError
            part = os.read(descriptor, size - len(data))
            if not part:
                raise EOFError("it ended")
            data += part
        return data

    def close(self) -> int | None:
        """Ends the worker; its exit status, negative for a signal."""
        process, self.process = self.process, None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.stdin.close()  # at which it ends by itself
            process.wait(0.2)
        process.kill()
        process.wait()
        process.stdout.close()
        return process.returncode


def unparsed(answer: str, prompt: str, entry_point: str, mode: str) -> Extraction:
    """The likeliest program by its first tag and fence alone, in time linear in the text."""
    code, folded = answer.replace("\r\n", "\n"), answer.replace("\r\n", "\n").lower()
    if mode == "cot":
        begin, end = folded.find(TAGS[2].lower()), folded.rfind(TAGS[3].lower())
        if begin < 0:
            return Extraction("", "no_tags")
        code = code[begin + len(TAGS[2]) : end if end > begin else len(code)]
    opening = code.find("```")
    if opening >= 0:
        start, closing = code.find("\n", opening), code.find("```", opening + 3)
        code = code[start + 1 : closing if closing >= 0 else len(code)]
    whole = not entry_point or f"def {entry_point}" in code
    return Extraction((code.strip("\n") + "\n") if whole else prompt + code, "too_hard", "too_hard")


def respond(kind: str, *arguments: Any) -> list:
    if kind == "extract":
        answer, prompt, entry_point, mode, truncated = arguments
        if entry_point:
            found = extract(answer, prompt, entry_point, mode, truncated)
        else:
            found = extract_whole(answer, mode, truncated)
        return [found.solution, found.flaw, found.rule]
    code, entry_point = arguments
    tree, _ = tree_or_line(code)
    if tree is not None:
        return ["", ""] if not entry_point or binds(tree, entry_point) else ["entry_point", ""]
    try:
        compile(code, "solution", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return ["syntax", str(error)]
    return ["syntax", "it cannot be compiled"]


def peak() -> int:
    """The most bytes that this process held in memory. getrusage would count what its parent held before exec."""
    with open("/proc/self/status", "rb") as file:
        return int(file.read().split(b"VmHWM:")[1].split()[0]) << 10


def main() -> None:
    """The worker: frames of JSON on stdin, replies on stdout, until stdin ends or a text breaks a limit."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2]) << 20
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a job that is told to stop closes stdin
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        request = json.loads(source.read(LENGTH.unpack(head)[0]))
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF's default ends the process, also within the compiler
        try:
            reply = respond(*request)
        except (RecursionError, MemoryError):
            os.kill(os.getpid(), signal.SIGPROF)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if peak() > used + memory // 2:
            os.kill(os.getpid(), signal.SIGPROF)  # it ran out of memory, and what it found is what was left to find
        data = json.dumps(reply).encode()
        sink.write(LENGTH.pack(len(data)) + data)
        sink.flush()
