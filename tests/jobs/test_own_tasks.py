"""Tasks of one's own: `check-tasks` finds every fault, and a file that has none goes through the pipeline's first stage."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, read_jsonl, sha256, write_jsonl
from jobs.plumbing.params import load
from jobs.tasks import check_file, job, pairs, sources
from tests.program import ROOT
from tests.toy import make_model

PARAMS = str(ROOT / "params.yaml")
TASK = {
    "task_id": "own/1",
    "prompt": "Write `plus_one(x)` that returns x + 1.",
    "entry_point": "plus_one",
    "tests": ["assert plus_one(1) == 2", "assert plus_one(-1) == 0"],
    "reference": "def plus_one(x):\n    return x + 1\n",
    "license": "MIT",
}


def checked(path: Path, *words: str):
    settings = ["--params", PARAMS, "--set", "sandbox.workers=1"]
    return CliRunner().invoke(check_file.command, [*settings, *map(str, words), str(path)])


def test_every_fault_is_listed_with_its_task(tmp_path):
    path = tmp_path / "own.jsonl"
    write_jsonl(path, [
        TASK,
        TASK | {"task_id": "own/2", "tests": ["plus_one(1) == 2"]},
        TASK,
        TASK | {"task_id": "own/3", "reference": "def plus_one(x):\n    return x\n"},
        TASK | {"task_id": "own/4", "tests": ["assert plus_one(1) == 2", "assert plus_one(1) != 3"]},
        TASK | {"task_id": "own/5", "reference": ""},
        TASK | {"task_id": "own/6", "tests": ["assert plus_one(1) is None"], "reference": "def plus_one(x): pass"},
        TASK | {"task_id": "own/7", "tests": [], "check": "def check(candidate):\n    assert candidate(1) or True\n"},
    ])  # fmt: skip
    done = checked(path)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[-1] == f"error: {path}: 6 faults"
    for said in (
        "line 2 (own/2): its test 1 asserts nothing",
        "line 3 (own/1): is a second own/1, after line 1",
        "line 6 (own/5): has no reference",
        "own/3: its reference does not pass: failed",
        "own/4: its test 2 passes for a function that does nothing",
        "own/7: its check passes for a function that does nothing",
    ):
        assert sum(line.startswith(f"{path}: {said}") for line in lines) == 1, said


def test_prompts_are_counted_with_a_tokenizer(tmp_path):
    make_model(tmp_path / "model", hidden=64, layers=1)
    path = tmp_path / "own.jsonl"
    write_jsonl(path, [TASK, TASK | {"task_id": "own/long", "prompt": "word " * 2000}])
    done = checked(path, "--tokenizer", tmp_path / "model")
    assert done.exit_code == 1
    assert "own/long: its prompt has " in done.output
    assert "grpo.max_prompt_length is 512" in done.output
    assert "own/1" not in done.output


@pytest.fixture
def small(monkeypatch):
    """Sources of two tasks each in place of the real ones."""

    def rows(name: str, *rest) -> list[dict]:
        shared = {"plus_input": [[5]], "atol": 0, "contract": ""}
        if name == "HumanEvalPlus":
            return [
                shared | {"task_id": f"HumanEval/{n}", "prompt": f'def h{n}(x):\n    """Multiply by {n}."""\n', "test": "",
                          "entry_point": f"h{n}", "canonical_solution": f"    return x * {n}\n", "base_input": [[3], [4]]}
                for n in (7, 9)]  # fmt: skip
        return [
            shared | {"task_id": f"Mbpp/{9000 + n}", "prompt": f'"""\n{told}\nassert m{n}({n}) == 0\n"""\n',
                      "entry_point": f"m{n}", "canonical_solution": f"def m{n}(x):\n    return x - {n}\n",
                      "assertion": f"assert m{n}({n}) == 0", "base_input": [[3], [4]]}
            for n, told in ((2, "Subtract two."), (3, "Lessen a number: three down."))]  # fmt: skip

    mbpp = [
        {"task_id": 9000 + n, "text": f"Cube and add {n}.", "code": f"def c{n}(x):\n    return x**3 + {n}",
         "test_setup_code": "",
         "test_list": [f"assert c{n}(0) == {n}"], "challenge_test_list": []} for n in (2, 3, 4, 5)]  # fmt: skip
    monkeypatch.setattr(sources, "evalplus_rows", rows)
    monkeypatch.setattr(sources, "mbpp_rows", lambda *rest: mbpp)


def settings(*files: dict) -> list[str]:
    return ["tasks.toy=null", "tasks.exclude=[]", "tasks.heldout=1", "sandbox.workers=1",
            f"tasks.files={json.dumps(list(files))}"]  # fmt: skip


def run(*files: dict) -> dict:
    words = ["--params", PARAMS, *(word for text in settings(*files) for word in ("--set", text))]
    done = CliRunner().invoke(pairs.command, [*words, "--out", "pairs.jsonl"])
    assert done.exit_code == 0, done.output
    params = load(Path(PARAMS), settings(*files))
    return job.run(params, Path("none"), Path("pairs.jsonl"), Path("tasks"), Path("metrics.json"))


def test_files_of_ones_own_are_split_checked_for_overlap_and_counted(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    seven = TASK | {"task_id": "own/7", "prompt": "Seven of them.", "entry_point": "seven",
                    "tests": ["assert seven(1) == 7"], "reference": "def seven(n):\n    return 7 * n\n"}  # fmt: skip
    write_jsonl(Path("train.jsonl"), [TASK, seven])
    bench = [TASK | {"task_id": f"bench/{n}", "prompt": f"Give {n} for all.", "entry_point": f"b{n}",
                     "tests": [f"assert b{n}(0) == {n}"], "reference": f"def b{n}(x):\n    return {n}\n"}
             for n in (11, 12)]  # fmt: skip
    write_jsonl(Path("bench.jsonl"), bench)
    checks = checked(Path("train.jsonl"))
    assert checks.exit_code == 0, checks.output
    digest = sha256(Path("train.jsonl"))
    assert json.loads(checks.output)["for tasks.files"] == f"{{path: train.jsonl, sha256: {digest}, split: train}}"
    files = [
        {"path": "train.jsonl", "sha256": digest, "split": "train"},
        {"path": "bench.jsonl", "sha256": sha256(Path("bench.jsonl")), "split": "house"},
    ]
    metrics = run(*files)
    assert metrics["tasks"] == {"distill": 2, "train": 2, "mbpp": 1, "humaneval": 2, "house": 2}
    assert metrics["contaminated"]["train"] == {"solves": 1, "statement": 0, "words": 0, "any": 1}
    written = {row["task_id"]: row for row in read_jsonl(Path("tasks/train.jsonl"))}
    assert "own/7" not in written
    assert written["own/1"]["source"] == "train.jsonl"
    assert written["own/1"]["license"] == "MIT"
    assert read_json(Path("tasks/sizes.json"))["house"] == 2
    assert [row["task_id"] for row in read_jsonl(Path("tasks/house.jsonl"))] == ["bench/11", "bench/12"]
    assert {row["task_id"] for row in read_jsonl(Path("tasks/benchmarks.jsonl"))} >= {"bench/11", "HumanEval/7"}
    assert "| house | 2 | bench.jsonl | MIT |" in Path("tasks/README.md").read_text()

    write_jsonl(Path("train.jsonl"), [TASK])  # another file than params say
    with pytest.raises(JobError, match=r"train\.jsonl: has the sha256"):
        sources.pools(load(Path(PARAMS), settings(*files)).tasks, Path("none"))
    write_jsonl(Path("train.jsonl"), [TASK, TASK | {"task_id": "Mbpp/9002"}])
    chosen = load(Path(PARAMS), settings(files[0] | {"sha256": sha256(Path("train.jsonl"))})).tasks
    with pytest.raises(UsageError, match="Mbpp/9002 is a task of two sources"):
        job.collect(chosen, sources.pools(chosen, Path("none")))


def test_params_refuse_names_of_other_files():
    for name in ("humaneval", "left_out", "Own"):
        with pytest.raises(UsageError, match=r"tasks\.files"):
            load(Path(PARAMS), [f"tasks.files=[{{path: a.jsonl, sha256: {'0' * 64}, split: {name}}}]"])
