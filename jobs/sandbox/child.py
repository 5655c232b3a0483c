"""The judge's view of the processes below it: where children come from, and the one that runs a submission."""

import array
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Self

from jobs.sandbox.protocol import HEADER, MAX_FRAME, NEXT, PID, SOCKET, Malformed, dumps, loads
from jobs.sandbox.settings import ENVIRONMENT
from jobs.sandbox.verdict import Infrastructure, Lost

if TYPE_CHECKING:
    from jobs.sandbox.settings import ServerSettings, Settings

MOST_QUEUED = 8  # a deadline moves while a child waits for a core, at most by this many times `timeout`
MOST_QUEUED_THREADS = 1.0  # seconds it moves at most for a child with threads, which may be waiting for each other
QUICK = 0.02  # seconds within which a reply costs no look at how long its child has queued
JUDGING_SECONDS = 1.0  # CPU that the judge may take beyond the submission's own time
# Modules that a server imports before any fork, so that a submission's import of them reads no file. What a server holds
# makes each of its forks dearer, so the rest of the usual ones, and packages, are in servers of their own, for programs
# and tests that import them. Where Landlock guards the files, any other can be imported as well; where the kernel has
# none, no file can be opened, and these are all there is.
COMMON = (  # noqa: SIM905
    "abc array binascii bisect collections collections.abc contextlib copy enum functools gc heapq io itertools json "
    "keyword math operator os random re string struct sys time types typing warnings weakref"
).split()
LIBRARY = (  # noqa: SIM905
    "_strptime ast asyncio base64 calendar cmath concurrent.futures concurrent.futures.thread csv dataclasses datetime "
    "decimal difflib fnmatch fractions hashlib inspect locale numbers pprint queue secrets statistics textwrap threading "
    "timeit traceback unicodedata uuid zlib"
).split()
LIBRARY_NAME = re.compile(rf"\b({'|'.join(map(re.escape, LIBRARY))})\b")


