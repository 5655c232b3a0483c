"""Test classes that run in the answer's own process: BigCodeBench's kind, whose tests patch what the answer calls.

What the child says decides here, as it does in the official scorer. So a program that is written to deceive its tests can,
and these tests judge samples of a benchmark alone: for a reward the verdict is `unsupported`, whatever the program.
"""

import ast
import json
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from jobs.sandbox.child import JUDGING_SECONDS
from jobs.sandbox.programs import LEAST_OUTPUT, last_line, signal_name
from jobs.sandbox.verdict import Counts, Lost, faults

if TYPE_CHECKING:
    from jobs.sandbox.judge import Judge

CLASS = "TestCases"
SECONDS = 60.0  # of all tests of a task that names no limit
MODULES = ["unittest", "unittest.mock"]

# Runs in the child, as bigcodebench's unsafe_execute does: one module of answer and tests, which prints and reads nothing.
# The report goes out behind a word that the judge alone knows, read before the answer's first line runs.
RUNNER = """
def __run__(source):
    import builtins, contextlib, io, json, os, sys, time, types, unittest
    word, out = sys.stdin.readline().strip(), os.dup(1)

    def said(message):
        text = ("\\n" + word + " " + json.dumps(message) + "\\n").encode()
        while text:
            text = text[os.write(out, text):]

    class Silent(io.StringIO):
        def read(self, *arguments):
            raise OSError
        readline = readlines = read

    os.environ["TZ"] = "UTC"
    time.tzset()
    builtins.exit = builtins.quit = None
    module = types.ModuleType("__test__")
    vars(module).update(__builtins__=builtins, __file__="__test__.py", __package__=None, sys=sys, os=os,
                        environ=os.environ)
    sink, result = Silent(), unittest.TestResult()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        kept, sys.stdin = sys.stdin, sink
        try:
            exec(compile(source, "__test__.py", "exec", dont_inherit=True), vars(module))
            sys.modules["__test__"] = module
            suite = unittest.TestLoader().loadTestsFromTestCase(module.NAME)
            suite.run(result)
        except BaseException as error:
            said({"broken": type(error).__name__ + ": " + str(error)[:300]})
            return
        finally:
            sys.stdin = kept
    bad = {}
    for case, trace in result.failures + result.errors:
        name = getattr(getattr(case, "test_case", case), "_testMethodName", "")
        last = trace.rpartition("Traceback (most recent call last):")[2].splitlines()
        bad.setdefault(name, next((line for line in last if line.strip() and line[0] != " "), "failed")[:300])
    said({"ran": result.testsRun, "bad": bad})


__run__(SOURCE)
"""


def names_of(source: str) -> list[str]:
    """The tests in the class TestCases, in the order in which they run. Errors: SyntaxError."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == CLASS:
            return sorted({item.name for item in node.body
                           if isinstance(item, ast.FunctionDef) and item.name.startswith("test")})  # fmt: skip
    return []


class Unittests:
    """The tests of a task that has `unittests`."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.source: str = record["unittests"]
        self.names = names_of(self.source)
        if not self.names:
            raise KeyError(f"no tests in a class {CLASS}")
        self.prelude = record.get("prelude") or ""
        self.limit = float(record.get("time_limit") or SECONDS)
        self.total = len(self.names)
        self.unsupported = ""

    def judge(self, judge: "Judge", code: str) -> Counts:
        counts = Counts(self.total)
        word = secrets.token_hex(16)
        module = f"{self.prelude}\n{code}\n{self.source}"
        program = RUNNER.replace("NAME", CLASS).replace("SOURCE", repr(module))
        with judge.unittests.child() as child, faults(counts):
            child.deadline = time.monotonic() + self.limit
            child.limit_judging(JUDGING_SECONDS)
            child.load(program)
            status = child.run(f"{word}\n".encode(), self.limit, LEAST_OUTPUT)
            self.read(counts, reported(bytes(child.written), word), status, child.complaints)
        judge.name_what_is_missing(counts, judge.unittests)
        return counts

    def read(self, counts: Counts, report: Any, status: int | None, complaints: bytearray) -> None:
        """Takes the child's report into the counts. Errors: Lost where a signal has ended the child."""
        if status is None:
            counts.fault("failed", f"wrote over {LEAST_OUTPUT} bytes")
        elif (code := os.waitstatus_to_exitcode(status)) < 0:
            raise Lost("crashed", f"ended by {signal_name(-code)}")
        elif not isinstance(report, dict):
            counts.fault("failed", last_line(complaints) or "ended before its tests did")
        elif "broken" in report:
            counts.fault("failed", str(report["broken"]))
        else:
            bad = report.get("bad")
            bad = bad if isinstance(bad, dict) else {"": "broke the protocol"}
            if not bad and report.get("ran") != self.total:
                bad = {"": f"ran {report.get('ran')} of {self.total} tests"}
            counts.passed = [name not in bad and bad.keys() <= set(self.names) for name in self.names]
            if bad:
                counts.error = "; ".join(f"{name or CLASS}: {why}" for name, why in sorted(bad.items()))


def reported(written: bytes, word: str) -> Any:
    """What the child's last line behind the word says; None where there is none."""
    lines = written.decode("utf-8", "replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith(word)), "")
    try:
        return json.loads(said.removeprefix(word))
    except ValueError:
        return None
