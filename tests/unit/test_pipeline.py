"""dvc.yaml says what every stage depends on: its code's imports, its image, its params; nothing more, nothing less."""

import re
from pathlib import Path

import pytest
import yaml

from jobs.plumbing import closure
from jobs.plumbing.params import Params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def images(image: str) -> set[str]:
    """What an image is built from; llama.cmake says how llama.cpp is compiled where a stage's files come from it."""
    return {f"docker/{image}.Dockerfile", f"docker/{image}.lock", "docker/build.lock"} | (
        {"docker/llama.cmake"} if image == "gguf" else set()
    )


def definition(name: str) -> dict:
    return STAGES[name].get("do", STAGES[name])


def command(name: str) -> str:
    cmd = definition(name)["cmd"]
    return " ".join(cmd.split())


def job_of(stage: str) -> tuple[str, str]:
    image, job = re.match(r"docker/run (\w+) (\w+)", command(stage)).groups()
    return image, job


def lies_in(file: str, dep: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_hold_what_is_imported_and_nothing_else(stage):
    """Rooms are listed as folders. Every file that decides the result lies in a listed one, and none is listed in vain."""
    image, job = job_of(stage)
    listed = {d for d in definition(stage)["deps"] if str(d).startswith(("jobs/", "docker/"))}
    expected = {file.relative_to(ROOT).as_posix() for file in closure.code(job)} | images(image)
    assert not [file for file in expected if not any(lies_in(file, dep) for dep in listed)], "missing"
    assert not [dep for dep in listed if not any(lies_in(file, dep) for file in expected)], "needless"


def test_the_closure_follows_imports_inside_functions_and_not_those_for_types():
    files = {file.relative_to(ROOT).as_posix() for file in closure.code("grpo")}
    assert {"jobs/grpo/trainer.py", "jobs/training/unsloth.py", "jobs/sandbox/server.py"} <= files
    assert not [name for name in files if name.startswith("jobs/plumbing")]
    assert "jobs/compare/report.html" in {file.relative_to(ROOT).as_posix() for file in closure.code("compare")}


@pytest.mark.parametrize("stage", STAGES)
def test_every_params_key_exists(stage):
    fields = Params.model_fields
    for key in definition(stage).get("params", []):
        assert key.split(".")[0] in fields, key


@pytest.mark.parametrize("stage", STAGES)
def test_paths_in_the_command_are_dependencies_or_outputs(stage):
    """A path that a command names but DVC does not know would change unseen."""
    parts = definition(stage)
    known = [
        next(iter(p)) if isinstance(p, dict) else p
        for kind in ("deps", "outs", "metrics", "plots")
        for p in parts.get(kind, [])
    ]
    for word in command(stage).split():
        if "/" in word and not word.startswith(("docker/", "--")):
            assert any(word == k or k.startswith(word + "/") or word.startswith(k + "/") for k in known), word


def test_another_training_seed_keeps_base_tasks_and_examples():
    """The seeds of what is trained on and judged by are keys of their sections; `seed` reaches what is trained alone."""
    seeded = {name for name in STAGES if "seed" in definition(name)["params"]}
    assert seeded == {"sft", "grpo", "merge"}
    assert {name for name in STAGES if "tasks.seed" in definition(name)["params"]} == {"base", "distill"}


def test_metrics_live_in_git():
    for stage in STAGES:
        for metric in definition(stage).get("metrics", []):
            assert next(iter(metric.values())) == {"cache": False}, stage
