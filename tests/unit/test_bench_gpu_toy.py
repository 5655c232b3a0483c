"""The bench of levers: what it makes of its runs' curves and logs. The runs themselves want a GPU."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from jobs.plumbing.params import load
from tests.bench import gpu, gpu_toy

HEADER = "step,reward,loss,grad_norm,logp_difference,validation_sampled\n"
LINES = ["1,0.5,0.01,0.2,0.0001,\n", "2,0.75,-0.25,0.3,,0.5\n", "3,1.0,0.02,0.125,,\n"]


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "out").mkdir()
    return argparse.Namespace(work=tmp_path / "work", out=tmp_path / "out", together=2, losses=["kl", "gspo"])


def test_each_lever_has_its_folder_its_change_and_its_first_step_that_differs(options, monkeypatch):
    runs: dict[str, dict[str, str]] = {}

    def job(words, folder, log, environment=None):
        name = folder.name
        runs[name] = dict(re.findall(r"--set=grpo\.(\w+)=(\S+)", " ".join(words))) | (environment or {})
        log.write_text("started\nCUDA error: | out of room\n\n" if name == "adamw_torch" else "well\n")
        if name == "adamw_torch":
            raise subprocess.CalledProcessError(1, words)
        lines = list(LINES)
        if name == "vllm_merged":
            lines[1] = lines[1].replace("0.75", "0.7")
        if name == "vllm_merged_fp8":
            lines.pop()
        if name == "validation-off":
            lines[1] = "2,0.75,-0.25,0.3,,\n"
        (folder / "plots").mkdir(parents=True)
        (folder / "plots/grpo.csv").write_text(HEADER + "".join(lines))
        return {"seconds": 30.0, "peak_gib": 1.0}

    monkeypatch.setattr(gpu_toy, "job", job)
    found = gpu_toy.levers("levers", options, Path("none"))
    assert [*found] == ["plain", *gpu_toy.LEVERS] and len(runs) == len(found)
    assert runs["plain"] == runs["plain-again"] == {"steps": "12"}
    assert runs["packed"] == {"steps": "12", "UNSLOTH_GRPO_SEQ_PACKING": "1"}
    assert runs["vllm_merged_fp8"] == runs["importance_correction"] | {"rollout": "vllm_merged_fp8"}
    differs = {name: result["differs_from_step"] for name, result in found.items() if "beside" in result}
    assert differs == dict.fromkeys(gpu_toy.LEVERS) | {"vllm_merged": 2, "vllm_merged_fp8": 3}
    assert found["adamw_torch"]["failed"] == "CUDA error: | out of room"

    table = gpu.table({"levers": found, "toy": {"reward": 1}})
    assert "| levers | below |" in table and "| toy | reward 1 |" in table
    written = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert written["plain"] == "| plain |  |  | 0.500 0.750 1.000 | 0.01 -0.250 0.02 | 0.200 0.300 0.125 | 0.0001 |"
    assert written["vllm_merged"].startswith("| vllm_merged | plain | 2 | 0.500 0.700 1.000 |")
    assert written["plain again"].startswith("| plain again | plain | none |")
    assert "failed: CUDA error: \\| out of room" in written["adamw_torch"]
    columns = {line.replace("\\|", "").count("|") for line in table.split("\n\n")[1].splitlines()}
    assert columns == {8}


def test_beside_a_run_that_failed_nothing_is_said_to_be_alike():
    row = dict(zip(HEADER.strip().split(","), LINES[0].strip().split(","), strict=True))
    found = {
        "plain": {"failed": "no room"},
        "packed": {"beside": "plain", "differs_from_step": None, "seconds": 1.0, "curve": [row]},
    }
    assert "| packed | plain | not known | 0.500 |" in gpu_toy.levers_table(found)


def test_a_lever_has_one_change_beside_its_run_and_params_take_it(options):
    folder = gpu_toy.laid_out(options.work / "toy", *gpu_toy.ENGINES["toy"])
    for name, (beside, settings) in gpu_toy.LEVERS.items():
        before = {} if beside == gpu_toy.PLAIN else gpu_toy.LEVERS[beside][1]
        keys = {key for key in {*settings, *before} if settings.get(key) != before.get(key)} - {"keep"}
        assert len(keys) == (name not in ("plain again", *gpu_toy.LEVER_ENVIRONMENT)), name
        load(folder / "params.yaml", [f"grpo.{key}={value}" for key, value in settings.items()])


def test_losses_are_those_that_were_asked_for(options, monkeypatch):
    asked = []

    def job(words, folder, log):
        asked.append(log.name)
        raise subprocess.CalledProcessError(3, words)

    monkeypatch.setattr(gpu_toy, "job", job)
    assert gpu_toy.losses("losses-toy", options, Path("none")) == {"kl": {"failed": 3}, "gspo": {"failed": 3}}
    assert asked == ["losses-toy-kl.log", "losses-toy-gspo.log"]
