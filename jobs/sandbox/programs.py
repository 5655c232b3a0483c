"""Whole programs, run once a test with its input, in a child of their own each; what is expected stays in the judge."""

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any

from jobs.common.programs import OUTPUT_RULES
from jobs.sandbox.child import JUDGING_SECONDS, Child, Source
from jobs.sandbox.outputs import agrees
from jobs.sandbox.protocol import STATUS, WAIT, dumps
from jobs.sandbox.remote import rebuilt
from jobs.sandbox.verdict import Counts, Invalid, Lost, faults, line

if TYPE_CHECKING:
    from jobs.sandbox.judge import Judge

LEAST_OUTPUT = 1 << 20  # bytes that a program may write whatever its test expects; or four times the expected ones
MOST_OUTPUT = 1 << 26
ERROR_TAIL = 1 << 12  # bytes of the end of standard error that are kept: the exception's own line
TOTAL = 60.0  # seconds of all runs of a submission together, beyond which no further one begins


class ProgramSource(Source):
    """Where children for whole programs come from (program_server.py)."""

    server = "jobs.sandbox.program_server"
    descriptors = 4
    owed = False  # whether the server has been asked how a child ended and its answer was not read

    def start(self) -> None:
        self.owed = False
        super().start()

    def seen(self, descriptors: list[int], pid: int) -> "Program":
        return Program(self, descriptors, pid)

    def child(self) -> "Program":
        if self.owed and self.process is not None:
            with contextlib.suppress(OSError):
                self.status()
        found = super().child()
        assert isinstance(found, Program)
        return found

    def status(self) -> int | None:
        """How the child has ended: its wait status, or None where the server has died."""
        self.owed = False
        data = self.control.recv(STATUS.size)
        return STATUS.unpack(data)[0] if len(data) == STATUS.size else None


class Program(Child):
    """A process that becomes a program: its input, what it writes, and how it ends."""

    source: ProgramSource

    def __init__(self, source: ProgramSource, descriptors: list[int], pid: int) -> None:
        super().__init__(source, descriptors[0], pid)
        self.stdin, self.out, self.error = descriptors[1:]
        for descriptor in (self.out, self.error):
            os.set_blocking(descriptor, False)
        self.written = bytearray()
        self.complaints = bytearray()

    def __exit__(self, *exception: object) -> None:
        for descriptor in (self.stdin, self.out, self.error):
            os.close(descriptor)
        super().__exit__(*exception)

    def load(self, request: dict[str, Any]) -> str:
        """Has the program compiled and begun; the compiled program. Errors: Invalid, Lost."""
        try:
            self.send(dumps(request), self.deadline)
        except OverflowError:
            raise Invalid("the program is too long") from None
        reply = self.receive(self.deadline)
        if type(reply) is not dict or not ("invalid" in reply or type(reply.get("r")) is str):
            self.lose("crashed", "broke the protocol: a reply to no question")
        if "invalid" in reply:
            raise Invalid(line(rebuilt(reply["invalid"])))
        return reply["r"]

    def give(self, text: bytes) -> None:
        """Fills the file that is the program's standard input, before it begins."""
        at = 0
        while at < len(text):
            at += os.pwrite(self.stdin, text[at : at + (1 << 20)], at)

    def finish(self, most: int) -> int | None:
        """The wait status at the program's end, or None where it wrote over `most` bytes. Errors: Lost at the deadline."""
        try:
            self.source.control.sendall(WAIT)
        except OSError:
            self.lose("infrastructure_error", "the fork server died")
        self.source.owed = True
        control = self.source.control.fileno()
        poll = select.poll()
        for descriptor in (control, self.out, self.error):
            poll.register(descriptor, select.POLLIN)
        poll.register(0, 0)  # reports only that the pool has hung up
        while True:
            left = self.deadline + self.waited - time.monotonic()
            if left <= 0:
                self.grant()
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, left * 1000))}
            if 0 in ready:  # there is nobody to tell
                self.source.stop()
                os._exit(0)
            for descriptor in ready & {self.out, self.error}:
                if not self.drain(descriptor):
                    poll.unregister(descriptor)
            if len(self.written) > most:
                return None
            if control in ready:
                status = self.source.status()
                if status is None:
                    self.lose("infrastructure_error", "the fork server died")
                while self.drain(self.out) and len(self.written) <= most:
                    pass
                self.drain(self.error)
                return status if len(self.written) <= most else None

    def drain(self, descriptor: int) -> bool:
        """Reads what is there, up to a pipe's worth. False at the end, or where there is nothing."""
        try:
            part = os.read(descriptor, 1 << 17)
        except BlockingIOError:
            return False
        if descriptor == self.out:
            self.written += part
        else:
            self.complaints += part
            del self.complaints[:-ERROR_TAIL]
        return bool(part)


