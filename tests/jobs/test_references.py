"""`jobs distill` without a teacher: the tasks' own references are the answers, and nobody is asked."""

import pytest

from jobs.common import answer_format
from jobs.common.files import read_json, read_jsonl
from jobs.distill import references
from tests.jobs.test_distill import OFFLINE, distil, outs, prepare, real_tasks, toy_tasks

WITH = ("distill.references=true", "distill.reasoning_characters=[20, 4000]")


def test_references_are_the_answers_and_nobody_is_asked(tmp_path):
    records = toy_tasks(12)
    prepare(tmp_path, records)
    code, _, stderr = distil(tmp_path, OFFLINE, *WITH, "distill.examples=10", key=None)
    assert code == 0, stderr
    examples = read_jsonl(tmp_path / "out/examples.jsonl")
    assert len(examples) == 10
    by_id = {task["task_id"]: task for task in records}
    for row in examples:
        assert row["teacher"] == "reference"
        assert row["code"].split() == by_id[row["task_id"]]["reference"].split() or '"""' in row["prompt"]
        assert answer_format.parse(row["answer"]) == answer_format.Answer(row["reasoning"], row["code"])
    card = (tmp_path / "out/README.md").read_text()
    assert "No teacher was asked" in card
    assert "deepseek" not in card
    assert read_json(tmp_path / "metrics.json")["cost_usd"] == 0
    assert list((tmp_path / "responses").iterdir()) == []  # made anew each time, so none can be stale
    before = outs(tmp_path)
    assert distil(tmp_path, OFFLINE, *WITH, "distill.examples=10", "distill.concurrency=1", key=None)[0] == 0
    assert outs(tmp_path) == before


def test_a_wrong_reference_is_tried_once_and_told(tmp_path):
    records = toy_tasks(4)
    records[1]["reference"] = f"def {records[1]['entry_point']}(*args):\n    return None\n"
    prepare(tmp_path, records)
    code, _, stderr = distil(tmp_path, OFFLINE, *WITH, "distill.examples=4", key=None)
    assert code == 1
    assert "every task's reference was tried before there were 4 examples; 3 examples from 4 answers" in stderr
    rejects = read_jsonl(tmp_path / "out/rejects.jsonl")
    assert [row["task_id"] for row in rejects] == [records[1]["task_id"]]


def test_a_reference_that_is_no_python_ends_in_one_line(tmp_path):
    records = toy_tasks(3)
    records[2]["reference"] = "def f(:\n"
    prepare(tmp_path, records)
    code, _, stderr = distil(tmp_path, OFFLINE, *WITH, "distill.examples=3", key=None)
    assert code == 2
    assert f"error: {records[2]['task_id']}: its reference is no Python" in stderr
    assert "Traceback" not in stderr


def test_both_sources_of_answers_are_refused(tmp_path):
    prepare(tmp_path, toy_tasks(3))
    code, _, stderr = distil(tmp_path, OFFLINE, "distill.references=true", "distill.recorded=answers.jsonl", key=None)
    assert code == 2
    assert "references and recorded are both set" in stderr


@pytest.mark.parametrize(
    ("prompt", "name", "program", "said"),
    [
        (
            '"""\nWrite a function to find the sum of squares.\nassert f([1]) == 1\n"""',
            "f",
            "def f(xs):\n    total = 0\n    for x in xs:\n        total += x * x\n    return total",
            ["The task: find the sum of squares.", "`f` takes `xs`.", "For each `x` in `xs`:", "Return `total`."],
        ),
        (
            '"""Write a python function to count down."""',
            "count",
            "def help(n):\n    return n - 1\n"
            "def count(n):\n    while n > 0:\n        n = help(n)\n    if n:\n        return 1",
            ["The task: count down.", "`count` takes `n`.", "It is helped by `help`.", "While `n > 0`:", "If `n`:"],
        ),
        ("", "g", "g = lambda: 1", []),
    ],
)
def test_the_reasoning_is_read_off_the_program(prompt, name, program, said):
    reasoning, code = references.answer(prompt, name, program)
    assert [line for line in said if line not in reasoning] == []
    space: dict = {}
    exec(code, space)
    assert name in space


def test_nearly_all_of_mbpp_gives_an_example(tmp_path):
    records = real_tasks()[:60]
    prepare(tmp_path, records)
    code, _, stderr = distil(tmp_path, OFFLINE, *WITH, "distill.examples=50", "sandbox.timeout=10.0", key=None)
    assert code == 0, stderr
