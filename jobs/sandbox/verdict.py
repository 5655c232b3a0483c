"""What is known of one submission while it is judged, and the verdict that comes of it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.sandbox.protocol import Malformed

STATUSES = (
    "passed",  # every test
    "failed",  # ran, and some test did not hold
    "timeout",
    "crashed",  # the process ended early or broke the protocol
    "invalid",  # not a program, or without the entry point
    "unsupported",  # cannot be judged exactly, `error` says why: with tests_total 0 no program of this task, else this one
    "infrastructure_error",  # no verdict: the sandbox or the task is at fault, and a trainer must not count it as 0
)
SUBMITTED = "_submitted"  # on an exception in the judge: it is the submission's own


@dataclass(frozen=True)
class Verdict:
    """What one submission is worth."""

    status: str  # one of STATUSES
    tests_passed: int
    tests_total: int  # of the task, whether or not they ran
    base_passed: bool | None = None  # of a task with base_input: whether all of these passed; else None
    plus_passed: bool | None = None  # the same of plus_input
    error: str = ""  # the first fault, in one line of at most 200 characters; "" for what passed
    seconds: float = 0.0  # wall time in the judge, less what a task's expected values take when it is new there

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def fields(self) -> dict[str, Any]:
        """As the judge sends it to the pool, and as rows of results have it."""
        return dict(vars(self))


class Lost(BaseException):
    """The child is gone or late; not an Exception, so no test can catch it by accident."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason


class Unsupported(BaseException):
    """What the test asks cannot be judged exactly across processes; no Exception either."""


class Infrastructure(Exception):
    """The sandbox itself, or the task, is at fault: no verdict on the submission."""


class Invalid(Exception):
    """The submission is no program, or does not define the entry point."""


class RemoteError(Exception):
    """The submission raised something that is no ordinary built-in exception: its class's name, and its text."""

    def __str__(self) -> str:
        return str(self.args[-1])


def is_exhausted(error: BaseException) -> bool:
    """Whether the judge ran out of memory: a submission's own MemoryError is marked (remote.rebuilt)."""
    return isinstance(error, MemoryError) and not getattr(error, SUBMITTED, False)


class Counts:
    """What is known of one submission so far: a flag for each test, and the first thing that went wrong."""

    def __init__(self, total: int) -> None:
        self.passed = [False] * total
        self.status, self.error = "", ""

    def fault(self, status: str, error: str) -> None:
        if not self.status:
            self.status, self.error = status, error

    def verdict(self, base_passed: bool | None = None, plus_passed: bool | None = None) -> dict[str, Any]:
        everything = all(self.passed) and bool(self.passed) and not self.status
        return Verdict(
            "passed" if everything else self.status or "failed",
            sum(self.passed),
            len(self.passed),
            base_passed,
            plus_passed,
            "" if everything else shown(self.error or "a test failed"),
        ).fields()


def no_verdict(status: str, error: str) -> dict[str, Any]:
    """For a task on which no submission can be judged."""
    return Verdict(status, 0, 0, error=shown(error)).fields()


def shown(text: str) -> str:
    """Text that may come from a child as one line of at most 200 characters, with escapes for what cannot be printed."""
    line = " ".join(text[:1000].split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[:200])[:200]


def line(error: BaseException) -> str:
    """An exception in one line of at most 200 characters."""
    if isinstance(error, RemoteError):
        text = ": ".join(str(part) for part in error.args if part)
    else:
        try:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        except Exception:
            text = type(error).__name__
    return shown(text)


@contextlib.contextmanager
def faults(counts: Counts) -> Iterator[None]:
    """Turns what ends a submission early into its status."""
    try:
        yield
    except Lost as lost:
        counts.fault(lost.status, lost.reason)
    except Unsupported as error:
        # A test that has failed already is a failure, whatever could not be judged beside it.
        counts.fault("failed" if counts.error else "unsupported", counts.error or str(error))
    except Invalid as error:
        counts.fault("invalid", str(error))
    except Malformed as error:
        counts.fault("crashed", f"broke the protocol: {error}")
    except Infrastructure:
        raise
    except Exception as error:
        if is_exhausted(error):
            counts.fault("crashed", "what it returned does not fit into the judge's memory")
        else:
            counts.error = counts.error or line(error)
