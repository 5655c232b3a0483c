"""Whole programs, run once a test with its input, in a process of its own each; what is expected stays in the judge."""

import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from jobs.common.programs import OUTPUT_RULES
from jobs.sandbox.child import JUDGING_SECONDS, QUICK, Child, Source
from jobs.sandbox.outputs import agrees
from jobs.sandbox.protocol import END, PID, RUN, STATUS, dumps
from jobs.sandbox.remote import rebuilt
from jobs.sandbox.verdict import Counts, Invalid, Lost, faults, line

if TYPE_CHECKING:
    from jobs.sandbox.judge import Judge

LEAST_OUTPUT = 1 << 20  # bytes that a program may write whatever its test expects; or four times the expected ones
MOST_OUTPUT = 1 << 26
ERROR_TAIL = 1 << 12  # bytes of the end of standard error that are kept: the exception's own line
TOTAL = 60.0  # seconds of all runs of a submission together, beyond which no further one begins


class ProgramSource(Source):
    """Where stages for whole programs come from (program_server.py)."""

    server = "jobs.sandbox.program_server"

    def seen(self, descriptors: list[int], pid: int) -> "Program":
        return Program(self, descriptors[0], pid)

    def child(self) -> "Program":
        found = super().child()
        assert isinstance(found, Program)
        return found


class Program(Child):
    """A stage, which has one program and runs it: what a run writes, and how it ends."""

    def __init__(self, source: Source, descriptor: int, pid: int) -> None:
        super().__init__(source, descriptor, pid)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=descriptor)
        self.written = bytearray()
        self.complaints = bytearray()

    def __exit__(self, *exception: object) -> None:
        self.socket.detach()
        super().__exit__(*exception)

    def load(self, code: str, prelude: str = "", any_exit: bool = False) -> None:
        """Has the program compiled. Errors: Invalid, Lost."""
        try:
            self.send(dumps({"code": code, "prelude": prelude, "any_exit": any_exit}), self.deadline)
        except OverflowError:
            raise Invalid("the program is too long") from None
        reply = self.receive(self.deadline)
        if type(reply) is not dict or not ("invalid" in reply or reply.get("r") is True):
            self.lose("crashed", "broke the protocol: a reply to no question")
        if "invalid" in reply:
            raise Invalid(line(rebuilt(reply["invalid"])))

    def run(self, text: bytes, seconds: float, most: int) -> int | None:
        """The wait status of a run with `text` as its input, or None where it wrote over `most` bytes.

        Errors: Lost where it takes over `seconds`, not counting what it waits for a core.
        """
        self.written, self.complaints = bytearray(), bytearray()
        (out, its_out), (error, its_error) = os.pipe(), os.pipe()
        given = file_of(text)
        try:
            self.deadline = time.monotonic() + seconds
            self.queued, self.waited = self.queue_time(), 0.0
            try:
                socket.send_fds(self.socket, [RUN], [given, its_out, its_error])
            except OSError:
                self.lose("crashed", "the process ended")
            finally:
                for descriptor in (given, its_out, its_error):
                    os.close(descriptor)
            stage = self.pid
            try:
                return self.finish(out, error, most)
            finally:
                self.pid = stage
        finally:
            os.close(out)
            os.close(error)

    def number_of(self, form: struct.Struct) -> int:
        """The next number that the stage says. Errors: Lost."""
        self.fill(form.size, self.deadline)
        number = form.unpack_from(self.buffer)[0]
        del self.buffer[: form.size]
        return number

    def finish(self, out: int, error: int, most: int) -> int | None:
        for descriptor in (out, error):
            os.set_blocking(descriptor, False)
        # Most runs end soon, and write less than a pipe holds: then it is enough to look once.
        self.poll.modify(self.descriptor, select.POLLIN)
        self.poll.poll(min(QUICK, self.deadline - time.monotonic()) * 1000)
        poll = select.poll()
        for descriptor in (self.descriptor, out, error):
            poll.register(descriptor, select.POLLIN)
        poll.register(0, 0)  # reports only that the pool has hung up
        stage = self.pid
        while True:
            left = self.deadline + self.waited - time.monotonic()
            if left <= 0:
                self.grant()
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, left * 1000))}
            if 0 in ready:  # there is nobody to tell
                self.source.stop()
                os._exit(0)
            for descriptor, text in ((out, self.written), (error, self.complaints)):
                if descriptor in ready and not drain(descriptor, text):
                    poll.unregister(descriptor)
            del self.complaints[:-ERROR_TAIL]
            if self.descriptor in ready and self.pid == stage:
                self.pid = self.number_of(PID)
                self.queued = self.waited = 0.0
                if not self.buffer:
                    continue
            if len(self.written) > most:
                self.end_run(stage)
                return None
            if self.descriptor in ready:
                status = self.number_of(STATUS)
                while drain(out, self.written) and len(self.written) <= most:
                    pass
                drain(error, self.complaints)
                return status if len(self.written) <= most else None

    def end_run(self, stage: int) -> None:
        self.socket.send(END)
        self.deadline = time.monotonic() + JUDGING_SECONDS
        if self.pid == stage:
            self.number_of(PID)
        self.number_of(STATUS)


def drain(descriptor: int, text: bytearray) -> bool:
    """Reads what is there, up to a pipe's worth, to the end of `text`. False at the end, or where there is nothing."""
    try:
        part = os.read(descriptor, 1 << 17)
    except BlockingIOError:
        return False
    text += part
    return bool(part)


def file_of(text: bytes) -> int:
    """A descriptor to read `text` from, of a file in memory."""
    file = os.memfd_create("stdin")
    try:
        at = 0
        while at < len(text):
            at += os.pwrite(file, text[at : at + (1 << 20)], at)
        return os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    finally:
        os.close(file)


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
        began = time.monotonic()
        with source.child() as child:
            child.deadline = began + limit
            child.limit_judging(JUDGING_SECONDS)
            with faults(counts):
                child.load(code, self.prelude, any_exit=self.rule == "livecodebench")
            for i, (text, expected) in enumerate(self.tests):
                if counts.status or (benchmark and i and not counts.passed[i - 1]):
                    break
                if i and time.monotonic() - began > max(TOTAL, limit):
                    counts.fault("timeout", f"the first {i} of {self.total} tests took over {max(TOTAL, limit):.0f} s")
                    break
                most = min(MOST_OUTPUT, max(LEAST_OUTPUT, 4 * len(expected)))
                child.limit_judging(JUDGING_SECONDS)
                with faults(counts):
                    wrong = self.examine(child, child.run(text, limit, most), expected, most)
                    counts.passed[i] = not wrong
                    if wrong:
                        counts.error = counts.error or f"test {i + 1}: {wrong}"
                if counts.status in ("timeout", "crashed"):
                    counts.error = f"test {i + 1}: {counts.error}"
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
