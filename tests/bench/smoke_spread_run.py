"""One run of tests/bench/smoke_spread.py: the smoke run's jobs with a seed and a set of CPU kernels, and what they give."""

import hashlib
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import yaml

from jobs.common.files import read_json
from jobs.plumbing.params import merged, read_merged, validate
from jobs.smoke import OVERLAYS

ROOT = Path(__file__).parents[2]
# What each of them makes the libraries take: the machine's best; AVX2; and arithmetic as on a CPU without either.
KERNELS = {
    "own": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "compatible": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
PINS = {name for kernels in KERNELS.values() for name in kernels}
MODELS = {"base": "base", "sft": "SFT", "grpo": "GRPO"}
STEPS = {"sft-base": "SFT - base", "grpo-sft": "GRPO - SFT"}


class Failed(Exception):
    """A job of a run ended with an error; the message names its log."""


def settings(seed: int) -> dict:
    """The smoke run's params with its seeds moved by `seed`; 0 is the smoke run's own."""
    params = read_merged(ROOT / name for name in ("params.yaml", *OVERLAYS))
    params["seed"] += seed
    params["base"]["toy"]["seed"] += seed
    params["distill"]["recorded"] = str(ROOT / "data/smoke/teacher.jsonl")
    params["tracking"] = []  # whose packages another machine need not have; no result hangs on them
    params["sandbox"]["workers"] = 2  # a machine's cores are shared by the runs beside each other
    validate(params, f"seed {seed}")
    return params


def params_of(seed: int) -> str:
    """A hash of what a run's params are, wherever the repository lies."""
    params = merged(settings(seed), {"distill": {"recorded": "teacher"}})
    params["tasks"] = {
        name: params["tasks"][name] for name in ("seed", "toy", "toy_stdin")
    }  # what the toy's tasks are made of
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]


def job(folder: Path, made: str, words: tuple[str, ...], threads: int, kernels: dict[str, str]) -> None:
    """Runs a job in `folder` unless what it makes is there; its output goes to a log beside it."""
    if (folder / made).exists():
        return
    # As in docker/run, threads wait without spinning: a spinning one takes the core from the one that it waits for.
    around = {name: value for name, value in os.environ.items() if name not in PINS} | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "OMP_WAIT_POLICY": "passive",
    }
    with open(folder / f"{Path(made).name}.log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words], cwd=folder, env=around | kernels, stdout=log, stderr=log
        )
    if done.returncode:
        raise Failed(f"{folder}: `jobs {' '.join(words)}` ended with {done.returncode}, see {log.name}")


def prepare(folder: Path, seed: int) -> Path:
    """`folder` with the params of the seed. Errors: SystemExit where it was made by others."""
    folder.mkdir(parents=True, exist_ok=True)
    path, params = folder / "params.yaml", yaml.safe_dump(settings(seed), sort_keys=False)
    if path.exists() and path.read_text() != params:
        sys.exit(f"--out: {folder} was made by other params; name a new folder")
    path.write_text(params)
    return folder


def shared(out: Path, threads: int) -> Path:
    """The tasks and the distilled examples, which neither seed nor kernels change."""
    folder = prepare(out / "shared", 0)
    job(folder, "data/tasks", ("tasks",), threads, {})
    job(folder, "data/distill", ("distill",), threads, {})
    return folder / "data"


def run(out: Path, data: Path, kernels: str, seed: int, threads: int) -> dict:
    """One run: its mean pass@1 by model, and both steps with their intervals as `jobs compare` measures them."""
    folder = prepare(out / f"{kernels}-{seed}", seed)

    def step(made: str, *words: str) -> None:
        job(folder, made, words, threads, KERNELS[kernels])

    step("models/base", "base")
    step("models/adapters/sft", "sft", "--examples", f"{data}/distill/examples.jsonl", "--out", "models/adapters/sft")
    graded, aside = "data/graded.jsonl", "data/validation.jsonl"
    reads = ("--adapter", "models/adapters/sft", "--tasks", f"{data}/tasks/train.jsonl")
    step(graded, "grade", *reads, "--validation", aside, "--out", graded)
    reads = ("--adapter", "models/adapters/sft", "--tasks", graded, "--validation", aside)
    step("models/adapters/grpo", "grpo", *reads, "--out", "models/adapters/grpo")
    for model in MODELS:
        samples, adapter = f"samples/{model}-cot", () if model == "base" else ("--adapter", f"models/adapters/{model}")
        where = ("--benchmarks-dir", f"{data}/tasks")
        step(samples, "sample", "--model", "models/base", *adapter, *where, "--out", samples)
        scored = f"evaluations/{model}-cot"
        step(scored, "evaluate", "--samples", samples, *where, "--out", scored)
    step("metrics/compare.json", "compare", "--evaluations", "evaluations", "--benchmarks-dir", f"{data}/tasks")
    found = read_json(folder / "metrics/compare.json")["toy"]["cot"]
    return {
        "kernels": kernels,
        "seed": settings(seed)["seed"],
        "params": params_of(seed),
        "threads": threads,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "pass@1": {model: found[model]["pass@1"]["mean"] for model in MODELS},
        "steps": {pair: {key: found[pair][key] for key in ("mean", "low", "high", "established")} for pair in STEPS},
    }


def machine() -> str:
    """The processor, what of its vector instructions counts here, and the torch that computes."""
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    )
    offered = [name for name in ("avx2", "fma", "avx512f", "amx_tile") if name in facts.get("flags", "").split()]
    return f"{facts.get('model name', 'unknown')} ({', '.join(offered)}), torch {version('torch')}"
