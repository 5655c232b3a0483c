"""The cases `toy-*`, `4b-*` and `ahead-*` of tests/bench/scaling.py: one GRPO run, by ranks or sampling a step ahead.

Run as a program it is a rank of such a run: a job that prints what its ranks compare.
"""

import argparse
import csv
import json
import re
import statistics
import sys
from pathlib import Path

from tests.bench.gpu_jobs import ENVIRONMENT, Memory, draw_rewards
from tests.bench.limited import Case
from tests.bench.scaling_inputs import BIG_CACHE, TOY_CACHE, big_inputs, flags, sha256_of, toy_inputs

SHAPES = {"1x64": (1, 64), "2x64": (2, 64), "2x128": (2, 128)}
# Of both sides of ahead-*: what grpo.staleness wants, and the rollout that is the default.
AHEAD = [
    "grpo.rollout=vllm_merged", "grpo.importance_correction=true", "grpo.top_p=1.0", "grpo.temperature=1.0",
    "grpo.equal_groups=drop", "grpo.patience=0",
]  # fmt: skip
AHEAD_STEPS = {"4b": 8, "toy": 60}
LEARNED = "reward", "correctness", "kl", "staleness", "sampling_logp_difference", "importance_ratio"  # of the curve
CHECKED = re.compile(r"^CHECKED rank (\d+): step (\d+): the adapter (\w+)$", re.M)


def toy(case: Case, options: argparse.Namespace) -> dict:
    ranks, completions = SHAPES[case.name.removeprefix("toy-")]
    settings = toy_settings(ranks, completions)
    # The card that `4b-1x64` leaves free, so that the two can run side by side.
    return grpo(case, toy_inputs(options), [*settings, *options.set], ranks, "1")


def toy_settings(ranks: int, completions: int) -> list[str]:
    shape = [f"grpo.gradient_accumulation={completions // 64}", f"grpo.processes={ranks}"]
    return [*shape, f"grpo.kv_cache_gib={TOY_CACHE}", "grpo.steps=12", "checkpoints.every=5"]


def big(case: Case, options: argparse.Namespace) -> dict:
    ranks, completions = SHAPES[case.name.removeprefix("4b-")]
    shape = ["grpo.batch_size=8", f"grpo.gradient_accumulation={completions // 8}", f"grpo.processes={ranks}"]
    settings = [*shape, f"grpo.kv_cache_gib={BIG_CACHE}", "grpo.steps=4", "checkpoints.every=4", "checkpoints.keep=1"]
    settings.append("grpo.log_completions_every=0")
    return grpo(case, big_inputs(options), [*settings, *options.set], ranks, "0", "--draw")


def ahead(case: Case, options: argparse.Namespace) -> dict:
    _, kind, staleness = case.name.split("-")
    steps = AHEAD_STEPS[kind]
    if kind == "toy":
        inputs, shape, how = toy_inputs(options), toy_settings(1, 64), []
    else:
        shape = ["grpo.batch_size=8", "grpo.gradient_accumulation=8", f"grpo.kv_cache_gib={BIG_CACHE}"]
        inputs, how = big_inputs(options), ["--draw"]
    more = [f"grpo.steps={steps}", f"checkpoints.every={steps}", "grpo.log_completions_every=0"]
    settings = [*shape, *more, *AHEAD, f"grpo.staleness={staleness}", *options.set]
    found = grpo(case, inputs, settings, 1, "0,1" if staleness == "1" else "0", *how)
    beside = ("sampling", "validation")  # which are no part of what a step takes the trainer
    whole = sum(value for name, value in found["seconds_of_a_step"].items() if name not in beside)
    return found | {"step": round(whole, 3), "fifths": by_fifths((case.folder / "plots/grpo.csv").read_text())}


