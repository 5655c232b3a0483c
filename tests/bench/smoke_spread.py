"""How far the smoke run's result depends on seed and on a CPU's rounding: base, SFT and GRPO by seed and by kernels.

    python tests/bench/smoke_spread.py --out /tmp/spread [--seeds 5] [--jobs 1]    # a job takes 2 cores

Every run is base -> sft -> grpo -> sample and evaluate (with reasoning) by the jobs themselves, in a folder of its own,
without the launcher and so without what it pins, but for its two threads. A seed is `base.toy.seed` (the corpus and the
pre-training) and `seed` (SFT and GRPO); the tasks, the teacher's answers and the seed of sampling are the smoke run's.
Finished steps are kept: started again with the same --out, it goes on. Prints the processor, torch's version, a Markdown
table and what is not as it should be; exits with 1 if anything is.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from jobs.common.files import read_json  # noqa: E402
from jobs.plumbing.params import merged, read_yaml, validate  # noqa: E402

# What each of them makes the libraries take: the machine's best; AVX2; and arithmetic as on a CPU without either.
KERNELS = {
    "the machine's own": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "compatible": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
MODELS = ("base", "sft", "grpo")
WIDEST, LEAST_GRPO = 0.08, 0.9


def settings(seed: int) -> dict:
    """The smoke run's params with this seed; the first one is the smoke run's own."""
    params = merged(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "data/smoke/params.yaml"))
    params["seed"] += seed
    params["base"]["toy"]["seed"] += seed
    params["distill"]["recorded"] = str(ROOT / "data/smoke/teacher.jsonl")
    validate(params, f"seed {seed}")
    return params


def job(folder: Path, made: str, *words: str, **environment: str) -> None:
    """Runs a job in `folder` unless what it makes is there; its output goes to a log beside it."""
    if (folder / made).exists():
        return
    around = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"} | environment
    with open(folder / f"{Path(made).name}.log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *words], cwd=folder, env=around, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        sys.exit(f"{folder}: `jobs {' '.join(words)}` ended with {done.returncode}, see {log.name}")


def prepare(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings(seed), sort_keys=False))
    return folder


def shared(out: Path) -> Path:
    """The tasks and the distilled examples, which neither seed nor kernels change."""
    folder = prepare(out / "shared", 0)
    job(folder, "data/tasks", "tasks")
    job(folder, "data/distill", "distill")
    return folder / "data"


def run(out: Path, data: Path, kernels: str, seed: int) -> dict:
    """One run's comparison in the tag format, as `jobs compare` writes it to its metrics."""
    folder = prepare(out / f"{list(KERNELS).index(kernels)}-{seed}", seed)
    around = KERNELS[kernels]
    job(folder, "models/base", "base", **around)
    examples = ("--examples", f"{data}/distill/examples.jsonl")
    job(folder, "models/adapters/sft", "sft", *examples, "--out", "models/adapters/sft", **around)
    reads = ("--adapter", "models/adapters/sft", "--tasks", f"{data}/tasks/train.jsonl")
    job(folder, "models/adapters/grpo", "grpo", *reads, "--out", "models/adapters/grpo", **around)
    for model in MODELS:
        samples, adapter = f"samples/{model}-cot", () if model == "base" else ("--adapter", f"models/adapters/{model}")
        where = ("--benchmarks-dir", f"{data}/tasks")
        job(folder, samples, "sample", "--model", "models/base", *adapter, *where, "--out", samples, **around)
        scored = f"evaluations/{model}-cot"
        job(folder, scored, "evaluate", "--samples", samples, *where, "--out", scored, **around)
    compared = ("--evaluations", "evaluations", "--benchmarks-dir", f"{data}/tasks")
    job(folder, "metrics/compare.json", "compare", *compared, **around)
    return read_json(folder / "metrics/compare.json")["toy"]["cot"]


def table(runs: dict[tuple[str, int], dict]) -> tuple[list[str], list[str]]:
    """The lines of the table, and what is not as it should be."""
    lines, wrong = (
        ["| kernels | seed | base | SFT | GRPO | SFT - base | GRPO - SFT |", "|---|---|---|---|---|---|---|"],
        [],
    )
    for (kernels, seed), found in runs.items():
        rates = [f"{found[model]['pass@1']['mean']:.3f}" for model in MODELS]
        steps = []
        for pair in ("sft-base", "grpo-sft"):
            step = found[pair]
            steps.append(f"{step['mean']:+.3f} ({step['low']:+.3f} to {step['high']:+.3f})")
            if not step["established"] or step["low"] <= 0:
                wrong.append(f"{kernels}, seed {seed}: {pair} is not established")
        lines.append(f"| {kernels} | {seed} | {' | '.join(rates + steps)} |")
    for name, of in (("median", median), ("lowest", min), ("highest", max)):
        values = [of([found[model]["pass@1"]["mean"] for found in runs.values()]) for model in MODELS]
        lines.append(f"| **{name}** | | {' | '.join(f'{value:.3f}' for value in values)} | | |")
    for model in MODELS:
        rates = [found[model]["pass@1"]["mean"] for found in runs.values()]
        if max(rates) - min(rates) > WIDEST:
            wrong.append(f"{model}: the widest difference is {max(rates) - min(rates):.3f}, more than {WIDEST}")
    if lowest := [key for key, found in runs.items() if found["grpo"]["pass@1"]["mean"] < LEAST_GRPO]:
        wrong.append(f"grpo: below {LEAST_GRPO} in {lowest}")
    return lines, wrong


def machine() -> str:
    """The processor, what of its vector instructions counts here, and the torch and MKL that compute."""
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    )
    offered = [name for name in ("avx2", "fma", "avx512f", "amx_tile") if name in facts.get("flags", "").split()]
    return (
        f"{facts.get('model name', 'unknown')} ({', '.join(offered)}), {os.cpu_count()} cores, torch {version('torch')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    options = parser.parse_args()
    print(machine(), flush=True)
    out = options.out.resolve()
    data = shared(out)
    wanted = [(kernels, seed) for seed in range(options.seeds) for kernels in KERNELS]
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda one: run(out, data, *one), wanted))
    lines, wrong = table(dict(zip(wanted, found, strict=True)))
    print("\n".join([*lines, "", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
