"""`jobs smoke`: which runs are made, from what, and what is said over them. The pipeline itself is stood in for."""

import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs import smoke
from jobs.common.files import read_json, sha256, write_json
from jobs.plumbing import workspace
from jobs.plumbing.yaml12 import read_yaml
from tests.evaluations import evaluation, tasks_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """(folder, seed, targets, files found) of each `dvc repro`, which here makes evaluations that hang on the seed."""
    made = []

    def reproduce(out, targets, at_once, **around):
        seed = read_yaml(out / "params.yaml")["seed"]
        made.append(
            (
                out.name,
                seed,
                targets,
                {path.name for path in (*(out / "models").glob("*"), *(out / ".dvc/cache").glob("*"))},
            )
        )
        if out.name.endswith("-stdin"):
            write_json(
                out / "metrics/grpo.json", {"first": {"all_tests_passed": 0.6}, "last": {"all_tests_passed": 0.9}}
            )
            write_json(out / "metrics/evaluate-grpo-cot.json", {"toy_stdin": {"sampled": {"pass@1": 0.95}}})
            (out / "dvc.lock").write_text("{}")
            return
        tasks = out / "data/tasks/toy.jsonl"
        if not tasks.exists():
            tasks_file(tasks, 40)
            (out / "models/base").mkdir(parents=True)
            (out / "metrics").mkdir()
            (out / ".dvc/cache/files").mkdir(parents=True)
        (out / "plots").mkdir(exist_ok=True)
        (out / "plots/grpo.csv").write_text("step,reward\n1,0.5\n")
        shutil.rmtree(out / "data/evaluations", ignore_errors=True)
        for name, rate in (("base", 0.2), ("sft", 0.4), ("grpo", 0.8)):
            draw = random.Random(f"{name} {seed if name != 'base' else 0}")
            luck = {(t, i): draw.random() for t in range(40) for i in range(6)}
            evaluation(out / f"data/evaluations/{name}-cot", tasks, lambda t, i, luck=luck, rate=rate: luck[t, i] < rate,
                       text=str(luck[0, 0]))  # fmt: skip
        (out / "dvc.lock").write_text("{}")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(workspace, "reproduce", reproduce)
    return made


def call(*words):
    return CliRunner().invoke(smoke.command, words, catch_exceptions=False)


def test_further_seeds_begin_with_what_the_first_run_made(runs, tmp_path):
    done = call("--out", str(tmp_path / "run"), "--seeds", "3")
    assert done.exit_code == 0, done.output
    first = read_yaml(ROOT / "params.yaml")["seed"]
    made = [(name, seed) for name, seed, *_ in runs]
    assert made == [("run", first), ("run-stdin", first), ("run-2", first + 1), ("run-3", first + 2)]
    assert [targets for _, _, targets, _ in runs] == [(), ("evaluate@grpo-cot",), ("evaluate",), ("evaluate",)]
    assert all({"base", "files"} <= found for _, _, _, found in runs[2:]), "nothing is made anew that hangs on no seed"
    assert "over 3 seeds, on toy (40 tasks, cot), grpo is better than sft by" in done.output
    assert (tmp_path / "run/reports/seeds.html").exists()
    assert read_json(tmp_path / "run/reports/seeds.json")["toy"]["cot"]["grpo"]["runs"]["number"] == 3


def test_a_second_call_makes_no_run_from_the_beginning(runs, tmp_path):
    call("--out", str(tmp_path / "run"), "--seeds", "2")
    (tmp_path / "run-2/models/own").mkdir()
    done = call("--out", str(tmp_path / "run"), "--seeds", "2")
    assert (tmp_path / "run-2/models/own").exists()
    assert "two seeds do not tell how far seeds scatter" in done.output


def test_one_seed_is_the_plain_run(runs, tmp_path):
    done = call("--out", str(tmp_path / "run"))
    assert done.exit_code == 0
    assert [name for name, *_ in runs] == ["run", "run-stdin"]
    assert not (tmp_path / "run-2").exists() and not (tmp_path / "run/reports/seeds.html").exists()


def test_a_place_for_a_further_seed_that_holds_somebodys_files_is_refused_before_the_first(runs, tmp_path):
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2/notes.txt").write_text("mine")
    done = call("--out", str(tmp_path / "run"), "--seeds", "2")
    assert done.exit_code == 2
    assert "run-2 holds what no run laid out" in done.output
    assert not runs


def test_the_twin_is_the_first_run_with_whole_programs_for_answers(runs, tmp_path):
    done = call("--out", str(tmp_path / "run"))
    assert "whole programs: solved while training 0.600 -> 0.900, on held-out tasks pass@1 0.950" in done.output
    first, twin = (read_yaml(tmp_path / name / "params.yaml") for name in ("run", "run-stdin"))
    base = {"path": ".cache/base", "sha256": sha256(tmp_path / "run/models/base")}
    assert (first["base"]["folder"], twin["base"]["folder"]) == (None, base)
    assert sha256(tmp_path / "run-stdin/.cache/base") == base["sha256"]
    assert (first["tasks"]["toy_stdin"], twin["tasks"]["toy_stdin"]) == (False, True)


def test_targets_and_a_flag_leave_the_twin_out(runs, tmp_path):
    assert call("--out", str(tmp_path / "run"), "base").exit_code == 0
    assert call("--out", str(tmp_path / "run"), "--no-stdin").exit_code == 0
    assert [name for name, *_ in runs] == ["run", "run"]
