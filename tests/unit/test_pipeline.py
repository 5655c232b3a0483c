"""dvc.yaml says what every stage depends on: its code's imports, its image, its params; nothing more, nothing less."""

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from jobs.__main__ import ELSEWHERE, JOBS
from jobs.plumbing import closure

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def images(image: str) -> set[str]:
    """What an image is built from, where results hang on it.

    tools.lock and llama.cmake say how llama.cpp is compiled, which quantizes. Which packages are installed elsewhere is
    packages.lock's alone, whatever installs them.
    """
    compiled = {"docker/images/llama.cmake", "docker/images/tools.lock"} if image == "gguf" else set()
    return {f"docker/images/{image}/Dockerfile", f"docker/images/{image}/packages.lock"} | compiled


def definition(name: str) -> dict:
    return STAGES[name].get("do", STAGES[name])


def command(name: str) -> str:
    cmd = definition(name)["cmd"]
    return " ".join(cmd.split())


def job_of(stage: str) -> tuple[str, str]:
    image, job = re.match(r"docker/run (\w+) (\w+)", command(stage)).groups()
    return image, job


def command_of(job: str):
    module = closure.job_file(job).relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    return import_module(module).command


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


# What decides how fast a stage is or from where it resumes, and no result.
SPEED = (
    "tracking",
    "sandbox.workers",
    "evaluate.batch_size",
    "evaluate.gpu_memory",
    "evaluate.kv_cache_gib",
    "grpo.gpu_memory",
    "grpo.kv_cache_gib",
    "checkpoints.",
)
# The stage scores what `sample` drew; only the command with --model reads how to sample.
SINGLE_JOB = {"evaluate": "evaluate."}


def leaves(values: dict, above: str = "") -> set[str]:
    """The paths of all keys whose value is no mapping."""
    found = set()
    for key, value in values.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}"}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_params_that_its_result_hangs_on_and_no_others(stage):
    """What its job says it reads (--print-params), less what is speed alone."""
    _, job = job_of(stage)
    required = [word for option in command_of(job).params if option.required for word in (option.opts[0], "any")]
    words = ["--params", str(ROOT / "params.yaml"), "--print-params", *required]
    printed = CliRunner().invoke(command_of(job), words, catch_exceptions=False)
    left_out = (*SPEED, *([SINGLE_JOB[stage]] if stage in SINGLE_JOB else []))
    wanted = {leaf for leaf in leaves(json.loads(printed.stdout)) if not leaf.startswith(left_out)}
    known = leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))
    listed = definition(stage)["params"]
    assert not [key for key in listed if not any(leaf == key or leaf.startswith(f"{key}.") for leaf in known)]
    assert {leaf for leaf in known for key in listed if leaf == key or leaf.startswith(f"{key}.")} == wanted


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
        # What the teacher answered is kept beyond DVC's reach; the stage copies what it uses of it into an out.
        if "/" in word and not word.startswith(("docker/", "--")) and word != ".cache/responses":
            assert any(word == k or k.startswith(word + "/") or word.startswith(k + "/") for k in known), word


def test_another_training_seed_keeps_base_tasks_and_examples():
    """The seeds of what is trained on and judged by are keys of their sections; `seed` reaches what is trained alone."""
    seeded = {name for name in STAGES if "seed" in definition(name)["params"]}
    assert seeded == {"sft", "grade", "grpo", "merge"}
    assert {name for name in STAGES if "tasks.seed" in definition(name)["params"]} == {"base", "distill", "grade"}


def test_metrics_live_in_git():
    for stage in STAGES:
        for metric in definition(stage).get("metrics", []):
            assert next(iter(metric.values())) == {"cache": False}, stage


def test_what_a_command_does_first_by_another_job_bears_on_no_stage():
    """`evaluate --model` samples by the job `sample`, whose code is then no part of what scoring hangs on."""
    delegating = {job: found for job in JOBS.keys() - ELSEWHERE.keys() if (found := closure.delegated(job))}
    assert delegating == {"evaluate": {"sample"}}
    assert "--samples" in command("evaluate")
    assert "--model" not in command("evaluate")
    scoring = {file.relative_to(ROOT / "jobs").parts[0] for file in closure.code("evaluate")}
    assert not scoring & {"sample.py", "sampling", "inference", "weights", "training"}


def test_what_dvc_writes_into_a_folder_is_no_input_of_a_stage(tmp_path):
    """`compare` reads data/evaluations, where DVC's .gitignore names the evaluations in the order in which they ended."""
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "read").mkdir()
    (tmp_path / "read/file").write_text("read\n")
    (tmp_path / "read/.gitignore").write_text("/base-cot\n/sft-cot\n")
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo > out\n    deps: [read]\n    outs: [out]\n")

    def dvc(*words) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    dvc("init", "--quiet", "--no-scm", "--force")
    dvc("repro", "--quiet")
    (tmp_path / "read/.gitignore").write_text("/sft-cot\n/base-cot\n")
    assert "up to date" in dvc("status")
    (tmp_path / "read/file").write_text("other\n")
    assert "changed deps" in dvc("status")
