"""What the benches on a GPU share: whose memory is measured. nvidia-smi is a stand-in."""

import os
import time
from pathlib import Path

import pytest

from tests.bench import gpu_jobs, scaling, scaling_grpo

CARDS = "0, GPU-aaaa1111-22, 2048\n1, GPU-aaaa2222-33, 135168\n10, GPU-bbbb1111-44, 512\n"


@pytest.mark.parametrize(
    ("visible", "used"),
    [
        (None, [2.0, 132.0, 0.5]),
        ("0", [2.0]),
        ("10, 0", [0.5, 2.0]),
        ("GPU-bbbb,1", [0.5, 132.0]),
        ("GPU-aaaa", []),  # of two cards
        ("1,7,0", [132.0]),
        ("-1", []),
        ("", []),
    ],
)
def test_memory_is_that_of_the_cards_that_a_job_may_have_in_their_order(visible, used):
    assert gpu_jobs.used_of(CARDS, visible) == used


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """An nvidia-smi of two cards, of which another process fills the first."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho >> asked\nprintf '0, GPU-a, 135168\\n1, GPU-b, 3072\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)


def until_measured(*_, **__) -> None:
    """A job that ends once the cards are asked again, and so have been read."""
    deadline = time.monotonic() + 60
    while not Path("asked").exists() or len(Path("asked").read_text()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_is_measured_by_its_own_card(smi, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_jobs, "run_logged", until_measured)
    environment = {"CUDA_VISIBLE_DEVICES": "1"}
    assert gpu_jobs.job(["sft"], tmp_path / "work", tmp_path / "log", environment=environment)["peak_gib"] == 3.0


def test_of_ranks_both_cards_are_measured_and_of_one_process_its_own(smi, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_grpo, "facts_of", lambda folder: {})
    monkeypatch.setattr(gpu_jobs, "ENVIRONMENT", {})
    monkeypatch.setattr(scaling_grpo, "ENVIRONMENT", {})
    monkeypatch.setattr(scaling_grpo.Case, "run", until_measured)
    options = scaling.parsed(["--out", "x", "--toy", str(tmp_path), "--work", str(tmp_path)])
    found = {}
    for name in ("toy-1x64", "toy-2x64"):
        Path("asked").unlink(missing_ok=True)
        case = scaling_grpo.Case(name, tmp_path, 60)
        case.log().write_text("")
        found[name] = scaling.CASES[name](case, options)["peak_gib"]
    assert found == {"toy-1x64": [3.0], "toy-2x64": [132.0, 3.0]}
