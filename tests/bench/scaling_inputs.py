"""What the cases of tests/bench/scaling.py are given: a toy and a model of Qwen3-4B's shape, with params for a card."""

import argparse
import hashlib
import sys
import threading
from pathlib import Path

from tests.bench.gpu_jobs import REPO
from tests.bench.limited import Case

GPU = {
    "sft": {"engine": "transformers"},
    "grpo": {"engine": "transformers", "rollout": "vllm"},
    "evaluate": {"engine": "vllm", "dtype": "float16", "batch_invariant": True, "gpu_memory": 0.2},
    "distill": {"recorded": str(REPO / "data/smoke/teacher.jsonl")},
}
# Set, so that engines can start side by side: GiB of keys and values. 64 answers of the 4B shape fill 5.5.
TOY_CACHE, BIG_CACHE = 2, 7
JOBS = [sys.executable, "-m", "jobs"]
PORT = 29577  # of torchrun; the next one is that of an all-reduce
LOCK = threading.Lock()  # of results.json, and of what several cases would make


def toy_inputs(options: argparse.Namespace) -> dict[str, Path]:
    """What GRPO and sampling read of the smoke run, and the params they are run with; made here without --toy."""
    from jobs.plumbing.params import merged, read_merged
    from jobs.plumbing.yaml12 import dump
    from jobs.smoke import OVERLAYS

    with LOCK:
        place = options.work / "inputs-toy"
        folder = options.toy or place
        if not (place / "params.yaml").exists():
            place.mkdir(parents=True, exist_ok=True)
            params = read_merged(REPO / name for name in ("params.yaml", *OVERLAYS))
            # What ranks are compared by is a step of training on all tasks, and no other.
            plain = {"tracking": [], "grpo": {"difficulty": None, "validate_every": 0, "keep": "last"}}
            (place / "params.yaml").write_text(dump(merged(merged(params, GPU), plain)))
            for job in () if options.toy else ("base", "tasks", "distill", "sft"):
                make = Case("inputs-toy", options.work, options.limit)
                make.run([*JOBS, job], make.log(job))
    return {
        "params": place / "params.yaml",
        "base": folder / "models/base",
        "adapter": folder / "models/adapters/sft",
        "tasks": folder / "data/tasks/train.jsonl",
        "benchmarks": folder / "data/tasks",
    }


def big_inputs(options: argparse.Namespace) -> dict[str, Path]:
    """A model of Qwen3-4B's shape, an adapter that SFT made, and generated tasks."""
    from jobs.common.files import write_jsonl
    from jobs.plumbing.params import merged
    from jobs.plumbing.yaml12 import dump, read_yaml
    from jobs.toy import world
    from tests.bench.gpu import make_examples, make_model

    with LOCK:
        place = options.work / "inputs-4b"
        folder = options.big or place
        if not (place / "params.yaml").exists():
            make = Case("inputs-4b", options.work, 2 * options.limit)
            write_jsonl(place / "tasks.jsonl", world.tasks(1, {"train": 40})["train"])
            params = dump(merged(read_yaml(REPO / "params.yaml"), GPU))
            if not options.big:
                (place / "sft.yaml").write_text(params)
                make_model(options.tokenizer, place / "model")
                make_examples(place / "tasks.jsonl", place / "examples.jsonl")
                paths = ["--params", "sft.yaml", "--base", "model", "--examples", "examples.jsonl", "--out", "sft"]
                make.run([*JOBS, "sft", *paths, *flags(["sft.epochs=1", "sft.batch_size=10"])], make.log("sft"))
            (place / "params.yaml").write_text(params)  # last of all
    return {"params": place / "params.yaml", "base": folder / "model", "adapter": folder / "sft",
            "tasks": place / "tasks.jsonl"}  # fmt: skip


def flags(settings: list[str]) -> list[str]:
    return [f"--set={setting}" for setting in settings]


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
