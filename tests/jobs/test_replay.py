"""A clone with dvc.lock and a remote has every result without running; run again, it has the same hashes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.plumbing.yaml12 import dump, read_yaml

ROOT = Path(__file__).parents[2]
STAGES = ("tasks", "distill")  # cheap ones; the whole pipeline is replayed in the same way
SMALL = {"tasks": {"toy": {"distill": 8, "train": 4, "heldout": 4}}, "distill": {"examples": 4, "concurrency": 1}}
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def call(folder, *words):
    environment = os.environ | {
        "RUNTIME": "local",
        "TRAIN_IMAGE": "cpu",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for unwanted in ("PYTHONPATH", "GIT_DIR", "GIT_WORK_TREE"):
        environment.pop(unwanted, None)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def dvc(folder, *words):
    return call(folder, sys.executable, "-m", "dvc", *words)


def contents(folder):
    """The outs' and metrics' bytes, by path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for out in ("data/tasks", "data/distill", "metrics")
        for p in sorted((folder / out).rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    from jobs.plumbing.params import merged, validate

    folder, remote = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("remote")
    call(ROOT, sys.executable, "-m", "jobs", "smoke", "--out", str(folder), "--prepare")
    params = merged(read_yaml(folder / "params.yaml"), SMALL)
    validate(params, "params.yaml")
    (folder / "params.yaml").write_text(dump(params))
    dvc(folder, "remote", "add", "--default", "store", str(remote))
    dvc(folder, "repro", *STAGES)
    dvc(folder, "push", *STAGES)
    call(folder, *GIT, "add", "--all")
    call(folder, *GIT, "commit", "--quiet", "--message", "run")
    return folder


@pytest.fixture
def clone(first, tmp_path):
    call(tmp_path, "git", "clone", "--quiet", str(first), "clone")
    return tmp_path / "clone"


def test_everything_is_restored_without_running(first, clone):
    assert not (clone / "data/distill").exists()
    dvc(clone, "pull", *STAGES)
    assert contents(clone) == contents(first)
    said = dvc(clone, "repro", *STAGES)
    assert "Running" not in said
    assert not (clone / "reports/provenance").exists(), "what a job that ran would have written"


def test_run_again_without_any_cache_it_has_the_same_hashes(first, clone):
    lock = (clone / "dvc.lock").read_text()
    shutil.rmtree(clone / ".dvc/cache", ignore_errors=True)
    (clone / "dvc.lock").unlink()
    said = dvc(clone, "repro", "--no-run-cache", *STAGES)
    assert said.count("Running stage") == len(STAGES)
    assert yaml.safe_load((clone / "dvc.lock").read_text()) == yaml.safe_load(lock)
    assert contents(clone) == contents(first)


@pytest.mark.parametrize("where", [[], ["--temp"]], ids=["workspace", "temp"])
def test_what_a_failed_run_paid_for_is_there_for_the_next_experiment(first, clone, where):
    from jobs.common import answer_format
    from jobs.common.files import read_jsonl
    from tests.teacher_server import Behaviour, TeacherServer

    dvc(clone, "pull", *STAGES)
    reasoning = "Take the steps of the statement one after the other."
    answers = {
        task["prompt"]: Behaviour(answer_format.render(reasoning, task["reference"]))
        for task in read_jsonl(clone / "data/tasks/distill.jsonl")
    }
    with TeacherServer(answers) as server:
        params = read_yaml(clone / "params.yaml")
        params["distill"] |= {"recorded": None, "base_url": server.url, "api_key_env": None, "max_requests": 3}
        (clone / "params.yaml").write_text(dump(params))
        call(clone, *GIT, "commit", "--all", "--quiet", "--message", "live")
        with pytest.raises(AssertionError, match=r"the budget ended .* 3 examples from 3 answers"):
            dvc(clone, "exp", "run", *where, "distill")
        assert server.asked.total() == 3
        dvc(clone, "exp", "run", *where, "--set-param", "distill.max_requests=9", "distill")
        assert server.asked.total() == 4
