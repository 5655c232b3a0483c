"""What is known of one submission while it is judged, and the verdict that comes of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jobs.sandbox.protocol import Malformed


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
                "tests_total": len(self.passed), "error": "" if everything else shown(self.error or "a test failed"),
                "base_passed": None, "plus_passed": None, **parts}  # fmt: skip


def no_verdict(status: str, error: str) -> dict[str, Any]:
    """For a task on which no submission can be judged."""
    return {"status": status, "tests_passed": 0, "tests_total": 0, "error": shown(error),
            "base_passed": None, "plus_passed": None}  # fmt: skip


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
    except MemoryError:
        counts.fault("crashed", "what it returned does not fit into the judge's memory")
    except Exception as error:
        counts.error = counts.error or line(error)
