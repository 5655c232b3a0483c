"""The toy on a GPU: whether it learns by Unsloth and by plain TRL, every loss, what each lever of speed does to a seed's
curve, and a run that is killed and goes on.

Each case is called by tests/bench/gpu.py with its name and options; what it returns is a row of the table.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.gpu_jobs import ENVIRONMENT, REPO, job, rows

MODELS = ("base", "sft", "grpo")
# The engine, and what completions are sampled by. Each but the first kind shows that it learns as the others do.
ENGINES = {
    "toy": ("unsloth", "vllm"),
    "toy-merged": ("unsloth", "vllm_merged"),
    "toy-fp8": ("unsloth", "vllm_merged_fp8"),
    "toy-transformers": ("transformers", "vllm"),
    "toy-transformers-merged": ("transformers", "vllm_merged"),
}
GRADED = ("--tasks", "data/graded.jsonl", "--validation", "data/validation.jsonl")
# What the `losses-` cases set; the names are those of docs/grpo.md.
LOSSES: dict[str, dict[str, object]] = {
    "dapo": {"loss": "dapo", "clip_high": 0.28, "mask_truncated": "true"},
    "gspo": {"loss": "grpo", "ratio": "sequence", "clip_low": 0.0003, "clip_high": 0.0004, "iterations": 2},
    "cispo": {"loss": "cispo", "clip_high": 5, "iterations": 2},
    "kl-entropy": {"loss": "dr_grpo", "beta": 0.01, "entropy": 0.001},
    # Each of these by itself, so that where the engines differ one sees by which.
    "dr_grpo": {"loss": "dr_grpo", "beta": 0.0},
    "dr_grpo-unscaled": {"loss": "dr_grpo", "beta": 0.0, "scale_rewards": "none"},
    "kl": {"loss": "dapo", "beta": 0.01},
    "entropy": {"loss": "dapo", "beta": 0.0, "entropy": 0.001},
}
PLAIN = "plain"
ONE_P: dict[str, object] = {"top_p": 1.0}
CORRECTED = ONE_P | {"importance_correction": "true"}  # it needs top_p 1
# What `levers` sets in the toy's GRPO, behind the run from which it differs by one change. The first is the plain run once
# more: what differs between these two is the card's doing.
LEVERS: dict[str, tuple[str, dict[str, object]]] = {
    "plain again": (PLAIN, {}),
    "vllm_merged": (PLAIN, {"rollout": "vllm_merged"}),
    "top_p 1": (PLAIN, ONE_P),
    "importance_correction": ("top_p 1", CORRECTED),
    "vllm_merged, corrected": ("importance_correction", CORRECTED | {"rollout": "vllm_merged"}),
    "vllm_merged_fp8": ("vllm_merged, corrected", CORRECTED | {"rollout": "vllm_merged_fp8"}),
    "packed": (PLAIN, {}),
    "beta 0": (PLAIN, {"beta": 0.0}),
    "adamw_torch": (PLAIN, {"optimizer": "adamw_torch"}),
    "validation off": (PLAIN, {"validate_every": 0, "keep": "last"}),
}
LEVER_ENVIRONMENT = {"packed": {"UNSLOTH_GRPO_SEQ_PACKING": "1"}}
LEVER_STEPS = 12
SHOWN = ("reward", "loss", "grad_norm", "logp_difference")


def toy(case: str, options: argparse.Namespace, model: Path) -> dict:
    """The smoke run's base, SFT, GRPO, merge and evaluation with vLLM; learning curves prove the sync.

    Validation of both trainings, grading, an adapter of each epoch of SFT and the event log are on, so that a run shows
    them working by this engine.
    """
    folder = laid_out(options.work / case, *ENGINES[case])
    merges = [
        f"merge --adapter models/adapters/{m} --out models/{m} --metrics metrics/merge-{m}.json "
        f"--plot plots/merge-{m}.csv".split()
        for m in MODELS[1:]
    ]
    evaluations = [
        words.split()
        for m in MODELS
        for words in (
            f"sample --model models/{m} --mode cot --out data/samples/{m}-cot",
            f"evaluate --samples data/samples/{m}-cot --out data/evaluations/{m}-cot --metrics metrics/evaluate-{m}.json",
        )
    ]
    for words in (["base"], ["tasks"], ["distill"], ["sft"], ["grade"], ["grpo", *GRADED], *merges, *evaluations):
        name = "-".join(re.sub(".*/", "", word) for word in words[:3])
        job(words, folder, options.out / f"{case}-{name}.log")
    curve = rows(folder / "plots/grpo.csv")
    differences = [float(row["logp_difference"]) for row in curve if row["logp_difference"]]
    trained = json.loads((folder / "metrics/grpo.json").read_text())
    return {
        "mean_pass@1": {m: mean_pass_at_1(folder / f"metrics/evaluate-{m}.json") for m in MODELS},
        "logp_difference": {"mean": round(sum(differences) / len(differences), 5), "max": max(differences)},
        "reward": [curve[0]["reward"], curve[-1]["reward"]],
        "sft": json.loads((folder / "metrics/sft.json").read_text()),
        "sft_epochs": len(list(folder.glob("models/adapters/sft/epoch-*/adapter_model.safetensors"))),
        "validation": {key: trained["validation"][key] for key in ("before", "best", "last")},
        "graded": json.loads((folder / "metrics/grade.json").read_text()),
        "event_logs": len(list(folder.rglob("events.out.tfevents.*"))),
    }


def laid_out(folder: Path, engine: str, rollout: str) -> Path:
    """A folder with the smoke run's params, by GPU engines."""
    import yaml

    from jobs.plumbing.params import merged, read_merged
    from jobs.smoke import OVERLAYS

    folder.mkdir(parents=True, exist_ok=True)
    params = read_merged(REPO / name for name in ("params.yaml", *OVERLAYS))
    changes = {
        "tracking": ["tensorboard"],
        "sft": {"engine": engine, "optimizer": "adamw_8bit", "keep_epochs": True},
        "grade": {"samples": 8, "validation": 40},
        "grpo": {
            "engine": engine,
            "rollout": rollout,
            **({"importance_correction": True, "top_p": 1.0} if rollout == "vllm_merged_fp8" else {}),
            "optimizer": "adamw_8bit",
            "gpu_memory": 0.1,
            "kv_cache_gib": 2,
            "steps": 40,
            "validate_every": 10,
            "keep": "best",
        },
        "evaluate": {"engine": "vllm", "dtype": "float16", "gpu_memory": 0.1, "kv_cache_gib": 2},
        "distill": {"recorded": str(REPO / "data/smoke/teacher.jsonl")},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(merged(params, changes)))
    return folder


