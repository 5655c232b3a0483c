"""The same bytes whatever instructions a processor offers: the pipeline at its smallest, through docker/run, under settings
that are forced from outside as two unlike machines would have them."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.common.files import sha256
from jobs.plumbing.yaml12 import read_yaml

ROOT = Path(__file__).parents[1]
MACHINES = {
    "new": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "MKL_CBWR": "AUTO", "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    "old": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
            "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "OMP_DYNAMIC": "TRUE", "MKL_DYNAMIC": "TRUE"},
}  # fmt: skip
SMALLEST = (
    "base.toy.steps=6",
    "tasks.toy.distill=12",
    "tasks.toy.train=8",
    "tasks.toy.heldout=6",
    "distill.examples=8",
    "sft.epochs=1",
    "sft.validation=2",
    "grade.samples=1",
    "grade.validation=2",
    "grpo.difficulty=null",
    "grpo.validate_every=1",
    "grpo.validate_samples=1",
    "grpo.steps=2",
    "grpo.generations=4",
    "grpo.batch_size=8",
    "grpo.max_completion_length=24",
    "merge.min_retention=0.0",
    "evaluate.max_tokens=24",
    "evaluate.sampled.n=2",
    "gguf.tasks=2",
    "gguf.max_tokens=16",
)
STAGES = {
    "base",
    "tasks",
    "distill",
    "sft",
    "grade",
    "grpo",
    "merge@grpo",
    "sample@grpo-cot",
    "evaluate@grpo-cot",
    "gguf",
}

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors are not pinned"),
    pytest.mark.skipif(
        subprocess.run(["bash", "-c", ". docker/host.sh; has_gpu"], cwd=ROOT, check=False).returncode == 0,
        reason="a machine with a GPU is not pinned",
    ),
]


def run(words: list, machine: str, **around: str) -> None:
    environment = (
        {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | MACHINES[machine] | around
    )
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_every_entry_of_the_lock_is_the_same_on_unlike_machines(tmp_path):
    settings = [word for assignment in SMALLEST for word in ("--set", assignment)]

    def pipeline(machine: str) -> dict:
        folder = tmp_path / machine
        targets = ("--target", "evaluate@grpo-cot", "--target", "gguf")
        run(
            ["run", "data/smoke/params.yaml", "data/smoke/measured.yaml", "--out", folder, *settings, *targets],
            machine,
            RUNTIME="local",
            TRAIN_IMAGE="cpu",
        )
        return read_yaml(folder / "dvc.lock")["stages"]

    with ThreadPoolExecutor() as pool:
        new, old = pool.map(pipeline, MACHINES)
    assert set(new) == set(old) == STAGES
    for stage in new:
        assert new[stage] == old[stage], stage


def test_without_the_launcher_these_settings_give_other_bytes(tmp_path):
    """Else the test above would hold of a launcher that pins nothing."""
    small = ("base.toy.steps=2", "tasks.toy.distill=12", "tasks.toy.train=8", "tasks.toy.heldout=6")
    settings = [word for assignment in small for word in ("--set", assignment)]
    run(["run", "data/smoke/params.yaml", "--out", tmp_path / "box", "--prepare", *settings], "new")

    def base(machine: str) -> str:
        params = ("--params", tmp_path / "box/params.yaml")
        run(["base", *params, "--out", tmp_path / machine], machine)
        return sha256(tmp_path / machine)

    with ThreadPoolExecutor() as pool:
        new, old = pool.map(base, MACHINES)
    assert new != old