class Programs:
    """The tests of a task whose answer is a whole program."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.tests = [
            (test["input"].encode("utf-8", "surrogateescape"), test["output"]) for test in record["stdin_tests"]
        ]
        if not self.tests:
            raise KeyError("no tests")
        self.rule = record.get("comparison") or "lines"
        if self.rule not in OUTPUT_RULES:
            raise KeyError(f"no rule {self.rule} for comparing outputs")
        self.tolerance = float(record.get("atol") or 0), float(record.get("rtol") or 0)
        self.limit = record.get("time_limit")
        self.prelude = record.get("prelude") or ""
        self.total = len(self.tests)
        self.unsupported = ""
        if record.get("checker"):
            self.unsupported = f"its answers need a checker of their own: {record['checker']}"

    def judge(self, judge: "Judge", code: str) -> Counts:
        """Runs each test. The first that takes too long, or that ends the process, is the last; and so is the first that
        fails, where samples of a benchmark are told apart by all tests alone."""
        counts = Counts(self.total)
        if not code.strip():
            counts.fault("invalid", "there is no program")
            return counts
        benchmark = judge.config["benchmark"]
        limit = float(self.limit) if self.limit and benchmark else judge.timeout
        source = judge.program_source(code, self.prelude)
        request = {"code": code, "prelude": self.prelude, "any_exit": self.rule == "livecodebench", "compiled": ""}
        began = time.monotonic()
        for i, (text, expected) in enumerate(self.tests):
            with source.child() as child, faults(counts):
                child.deadline = time.monotonic() + limit
                child.limit_judging(JUDGING_SECONDS)
                child.give(text)
                compiled = child.load(request)
                if compiled:
                    request |= {"compiled": compiled, "code": "", "prelude": ""}
                most = min(MOST_OUTPUT, max(LEAST_OUTPUT, 4 * len(expected)))
                wrong = self.examine(child, child.finish(most), expected, most)
                counts.passed[i] = not wrong
                if wrong:
                    counts.error = counts.error or f"test {i + 1}: {wrong}"
            if counts.status in ("timeout", "crashed"):
                counts.error = f"test {i + 1}: {counts.error}"
            if counts.status or (benchmark and not counts.passed[i]):
                break
            if time.monotonic() - began > max(TOTAL, limit) and i + 1 < self.total:
                counts.fault("timeout", f"the first {i + 1} of {self.total} tests took over {max(TOTAL, limit):.0f} s")
                break
        judge.name_what_is_missing(counts, source)
        return counts

    def examine(self, child: Program, status: int | None, expected: str, most: int) -> str:
        """What is wrong with a run, "" if nothing. Errors: Lost where a signal has ended it."""
        if status is None:
            return f"wrote over {most} bytes"
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            raise Lost("crashed", f"ended by {signal_name(-code)}")
        if code:
            return last_line(child.complaints) or f"ended with exit code {code}"
        written = child.written.decode("utf-8", "surrogateescape")
        return "" if agrees(written, expected, self.rule, *self.tolerance) else "a wrong answer"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_line(text: bytearray) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