def mean_pass_at_1(metrics: Path) -> float:
    return json.loads(metrics.read_text())["toy"]["sampled"]["pass@1"]


def losses(case: str, options: argparse.Namespace, model: Path) -> dict:
    """Six steps by each of --losses, from what a toy case has trained, after whose name this one is called."""
    found = {}
    of = case.removeprefix("losses-")
    for name in options.losses:
        settings = LOSSES[name]
        out = options.work / "losses" / f"{name}-{of}"
        sets = [f"--set=grpo.{key}={value}" for key, value in {"steps": 6, "keep": "last", **settings}.items()]
        outs = {"out": out, "metrics": f"{out}.json", "curve": f"{out}.csv", "completions": f"{out}.jsonl"}
        words = ["grpo", *GRADED, *(f"--{key}={path}" for key, path in outs.items()), *sets]
        try:
            took = job(words, options.work / of, options.out / f"{case}-{name}.log")
        except subprocess.CalledProcessError as error:
            found[name] = {"failed": error.returncode}
            continue
        curve = rows(out.with_suffix(".csv"))
        said = {key: [row[key] for row in curve] for key in ("reward", "loss", "grad_norm")}
        found[name] = {"seconds": took["seconds"], **said}
    return found


def levers(case: str, options: argparse.Namespace, model: Path) -> dict:
    """The GRPO of `toy`, which has run before, anew: plainly and by each of LEVERS, --together of them at a time.

    Each has a folder of its own: a run removes the checkpoints of others, and would go on from its own of a call before.
    """
    runs = [PLAIN, *LEVERS]
    with ThreadPoolExecutor(options.together) as pool:
        results = dict(zip(runs, pool.map(lambda name: lever(name, options), runs), strict=True))
    for name, (beside, _) in LEVERS.items():
        curves = [results[run].get("curve") for run in (beside, name)]
        results[name] |= {"beside": beside, "differs_from_step": first_difference(*curves) if all(curves) else None}
    return results


