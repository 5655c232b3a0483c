"""Tasks for whole programs on their way: from a file over a reward to an evaluation's outcomes and metrics."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.__main__ import main
from jobs.common import answer_format
from jobs.common.files import write_jsonl
from jobs.common.task import read_tasks
from jobs.grpo.rewards import Scorer
from jobs.plumbing.params import load
from jobs.sandbox import Sandbox
from jobs.scoring.judge import score
from jobs.scoring.metrics import summary

PARAMS = Path(__file__).parents[2] / "params.yaml"
STEPS = {"double": "n * 2", "square": "n * n", "negate": "-n"}


def twin(name, expression):
    """A task that reads a number and prints what a step makes of it; zero tells nothing of it."""
    return {
        "task_id": f"twin/{name}",
        "prompt": f"Read an integer n and print what it is when you {name} it.",
        "stdin_tests": [{"input": f"{n}\n", "output": f"{eval(expression, {'n': n})}\n"} for n in (0, 3, -7, 12)],
        "reference": program(expression),
    }


def program(expression):
    return f"n = int(input())\nprint({expression})\n"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Read from a file in which the entry point is not given."""
    path = tmp_path_factory.mktemp("twin") / "twin.jsonl"
    write_jsonl(path, [twin(*step) for step in STEPS.items()])
    return path, read_tasks(path)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=5) as sandbox:
        yield sandbox


def checked(path):
    arguments = ["check-tasks", str(path), "--params", str(PARAMS), "--set", "sandbox.require=[]"]
    return CliRunner().invoke(main, [*arguments, "--set", "sandbox.workers=1"])


def test_check_tasks_takes_the_file_and_tells_of_what_is_wrong(tasks, tmp_path):
    path, rows = tasks
    done = checked(path)
    assert done.exit_code == 0, done.output
    assert '"tasks": 3' in done.output
    wrong = {**rows[1], "reference": "print(1)\n"}
    named = {**rows[2], "entry_point": "f"}
    (tmp_path / "bad.jsonl").write_text(json.dumps(wrong) + "\n" + json.dumps(named) + "\n")
    done = checked(tmp_path / "bad.jsonl")
    assert done.exit_code == 1
    assert "twin/square: its reference does not pass" in done.output
    assert "twin/negate): has stdin_tests, of a whole program, and an entry_point" in done.output


def test_the_reward_is_the_share_of_runs_that_are_right(tasks, sandbox):
    rows = {task["task_id"]: task for task in tasks[1]}
    codes = [program("n * 2"), program("0"), "print('", program("1 // n")]
    answers = [answer_format.render("Think.", code) for code in codes] + [program("n * 2")]
    scorer = Scorer(sandbox, load(PARAMS).grpo.rewards, rows, most=512)
    scores = scorer.scores(answers, ["twin/double"] * len(answers))
    assert [one.correctness for one in scores] == [1.0, 0.25, 0.0, 0.0, 0.0]
    assert scores[2].verdict.status == "invalid"
    assert scores[4].verdict is None, "an answer without tags is not run"


@pytest.mark.parametrize("mode", ["cot", "plain"])
def test_an_evaluation_counts_them(tasks, sandbox, mode):
    def text(code):
        return answer_format.render("Think.", code) if mode == "cot" else f"```python\n{code}```\n"

    samples = [
        {"task_id": task["task_id"], "sample": number, "text": text(code), "tokens": 9, "finish": "stop"}
        for task in tasks[1]
        for number, code in enumerate([task["reference"], program("7"), "import sys\nsys.exit(3)\n"])
    ]
    results = score(tasks[1], samples, mode, sandbox)
    assert [row["outcome"] for row in results] == ["passed", "failed", "failed"] * 3
    metrics = summary("twin", tasks[1], samples, results, mode)["twin"]
    assert metrics["greedy"] == {"pass@1": 1.0}
    assert metrics["failures"]["failed"] == pytest.approx(2 / 3)
