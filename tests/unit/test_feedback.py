"""What is told of a failed answer: the failing test's input or call and the error, and nothing of what was expected."""

import pytest

from jobs.common import answer_format, feedback
from jobs.sandbox import Sandbox
from jobs.weights.tokenizer import ids_of

SECRET = 84213  # what a right answer would return


def told(task, error, status="failed", answered=True):
    return feedback.of({"entry_point": "f", "tests": []} | task, answered=answered, status=status, error=error)


@pytest.mark.parametrize(
    ("task", "error", "shown"),
    [
        ({"tests": [f"assert f(1) == {SECRET}", "assert f(2, x=[3]) == 4"]}, "test 2: a wrong answer",
         "The call: f(2, x=[3])"),
        ({"tests": [f"assert {SECRET} == f(7)"]}, "test 1: a wrong answer", "The call: f(7)"),
        ({"tests": [f"assert abs(f(7) - {SECRET}) < 1e-6"]}, "test 1: a wrong answer", "The call: f(7)"),
        ({"tests": [f"a = {SECRET}\nassert f(a) == 1"]}, "test 1: a wrong answer", None),
        ({"tests": ["def test_a():\n    assert f(5) == 3\ntest_a()"]}, "test 1: ValueError: x", "The call: f(5)"),
        ({"base_input": [[1], [2, "a"]], "plus_input": [[9]]}, "base test 2: a wrong answer", "The call: f(2, 'a')"),
        ({"base_input": [[1], [2, "a"]], "plus_input": [[9]]}, "plus test 1: a wrong answer", "The call: f(9)"),
        ({"stdin_tests": [{"input": "2 3\n", "output": f"{SECRET}\n"}]}, "test 1: a wrong answer", "The input:\n2 3\n"),
        ({"entry_point": "Solution", "method": "add", "calls": [{"arguments": [[1], 2], "expected": SECRET}]},
         "test 1: a wrong answer", "The call: Solution().add([1], 2)"),
        ({"check": f"def check(candidate):\n    assert candidate(1) == {SECRET}"}, "test 1: a wrong answer", None),
        ({"tests": ["assert f(1)"]}, "test 9: a wrong answer", None),
        ({"tests": ["assert f(1)"]}, "SyntaxError: invalid syntax", None),
    ],
)  # fmt: skip
def test_the_input_or_call_of_the_failing_test_is_shown(task, error, shown):
    said = told(task, error)
    assert str(SECRET) not in said
    assert said.startswith("Your answer fails a test.\n") and said.endswith(feedback.AGAIN)
    assert (shown in said) if shown else ("The call" not in said and "The input" not in said)


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        ("test 1: ZeroDivisionError: division by zero", "failed", "What happened: ZeroDivisionError: division by zero"),
        (f"test 1: AssertionError: expected {SECRET}", "failed", "What happened: AssertionError"),
        (
            f"test_a: AssertionError: 3 != {SECRET}; test_b: AssertionError: {SECRET}",
            "failed",
            "What happened: test_a: Asse",
        ),
        (f"check: AssertionError: {SECRET}", "failed", "What happened: check: AssertionError"),
        ("test 2: took over 2 s", "timeout", "It takes too long."),
        ("", "crashed", "What happened: crashed"),
    ],
)
def test_an_error_is_told_but_for_what_a_test_may_have_written(error, status, shown):
    said = told({"tests": ["assert f(1) == 2"]}, error, status)
    assert shown in said
    assert str(SECRET) not in said


def test_an_answer_out_of_the_format_is_told_so():
    assert told({}, "", answered=False) == f"{feedback.NO_FORMAT}\n{feedback.AGAIN}"


def test_long_inputs_are_cut():
    said = told({"stdin_tests": [{"input": "1 " * 5000, "output": "x"}]}, "test 1: a wrong answer")
    assert len(said) < feedback.MOST + 200


def test_the_sandboxs_own_errors_are_understood():
    """Each kind of test, judged for real: the place that is shown is that of the first test that failed."""
    kinds = [
        ({"tests": ["assert f(1) == 1", "assert f(2) == 4"]}, "def f(x): return x\n", "f(2)"),
        ({"base_input": [[1], [3]], "plus_input": [[1]], "reference": "def f(x): return x * x\n"}, "def f(x): return x\n",
         "f(3)"),
        ({"calls": [{"arguments": [1], "expected": 1}, {"arguments": [5], "expected": 25}]}, "def f(x): return x\n",
         "f(5)"),
        ({"entry_point": "", "stdin_tests": [{"input": "1\n", "output": "1\n"}, {"input": "6\n", "output": "36\n"}]},
         "print(input())\n", "The input:\n6\n"),
        ({"entry_point": "", "stdin_tests": [{"input": "1\n", "output": "1\n"}, {"input": "6\n", "output": "36\n"}]},
         "print(1 // (6 - int(input())) * 0 + 1)\n", "ZeroDivisionError"),
    ]  # fmt: skip
    with Sandbox(workers=1, timeout=10) as sandbox:
        for number, (fields, code, shown) in enumerate(kinds):
            task = {"task_id": f"t{number}", "prompt": "", "entry_point": "f", "setup": "", "tests": [], **fields}
            verdict = sandbox.run([(task, code)])[0]
            assert not verdict.passed
            assert shown in told(task, verdict.error, verdict.status), verdict


def test_a_second_turn_is_what_the_chat_template_writes(tmp_path):
    from tests import toy

    toy.make_tokenizer(tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    task = {"entry_point": "f", "tests": ["assert f(1) == 2"]}
    said = feedback.of(task, answered=True, status="failed", error="test 1: a wrong answer")
    turn = feedback.turn(task, answered=True, status="failed", error="test 1: a wrong answer")
    messages = [*answer_format.messages("Do it.", "an answer"), {"role": "user", "content": said}]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids_of(tokenizer, (answer_format.chat_prompt("Do it.") + "an answer", turn)) == whole