def lever(name: str, options: argparse.Namespace) -> dict:
    """One run's seconds and curve, or the last line of its log if it fails."""
    folder, toy = options.work / "levers" / name.replace(" ", "-"), (options.work / "toy").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    inputs = {
        "params": "params.yaml", "base": "models/base", "adapter": "models/adapters/sft", "tasks": "data/graded.jsonl",
        "validation": "data/validation.jsonl",
    }  # fmt: skip
    settings = {"steps": LEVER_STEPS} | (LEVERS[name][1] if name in LEVERS else {})
    words = [
        "grpo",
        *(word for key, path in inputs.items() for word in (f"--{key}", str(toy / path))),
        *(f"--set=grpo.{key}={value}" for key, value in settings.items()),
    ]
    log = options.out / f"levers-{name.replace(' ', '-')}.log"
    try:
        took = job(words, folder, log, environment=LEVER_ENVIRONMENT.get(name))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return {"failed": last_line(log) or str(error)}
    return {"seconds": took["seconds"], "curve": rows(folder / "plots/grpo.csv")}


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def first_difference(curve: list[dict], other: list[dict]) -> int | None:
    """The first step whose lines are not the same, but for validation, which only one may have; None if all are."""

    def line(row: dict) -> dict:
        return {key: value for key, value in row.items() if not key.startswith("validation")}

    steps = max(len(curve), len(other))
    return next((i + 1 for i in range(steps) if [*map(line, curve[i : i + 1])] != [*map(line, other[i : i + 1])]), None)


def levers_table(results: dict) -> str:
    """What `levers` returns, in Markdown: each run's curves from its first step on."""
    lines = [f"| run | beside | differs from step | {' | '.join(SHOWN)} |", "|---" * (3 + len(SHOWN)) + "|"]
    for name, result in results.items():
        if "failed" in result:
            last = result["failed"].replace("|", "\\|")
            lines.append(f"| {name} | {result.get('beside', '')} | failed: {last} |{' |' * len(SHOWN)}")
            continue
        curves = (" ".join(short(row[key]) for row in result["curve"] if row[key]) for key in SHOWN)
        differs = (result["differs_from_step"] or "none") if "beside" in result else ""
        if "beside" in result and "failed" in results[result["beside"]]:
            differs = "not known"
        lines.append(f"| {name} | {result.get('beside', '')} | {differs} | {' | '.join(curves)} |")
    return "\n".join(lines) + "\n"


def short(value: str) -> str:
    return f"{float(value):.3g}" if abs(float(value)) < 0.1 else f"{float(value):.3f}"


def resume(case: str, options: argparse.Namespace, model: Path) -> dict:
    """The toy's GRPO with a checkpoint every 5 steps, killed at about step 7, against its unbroken run in `toy`."""
    folder = options.work / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        options.work / "toy", folder, ignore=shutil.ignore_patterns(".*", "grpo*", "samples", "evaluations")
    )
    words = ["grpo", *GRADED, "--set", "checkpoints.every=5"]
    command = [sys.executable, "-m", "jobs", *words]
    with open(options.out / "resume-killed.log", "w") as log:
        killed = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        while killed.poll() is None and not list(folder.glob(".checkpoints/grpo/*/checkpoint-5")):
            time.sleep(0.05)
        time.sleep(2)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    result = job(words, folder, options.out / "resume.log")
    unbroken, resumed = (rows(options.work / name / "plots/grpo.csv") for name in ("toy", "resume"))
    lines = (options.out / "resume.log").read_text().splitlines()
    return result | {
        "went_on": [re.sub(".*/", "", line) for line in lines if "resuming from" in line],
        "same_learning_rates": [r["learning_rate"] for r in unbroken] == [r["learning_rate"] for r in resumed],
        "reward_last_10": [
            round(sum(float(r["reward"]) for r in curve[-10:]) / 10, 4) for curve in (unbroken, resumed)
        ],
    }
