"""Our own functions on untrusted text: what they return, and how a text ends that was made to stall or to kill them."""

import time

import pytest

from jobs.sandbox import CallFailed, Sandbox
from jobs.sandbox.tools import TOOLS, tool


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1) as sandbox:
        yield sandbox


def test_every_name_of_the_list_is_a_function():
    assert all(callable(tool(name)) for name in TOOLS)


def test_a_function_of_the_list_reads_texts_and_no_other_can_be_named(sandbox):
    found = sandbox.call("syntax_errors", ["x = 1", "x = = 1", "\0", "'\ud83d'", ""], 10)
    assert [not error for error in found] == [True, False, False, False, True]
    assert found[1].startswith("SyntaxError")
    with pytest.raises(KeyError):
        sandbox.call("eval", ["1"], 10)
    with pytest.raises(CallFailed, match="failed: TypeError"):
        sandbox.call("syntax_errors", 5, 10)


def nested_finally(depth: int) -> str:
    """CPython compiles a `finally` once for each way out of it: each level takes several times the time of the last."""
    body = ["def f():"]
    for i in range(depth):
        body += [" " * (i + 1) + "try:", " " * (i + 2) + "return", " " * (i + 1) + "finally:"]
    return "\n".join([*body, " " * (depth + 1) + "pass"])


@pytest.mark.parametrize(
    "text",
    [nested_finally(14), "x = " + "'a', " * 2_000_000, "x = " + "-" * 4_000_000 + "1", "(" * 3_000_000],
)
def test_a_text_made_to_exhaust_ends_in_its_time_and_the_next_is_read(sandbox, text):
    start = time.monotonic()
    try:
        (found,) = sandbox.call("syntax_errors", [text], 1.0)
        assert found  # refused by the compiler itself
    except CallFailed as error:
        assert error.status in ("timeout", "crashed", "failed")
    assert time.monotonic() - start < 10
    assert sandbox.call("syntax_errors", ["x = 1"], 10) == [""]