def by_fifths(curve: str) -> dict[str, list[float]]:
    """The means over each fifth of a run's steps of the columns LEARNED, as far as its curve, as CSV, has them."""
    rows = list(csv.DictReader(curve.splitlines()))
    size = -(-len(rows) // 5)
    found = {}
    for name in LEARNED:
        parts = [[float(row[name]) for row in rows[i : i + size] if row.get(name)] for i in range(0, len(rows), size)]
        if all(parts):
            found[name] = [round(statistics.mean(part), 4) for part in parts]
    return found


def grpo(case: Case, inputs: dict[str, Path], settings: list[str], ranks: int, card: str, *how: str) -> dict:
    """One GRPO run: its steps, the memory of its cards, the adapter as each rank had it. card: those of a single rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] if ranks > 1 else []
    program = [sys.executable, *torchrun, Path(__file__).resolve(), *how]
    around = {"CUDA_VISIBLE_DEVICES": card} if ranks == 1 else {}
    memory = Memory(ENVIRONMENT | around)
    memory.start()
    try:
        case.run([*program, *grpo_words(inputs, settings)], case.log(), **around)
    finally:
        memory.stopped.set()
    checked = CHECKED.findall(case.log().read_text(errors="replace"))
    return facts_of(case.folder) | {"peak_gib": memory.peak, "adapters": last_checked(checked)}


def grpo_words(inputs: dict[str, Path], settings: list[str]) -> list[str]:
    paths = [f"--{name}={inputs[name]}" for name in ("params", "base", "adapter", "tasks")]
    return ["grpo", *paths, *flags(settings)]


def last_checked(checked: list[tuple[str, str, str]]) -> dict[str, str]:
    """By rank, the start of the hash that it named at the last step of `checked`: of (rank, step, hash)."""
    last = max((int(step) for _, step, _ in checked), default=0)
    return {rank: digest[:16] for rank, step, digest in sorted(checked) if int(step) == last}


def facts_of(folder: Path) -> dict:
    facts = json.loads((folder / "reports/provenance/grpo.json").read_text())
    metrics = json.loads((folder / "metrics/grpo.json").read_text())
    return {
        "seconds_of_a_step": {name: round(value, 3) for name, value in facts["seconds_of_a_step"].items()},
        "reward": [round(metrics[part]["reward"], 4) for part in ("first", "last")],
        "steps_without_signal": metrics["steps_without_signal"],
        "adapter": sha256_of(folder / "models/adapters/grpo/adapter_model.safetensors"),
        "card": (facts["gpu"] or {}).get("name"),
    }


def beside_unbroken(case: Case, options: argparse.Namespace) -> dict:
    """Whether a run ended as `toy-2x64` did, if that was run, and the first step whose line of the curve is another."""
    unbroken = options.work / "toy-2x64"
    if any({"toy-2x64", case.name} <= set(group) for group in options.cases):  # side by side
        options.ended["toy-2x64"].wait(case.left())
    if not (unbroken / "models/adapters/grpo").exists():
        return {"same_as_unbroken": None}
    names = [place / "models/adapters/grpo/adapter_model.safetensors" for place in (unbroken, case.folder)]
    curves = [(place / "plots/grpo.csv").read_text() for place in (unbroken, case.folder)]
    return {"same_as_unbroken": sha256_of(names[0]) == sha256_of(names[1]), "other_from_step": first_other(*curves)}


def first_other(first: str, second: str) -> str | None:
    """The step from which on two curves, as CSV, differ."""
    pair = [list(csv.DictReader(text.splitlines())) for text in (first, second)]
    for one, other in zip(*pair, strict=False):
        if one != other:
            return one["step"]
    shorter, longer = sorted(pair, key=len)
    return longer[len(shorter)]["step"] if len(longer) > len(shorter) else None


def as_rank(words: list[str]) -> None:
    """A job that prints what its ranks compare; with --draw, its rewards are drawn."""
    from jobs import __main__
    from jobs.training import ranks

    compare = ranks.require_equal

    def told(what: str, value: object) -> None:
        print(f"\nCHECKED rank {ranks.number()}: {what} {value}", flush=True)
        compare(what, value)

    ranks.require_equal = told
    if words[0] == "--draw":
        draw_rewards()
        words = words[1:]
    return __main__.main(words)


if __name__ == "__main__":
    as_rank(sys.argv[1:])
