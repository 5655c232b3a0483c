"""What earns without solving is told from what solves."""

from collections import defaultdict

import pytest

from jobs.common import answer_format
from jobs.grpo.rewards import Scorer
from jobs.grpo.special_cases import special_cased
from jobs.plumbing.params import load
from jobs.sandbox import Verdict
from tests.program import ROOT

TESTS = ["assert add(1, 2) == 3", "assert add(5, 5) == 10", "assert add(-1, 4) == 3"]
LISTS = ["assert total([1, 2]) == 3", "assert total([]) == 0"]


@pytest.mark.parametrize(
    ("code", "suspect"),
    [
        ("def add(a, b):\n    return a + b", False),
        ("def add(a, b):\n    return 3", True),
        ("def add(*numbers):\n    return 3", True),
        ("def add(a, b):\n    if a == 1:\n        return 3\n    if a == 5:\n        return 10\n    return 3", True),
        ("def add(a, b):\n    if (a, b) == (1, 2):\n        return 3\n    elif (a, b) == (5, 5):\n        return 10", True),
        ("def add(a, b):\n    return 3 if a == 1 else 10 if b == 5 else 3", True),
        ("def add(a, b):\n    if a == 1:\n        return 3\n    return a + b", False),
        ("def add(a, b):\n    if a == 1:\n        return b + 1\n    if a == 5:\n        return b + 5\n    return a", False),
        ("def add(a, b):\n    if a == 7:\n        return 3\n    if a == 8:\n        return 10\n    return a + b", False),
        ("def other(a, b):\n    return 3", False),
        ("def add(:", False),
        ("def add():\n    return 3", False),
    ],
)  # fmt: skip
def test_special_cases(code, suspect):
    assert special_cased(code, "add", TESTS) is suspect


def test_inputs_that_are_lists_are_compared_too():
    cheat = "def total(items):\n    if items == [1, 2]:\n        return 3\n    if [] == items:\n        return 0"
    assert special_cased(cheat, "total", LISTS)
    assert not special_cased("def total(items):\n    return sum(items) if items else 0", "total", LISTS)


def test_a_task_without_assertions_knows_constants_alone():
    assert special_cased("def f(x):\n    return 1", "f", [])
    assert not special_cased("def f(x):\n    if x == 1:\n        return 1\n    return x", "f", [])


def test_the_shares_are_logged_of_what_earned():
    rewards = load(ROOT / "params.yaml").grpo.rewards
    task = {"task_id": "t", "prompt": "p", "entry_point": "add", "tests": TESTS}
    scorer = Scorer(None, rewards, {"t": task}, 100)
    right, constant = (
        answer_format.render("r", code) for code in ("def add(a, b): return a + b", "def add(a, b): return 3")
    )
    verdicts = {
        right: Verdict("passed", 3, 3, base_passed=True, plus_passed=True),
        constant: Verdict("failed", 2, 3, base_passed=True, plus_passed=False),
        "nothing": None,
    }
    texts = [right, constant, constant, right, "nothing"]
    scores = [scorer.score(text, verdicts[text]) for text in texts]
    scorer.scores = lambda completions, tasks: scores
    logged = defaultdict(list)
    functions, _ = scorer.functions()
    functions[2](completions=texts, task_id=["t"] * 5, log_metric=lambda name, value: logged[name].append(value))
    assert (logged["special_cased"], logged["base_only"]) == ([0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0])