def queue_time(pid: int | str) -> float:
    """Seconds that a process has been runnable and waited for a core: not its fault, so not on its clock."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Source:
    """Where children come from: a fork server with some modules (server.py), restarted when it has died."""

    server = "jobs.sandbox.server"  # the module whose main() is the fork server
    descriptors = 1  # that come with a new child: its socket

    def __init__(self, config: "Settings", modules: list[str]) -> None:
        self.config, self.modules = config, modules
        self.process: subprocess.Popen | None = None
        self.layers: dict[str, Any] = {}

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        config: ServerSettings = {**self.config, "modules": self.modules, "parent": os.getpid()}
        code = (f"import sys; sys.path[:0] = [sys.argv.pop(1)]; from {self.server} import main; del sys.path[0]; "
                "main()")  # fmt: skip
        null = subprocess.DEVNULL
        descriptor = theirs.fileno()
        command = [sys.executable, "-S", "-B", "-s", "-P", "-W", "ignore", "-X", "utf8", "-c", code, config["root"],
                   json.dumps(config)]  # fmt: skip
        moved = f'exec "$@" {SOCKET}<&{descriptor} {descriptor}<&-'
        shell = ["/bin/sh", "-c", moved, "sh"] if descriptor != SOCKET else []
        self.process = subprocess.Popen(
            shell + command,
            stdin=null,
            stdout=null,
            stderr=null,
            env=ENVIRONMENT | {"HOME": "/nonexistent", "PYTHONHASHSEED": "0"},
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
            ours.sendall(NEXT)
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
                data, ancillary, _, _ = self.control.recvmsg(PID.size, socket.CMSG_SPACE(4 * self.descriptors))
                if len(data) != PID.size or not ancillary:
                    raise OSError("the fork server died")
                child = self.seen(list(array.array("i", ancillary[0][2])), PID.unpack(data)[0])
                child.receive(time.monotonic() + 10)  # that it is ready
                return child
            except (OSError, Lost, Infrastructure) as error:
                self.stop()
                if attempt == 2:
                    raise Infrastructure(f"no child to run in: {error}") from None
        raise AssertionError

    def seen(self, descriptors: list[int], pid: int) -> "Child":
        return Child(self, descriptors[0], pid)

    def is_dead(self) -> bool:
        """Whether the server has ended, which ends its child too; seen by its side of the control socket."""
        poll = select.poll()
        poll.register(self.control, 0)
        return bool(poll.poll(0))

    def release(self) -> None:
        """Has the child in use killed, and the next one made ready meanwhile."""
        try:
            if self.process is not None:
                self.control.sendall(NEXT)
        except OSError:
            self.stop()


class Child:
    """The one process that runs one submission, seen through its socket."""

    def __init__(self, source: Source, descriptor: int, pid: int) -> None:
        self.source, self.descriptor, self.pid = source, descriptor, pid
        os.set_blocking(descriptor, False)
        self.buffer = bytearray()
        self.poll = select.poll()
        self.poll.register(descriptor, select.POLLIN)
        self.poll.register(0, 0)  # reports only that the pool has hung up
        self.number = 0
        self.deadline = 0.0
        self.lost: Lost | None = None
        self.waited = 0.0
        self.moved = 0.0  # seconds by which `deadline` itself was moved
        self.armed: float | None = None  # when the limit on judging was last set; None: it is not moved
        self.callback: Callable[[Any], dict] | None = None  # answers the child's calls of the test's own functions

    def __enter__(self) -> Self:
        self.queued = self.queue_time()
        self.queued_here = queue_time("self")
        return self

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.close(self.descriptor)
        self.source.release()

    def queue_time(self) -> float:
        return queue_time(self.pid)

    def most_queued(self) -> float:
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                threads = int(file.read().rpartition(b")")[2].split()[17])
        except (OSError, IndexError, ValueError):
            threads = 1
        return MOST_QUEUED * self.source.config["timeout"] if threads == 1 else MOST_QUEUED_THREADS

    def lose(self, status: str, reason: str) -> NoReturn:
        if status == "crashed" and self.source.is_dead():
            status, reason = "infrastructure_error", "the fork server died"
        self.lost = Lost(status, reason)
        raise self.lost

    def limit_judging(self, honest: float) -> None:
        """Bounds the CPU time of the judge itself: SIGPROF ends it, whatever C code a reply has it stuck in.

        honest: seconds that it takes over right answers.
        """
        signal.setitimer(signal.ITIMER_PROF, 4 * honest + JUDGING_SECONDS)

    def limit_by_deadline(self) -> None:
        """The same where the judge runs the tests' own code, on the submission's time: until a second past its deadline."""
        now = time.monotonic()
        if self.armed is None or now - self.armed > 0.05:
            self.armed = now
            signal.setitimer(signal.ITIMER_PROF, max(0.0, self.deadline + self.waited - now) + JUDGING_SECONDS)

    def wait(self, event: int, deadline: float) -> None:
        """Until the socket is ready. Errors: Lost at the deadline, which moves by what the child queued for a core."""
        self.poll.modify(self.descriptor, event)
        while True:
            left = deadline + self.waited - time.monotonic()
            ready = self.poll.poll(max(0.0, left * 1000))
            if any(descriptor == 0 for descriptor, _ in ready):  # there is nobody to tell
                self.source.stop()
                os._exit(0)
            if ready:
                return
            self.grant()

    def grant(self) -> None:
        """At the deadline: moves it by what the child has queued for a core. Errors: Lost if that is nothing more."""
        waited = self.queue_time() - self.queued
        if waited - self.waited >= 0.002:
            waited = min(waited, self.most_queued())
        if waited - self.waited < 0.002:
            self.lose("timeout", "time is up")
        self.waited = waited

    def settle(self) -> None:
        """Moves `deadline` by what the child has queued for a core till now, of which nothing is granted again."""
        queued = self.queue_time()
        granted = max(0.0, min(queued - self.queued, self.most_queued() - self.moved))
        self.deadline += granted
        self.moved += granted
        self.queued, self.waited = queued, 0.0

    def receive_within(self, seconds: float) -> Any:
        """The next message, which has a limit of its own within the deadline. Errors: Lost."""
        until = time.monotonic() + seconds
        self.poll.modify(self.descriptor, select.POLLIN)
        if not self.buffer and not self.poll.poll(QUICK * 1000):
            self.settle()
        return self.receive(min(self.deadline, until))

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

    def receive(self, deadline: float) -> Any:
        """The next message. Errors: Lost."""
        if len(self.buffer) < 4:
            self.fill(4, deadline)
        size = HEADER.unpack_from(self.buffer)[0]
        if size > MAX_FRAME:
            self.lose("crashed", "broke the protocol: a message too long")
        if len(self.buffer) < 4 + size:
            self.fill(4 + size, deadline)
        text = bytes(self.buffer[4 : 4 + size])
        del self.buffer[: 4 + size]
        if self.armed is not None:
            self.limit_by_deadline()
        try:
            return loads(text)
        except Malformed as error:
            self.lose("crashed", f"broke the protocol: {error}")

    def ask(self, message: dict) -> int:
        """Sends a question; its number. Errors: Lost, TooLong."""
        if self.lost:
            raise self.lost
        late = time.monotonic() - self.deadline - self.waited
        if late > 0 and late > queue_time("self") - self.queued_here:
            self.lose("timeout", "time is up")
        self.number += 1
        self.send(dumps({"n": self.number, **message}), self.deadline)
        return self.number

    def request(self, message: dict) -> dict:
        """The reply to a question, after the child's calls back, if it has any. Errors: Lost, TooLong."""
        number = self.ask(message)
        while True:
            reply = self.receive(self.deadline)
            if type(reply) is not dict or reply.get("n") != number:
                self.lose("crashed", "broke the protocol: a reply to no question")
            if "c" not in reply:
                return reply
            if self.callback is None:
                self.lose("crashed", "broke the protocol: a call to nobody")
            self.send(dumps({"n": number, **self.callback(reply["c"])}), self.deadline)
