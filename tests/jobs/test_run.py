"""`jobs run`: recipes laid over params.yaml, in a folder of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.common.files import read_json, read_jsonl
from jobs.plumbing.yaml12 import read_yaml
from jobs.run import command

ROOT = Path(__file__).parents[2]
TOY = "tasks: {toy: {distill: 4, train: 3, heldout: 2}}\nseed: 11\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path / "toy.yaml"


def run(*words: object):
    return CliRunner().invoke(command, list(map(str, words)))


def test_each_recipe_is_laid_over_those_before_it_and_assignments_over_all(tmp_path, recipe):
    (tmp_path / "more.yaml").write_text("seed: 12\ngrpo: {steps: 7, rewards: {format: 0.5}}\n")
    done = run(recipe, tmp_path / "more.yaml", "--set", "grpo.steps=9", "--out", tmp_path / "out", "--prepare")
    assert done.exit_code == 0, done.output
    params, here = read_yaml(tmp_path / "out/params.yaml"), read_yaml(ROOT / "params.yaml")
    assert (params["seed"], params["grpo"]["steps"], params["tasks"]["toy"]["train"]) == (12, 9, 3)
    assert params["grpo"]["rewards"] == here["grpo"]["rewards"] | {"format": 0.5}
    assert params["evaluate"] == here["evaluate"]


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("grpo: {stepz: 3}", (), ("recipe.yaml", "grpo.stepz")),
        ("grpo: {steps: many}", (), ("recipe.yaml", "grpo.steps")),
        ("seed: 3", ("--set", "sft.epochs=none"), ("--set", "sft.epochs")),
        ("[1, 2", (), ("recipe.yaml",)),
    ],
)
def test_a_recipe_that_is_wrong_is_named_before_anything_runs(tmp_path, recipe, text, words, said):
    bad = tmp_path / "recipe.yaml"
    bad.write_text(text + "\n")
    done = run(bad, *words, "--out", tmp_path / "out", "--prepare")
    assert done.exit_code == 2
    assert [word for word in said if word not in done.stderr] == []


def test_a_recipe_that_is_not_there_and_a_folder_of_somebodys_are_refused(tmp_path, recipe):
    done = run(tmp_path / "none.yaml", "--out", tmp_path / "out", "--prepare")
    assert done.exit_code == 2 and "none.yaml" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert run(recipe, "--out", tmp_path / "mine", "--prepare").exit_code == 2
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_a_run_goes_to_its_target_and_is_committed(tmp_path, recipe):
    words = [sys.executable, "-m", "jobs", "run", recipe, "--target", "tasks", "--out", tmp_path / "out"]
    environment = {"RUNTIME": "local", "TRAIN_IMAGE": "cpu", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(list(map(str, words)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run of toy.yaml done in" in done.stdout
    assert len(read_jsonl(tmp_path / "out/data/tasks/train.jsonl")) == 3
    assert read_json(tmp_path / "out/metrics/tasks.json")["tasks"]["toy"] == 2
    log = subprocess.run(
        ["git", "log", "--format=%s"], cwd=tmp_path / "out", capture_output=True, text=True, check=True
    )
    assert log.stdout == "run of toy.yaml\n"
    assert read_yaml(ROOT / "params.yaml")["seed"] == 3407
