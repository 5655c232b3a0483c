"""`python -m jobs score`: the three formats, drop-in for the official commands, and errors that name the line."""

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.score import command, load_tasks

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "../shared/data"

HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": "def add(a, b):\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n",
}
PLUS = {**HUMANEVAL, "task_id": "HumanEval/901", "base_input": [[1, 2]], "plus_input": [[5, 6], [0, 0]], "atol": 0}
OWN = {
    "task_id": "own/1",
    "prompt": "Add two numbers.",
    "entry_point": "add",
    "setup": "",
    "tests": ["assert add(1, 2) == 3"],
}
RIGHT, WRONG = "    return a + b\n", "    return 3\n"


def write(path, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    return str(path)


def score(tmp_path, tasks, samples, name="tasks.jsonl"):
    out = tmp_path / "out.jsonl"
    arguments = [
        "--params",
        str(REPOSITORY / "params.yaml"),
        "--set",
        "sandbox.workers=1",
        "--out",
        str(out),
        "--tasks",
        write(tmp_path / name, tasks),
        "--samples",
        write(tmp_path / "samples.jsonl", samples),
    ]
    result = CliRunner().invoke(command, arguments)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return result, rows


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.jsonl.gz"])
def test_every_format_in_one_file(tmp_path, name):
    samples = [
        {"task_id": "HumanEval/900", "completion": RIGHT},
        {"task_id": "HumanEval/900", "completion": WRONG},
        {"task_id": "HumanEval/901", "solution": HUMANEVAL["prompt"] + WRONG},
        {"task_id": "own/1", "solution": "def add(a, b): return a + b"},
        {"task_id": "own/1", "solution": "def add("},
    ]
    result, rows = score(tmp_path, [HUMANEVAL, PLUS, OWN], samples, name)
    assert result.exit_code == 0, result.output
    assert list(rows[0]) == [
        "task_id",
        "passed",
        "status",
        "tests_passed",
        "tests_total",
        "base_passed",
        "plus_passed",
        "error",
    ]
    assert [(row["task_id"], row["status"], row["tests_passed"], row["tests_total"]) for row in rows] == [
        ("HumanEval/900", "passed", 2, 2),
        ("HumanEval/900", "failed", 1, 2),
        ("HumanEval/901", "failed", 1, 3),
        ("own/1", "passed", 1, 1),
        ("own/1", "invalid", 0, 1),
    ]
    assert (rows[2]["base_passed"], rows[2]["plus_passed"], rows[0]["base_passed"]) == (True, False, None)
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary["statuses"] == {"failed": 2, "invalid": 1, "passed": 2}
    assert (summary["samples"], summary["tasks_sampled"]) == (5, 3)
    assert summary["pass@k"] == {"pass@1": pytest.approx((0.5 + 0 + 0.5) / 3, abs=1e-6)}


@pytest.mark.parametrize(
    ("tasks", "samples", "message"),
    [
        ([OWN], [{"task_id": "own/1", "solution": "x"}, "{cut\n"], "line 2 is not valid JSON"),
        ([OWN], [{"task_id": "own/1", "solution": "x"}, "[1]\n"], "line 2 is not a JSON object"),
        ([OWN], [{"task_id": "own/2", "solution": "x"}], "line 1"),
        ([OWN], ["\n", {"task_id": "own/2", "solution": "x"}], "line 2"),
        ([OWN], [{"task_id": "own/1", "solution": "x"}, {"task_id": "own/1", "code": "x"}], "line 2"),
        ([OWN], [{"task_id": ["own/1"], "solution": "x"}], "line 1"),
        ([OWN], [], "no samples"),
        ([], [{"task_id": "own/1", "solution": "x"}], "no tasks"),
        ([OWN, OWN], [{"task_id": "own/1", "solution": "x"}], "a second own/1"),
        ([{**OWN, "tests": []}], [{"task_id": "own/1", "solution": "x"}], "no tests"),
        ([{"prompt": "x"}], [{"task_id": "own/1", "solution": "x"}], "no task_id"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path, tasks, samples, message):
    result, rows = score(tmp_path, tasks, samples)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert rows == []


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(("name", "count"), [("HumanEval", 164), ("HumanEvalPlus", 164), ("MbppPlus", 378)])
def test_the_official_files_are_read_as_they_are(name, count):
    tasks = load_tasks(DATA / f"{name}.jsonl.gz")
    assert len(tasks) == count
    assert all(task["reference"].startswith(task["prompt"]) for task in tasks.values())


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_all_of_openais_canonical_solutions_pass(tmp_path):
    tasks = load_tasks(DATA / "HumanEval.jsonl.gz")
    samples = [{"task_id": name, "solution": task["reference"]} for name, task in tasks.items()]
    out = tmp_path / "out.jsonl"
    arguments = [
        "--params",
        str(REPOSITORY / "params.yaml"),
        "--out",
        str(out),
        "--tasks",
        str(DATA / "HumanEval.jsonl.gz"),
        "--samples",
        write(tmp_path / "samples.jsonl", samples),
    ]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert [
        json.loads(line)["task_id"] for line in out.read_text().splitlines() if not json.loads(line)["passed"]
    ] == []
