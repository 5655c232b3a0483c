"""evalplus's tests: inputs, and what the reference makes of them; judged as evalplus judges, time limits included."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jobs.sandbox import oracles
from jobs.sandbox.codec import Side, pack, unpack
from jobs.sandbox.protocol import dumps
from jobs.sandbox.remote import loaded, rebuilt
from jobs.sandbox.verdict import Counts, Infrastructure, Lost, line

if TYPE_CHECKING:
    from jobs.sandbox.child import Child, Source

REFERENCE_SECONDS = 60.0  # what a reference may take for one test
REPLY_SECONDS = 0.02  # what a reply may take on its way and in the scheduler, beyond the test's own limit


class Opaque:
    """A result that is no plain data, of which nothing more can be asked: equal to nothing."""


class Results(Side):
    """Reads results: what is no plain data is merely that."""

    def object(self, inner: Any) -> Any:
        return Opaque()


RESULTS = Results()


class Part:
    """evalplus's base or plus inputs of a task."""

    def __init__(self, record: dict[str, Any], name: str) -> None:
        self.record, self.name = record, name
        self.entry_point: str = record["entry_point"]
        self.mbpp = record["task_id"].startswith("Mbpp/")
        self.inputs = oracles.arguments_of(record["task_id"], record[f"{name}_input"])
        self.question = {"op": "batch", "name": self.entry_point, "inputs": [pack(a) for a in self.inputs],
                         "each": self.mbpp and self.entry_point in oracles.SET_EQUAL}  # fmt: skip
        dumps(self.question)  # that it can be asked
        self.expected: list[Any] = []
        self.seconds: list[float] = []  # what the reference took for each, its result's way here included
        self.judging = 0.0  # CPU seconds that the judge took over all of them

    def expect(self, source: "Source") -> None:
        """Computes what the reference returns. Errors: Lost, Infrastructure, what the reference raises."""
        with source.child() as child:
            child.deadline = time.monotonic() + REFERENCE_SECONDS
            if self.entry_point not in loaded(child, self.record["reference"], [self.entry_point]):
                raise Infrastructure(f"{self.record['task_id']}: the reference does not define {self.entry_point}")
            child.deadline += REFERENCE_SECONDS
            limits = [REFERENCE_SECONDS] * len(self.inputs)
            began = time.process_time()
            last, queued = time.monotonic(), child.queue_time()
            for kind, reply in replies(child, self.question, limits, self.name):
                value = outcome(kind, reply)
                if self.entry_point in oracles.NOT_NONE:
                    value = value is not None
                self.expected.append(value)
                now, waited = time.monotonic(), child.queue_time()
                self.seconds.append(max(0.0, now - last - (waited - queued)))
                last, queued = now, waited
            self.judging = time.process_time() - began

    def compare(self, child: "Child", limits: list[float] | None, counts: Counts) -> None:
        """Marks each test in `counts`. Errors: Lost."""
        comparison = oracles.Comparison(self.mbpp, self.entry_point, float(self.record.get("atol") or 0))
        for i, (kind, reply) in enumerate(replies(child, self.question, limits, self.name)):
            try:
                counts.passed[i] = comparison.agrees(self.inputs[i], outcome(kind, reply), self.expected[i])
                if not counts.passed[i]:
                    counts.error = counts.error or f"{self.name} test {i + 1}: a wrong answer"
            except Exception as error:
                counts.error = counts.error or f"{self.name} test {i + 1}: {line(error)}"


def replies(
    child: "Child", question: dict[str, Any], limits: list[float] | None, name: str
) -> Iterator[tuple[str, Any]]:
    """Each call's kind of reply ("r" or "x") and value, in order.

    A test's time is what the judge waits for its reply, less what the child waited for a core: clocks that the
    submission cannot touch. Errors: Lost when a reply is late, by its own limit or for all of them.
    """
    number = child.ask(question)
    for i in range(len(question["inputs"])):
        try:
            reply = child.receive(child.deadline) if limits is None else child.receive_within(limits[i] + REPLY_SECONDS)
        except Lost as lost:
            if lost.status == "timeout" and limits is not None and time.monotonic() < child.deadline + child.waited:
                lost.reason = f"{name} test {i + 1} took over {limits[i]:.2f} s".lstrip()
            raise
        if type(reply) is not list or len(reply) != 4 or reply[:2] != [number, i] or reply[2] not in ("r", "x"):
            child.lose("crashed", "broke the protocol: a reply to no question")
        yield reply[2], reply[3]


def outcome(kind: str, reply: Any) -> Any:
    if kind == "x":
        raise rebuilt(reply)
    return unpack(reply, RESULTS)
