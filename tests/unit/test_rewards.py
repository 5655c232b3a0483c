from collections import defaultdict
from concurrent.futures import Future

import pytest

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.grpo.rewards import Scorer, correctness_of, format_of, reasoning_of
from jobs.plumbing.params import Rewards
from jobs.sandbox import Verdict

REWARDS = Rewards(format=0.1, reasoning=0.2, reasoning_characters=10, correctness=1.0, all_tests_only=False,
                  overlong=0.0, overlong_tokens=40)  # fmt: skip
GOOD = answer_format.render("12345", "def f(): pass")


def verdict(status="failed", passed=1, total=4):
    return Verdict(
        status=status,
        tests_passed=passed,
        tests_total=total,
        base_passed=None,
        plus_passed=None,
        error="why",
        seconds=0.0,
    )


class Sandbox:
    """Answers from a list, and remembers what it was asked."""

    def __init__(self, verdicts):
        self.verdicts, self.asked = list(verdicts), []

    def submit(self, task, code):
        self.asked.append((task["task_id"], code))
        future = Future()
        future.set_result(self.verdicts.pop(0))
        return future


def scorer(verdicts, rewards=REWARDS):
    return Scorer(Sandbox(verdicts), rewards, {name: {"task_id": name, "entry_point": "f"} for name in "ab"}, 100)


def test_format_and_reasoning():
    assert format_of(GOOD) == 1
    assert format_of(GOOD + "!") == 0
    assert reasoning_of(GOOD, 10) == 0.5
    assert reasoning_of(answer_format.render("x" * 99, "y"), 10) == 1
    assert reasoning_of("x" * 99, 10) == 0, "length without the format earns nothing"


@pytest.mark.parametrize(
    ("status", "passed", "total", "fraction", "strict"),
    [
        ("passed", 4, 4, 1.0, 1.0),
        ("failed", 1, 4, 0.25, 0.0),
        ("timeout", 3, 4, 0.75, 0.0),
        ("crashed", 0, 4, 0.0, 0.0),
        ("invalid", 0, 0, 0.0, 0.0),
        ("infrastructure_error", 0, 4, None, None),
    ],
)
def test_correctness(status, passed, total, fraction, strict):
    v = verdict(status, passed, total)
    assert correctness_of(v, False) == fraction
    assert correctness_of(v, True) == strict


def test_equal_answers_to_a_task_are_judged_once_and_answers_without_code_never():
    s = scorer([verdict(), verdict("passed", 4)])
    scores = s.scores([GOOD, GOOD, "no tags", GOOD], ["a", "a", "a", "b"])
    assert s.sandbox.asked == [("a", "def f(): pass"), ("b", "def f(): pass")]
    assert [x.correctness for x in scores] == [0.25, 0.25, 0.0, 1.0]


def test_what_was_sent_early_is_not_sent_again_and_what_is_not_of_the_batch_is_not_waited_for():
    s = scorer([verdict("passed", 4), verdict()])
    s.start([GOOD], ["a"])
    s.pending["an answer to another question", "a"] = Future()  # which has no verdict, ever
    assert [x.correctness for x in s.scores([GOOD, GOOD], ["b", "a"])] == [0.25, 1.0]
    assert s.sandbox.asked == [("a", "def f(): pass"), ("b", "def f(): pass")]
    assert not s.pending


def test_an_infrastructure_error_is_none_in_every_reward_and_never_zero():
    s = scorer([verdict("infrastructure_error"), verdict("passed", 4)])
    functions, weights = s.functions()
    completions = [GOOD, GOOD.replace("12345", "2"), "x", "y"]
    columns = [f(completions=completions, task_id=["a", "a", "b", "b"]) for f in functions]
    assert [c[0] for c in columns] == [None, None, None]
    assert [c[1] for c in columns] == [1.0, 0.1, 1.0]
    assert weights == [0.1, 0.2, 1.0]
    assert [f.__name__ for f in functions] == ["format", "reasoning", "correctness"]


def test_many_infrastructure_errors_stop_the_job():
    s = scorer([verdict("infrastructure_error"), verdict("infrastructure_error")])
    with pytest.raises(JobError, match=r"2 of 4 answers.*why"):
        s.scores([GOOD, GOOD.replace("1", "2"), "x", "y"], ["a", "a", "b", "b"])


def test_the_all_passed_rate_is_logged_beside_the_fraction():
    logged = defaultdict(list)
    s = scorer([verdict("failed", 3), verdict("passed", 4)])
    functions, _ = s.functions()
    functions[2](
        completions=[GOOD, GOOD], task_id=["a", "b"], log_metric=lambda name, value: logged[name].append(value)
    )
    assert logged == {"all_tests_passed": [0.0, 1.0], "infrastructure_errors": [0.0], "special_cased": [0.0, 0.0]}
