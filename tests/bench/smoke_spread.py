"""How far the smoke run's result depends on seed and on a CPU's rounding: base, SFT and GRPO by seed and by kernels.

    python tests/bench/smoke_spread.py --out FOLDER [--seeds 5] [--together 1] [--threads 2] [--only KERNELS:SEED ...]
    python tests/bench/smoke_spread.py --out FOLDER --docs    # runs nothing: results.json into docs/toy.md and the README

Every run is base -> sft -> grade -> grpo -> sample and evaluate (with reasoning) by the jobs themselves, in its own folder,
without the launcher and so without what it pins, but for its threads; it never uses a GPU. A seed is `base.toy.seed` (the
corpus and the pre-training) and `seed` (SFT and GRPO); the tasks, the teacher's answers and the seed of sampling are the
smoke run's. --together: runs at once, each with its own --threads; what a run gives does not hang on what runs beside it.

FOLDER/results.json holds every finished run. Started again with the same --out, the runs in it are not made again, and
others go on at the first job that is not done. A FOLDER made by other params is refused. Prints Markdown tables and what
is not as it should be; exits with 1 if anything is, or if a run failed. --docs keeps results.json as
docs/results/smoke_spread.json and writes what it says between the marks in docs/toy.md and README.md.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from jobs.common.files import read_json, write_json  # noqa: E402
from jobs.plumbing.params import merged, read_merged, validate  # noqa: E402
from jobs.smoke import OVERLAYS  # noqa: E402

# What each of them makes the libraries take: the machine's best; AVX2; and arithmetic as on a CPU without either.
KERNELS = {
    "own": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "compatible": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
PINS = {name for kernels in KERNELS.values() for name in kernels}
MODELS = {"base": "base", "sft": "SFT", "grpo": "GRPO"}
STEPS = {"sft-base": "SFT - base", "grpo-sft": "GRPO - SFT"}
WIDEST, LEAST_GRPO = 0.08, 0.9
RESULTS = ROOT / "docs/results/smoke_spread.json"
BEGIN, END = "<!-- by tests/bench/smoke_spread.py --docs -->\n", "<!-- to here -->"


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


def by_run(runs: list[dict]) -> list[str]:
    """The lines of a table with a row a run."""
    lines = [f"| kernels | seed | {' | '.join([*MODELS.values(), *STEPS.values()])} |", "|---|---|---|---|---|---|---|"]
    for one in runs:
        rates = [f"{one['pass@1'][model]:.3f}" for model in MODELS]
        measured = [one["steps"][pair] for pair in STEPS]
        steps = [f"{s['mean']:+.3f} ({s['low']:+.3f} to {s['high']:+.3f})" for s in measured]
        lines.append(f"| {one['kernels']} | {one['seed']} | {' | '.join(rates + steps)} |")
    return lines


def by_model(runs: list[dict]) -> list[str]:
    """The lines of a table with a column a model."""
    rates = [[one["pass@1"][model] for one in runs] for model in MODELS]
    return [
        f"| mean pass@1 of {len(runs)} runs | {' | '.join(MODELS.values())} |",
        "|---|---|---|---|",
        f"| median | {' | '.join(f'{median(of):.2f}' for of in rates)} |",
        f"| range | {' | '.join(f'{min(of):.3f} to {max(of):.3f}' for of in rates)} |",
    ]


def faults(runs: list[dict]) -> list[str]:
    """What is not as it should be."""
    wrong = [
        f"{one['kernels']}, seed {one['seed']}: {STEPS[pair]} is not established"
        for one in runs
        for pair, step in one["steps"].items()
        if not step["established"] or step["low"] <= 0
    ]
    for model, name in MODELS.items():
        rates = [one["pass@1"][model] for one in runs]
        if max(rates) - min(rates) > WIDEST:
            wrong.append(f"{name}: the widest difference is {max(rates) - min(rates):.3f}, more than {WIDEST}")
    return wrong + [
        f"{one['kernels']}, seed {one['seed']}: GRPO is below {LEAST_GRPO}"
        for one in runs
        if one["pass@1"]["grpo"] < LEAST_GRPO
    ]


def said(runs: list[dict]) -> str:
    """How many runs they are, on what and when."""
    seeds = {one["seed"] for one in runs}
    kernels = ", ".join(name for name in KERNELS if name in {one["kernels"] for one in runs})
    where = "; ".join(sorted({one["machine"] for one in runs}))
    when = " and ".join(sorted({one["date"] for one in runs}))
    return f"{len(runs)} runs, of {len(seeds)} seeds, by kernels {kernels}; {where}; {when}"


def pages(runs: list[dict]) -> dict[Path, str]:
    """What stands between the marks of each page."""
    wrong = faults(runs) or [
        f"In every run both steps are established and GRPO is at least {LEAST_GRPO}; the runs of a model are at most "
        f"{WIDEST} apart."
    ]
    short, listed = by_model(runs), [f"- {line}" for line in wrong]
    full = [f"{said(runs)}.", "", *short, "", *listed, "", *by_run(runs)]
    return {ROOT / "docs/toy.md": "\n".join(full) + "\n", ROOT / "README.md": "\n".join(short) + "\n"}


def marked(text: str, between: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with what stands between its marks replaced. Errors: ValueError where there are none."""
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"a page has not the marks {begin.strip()} and {end}")
    return f"{before}{begin}{between}{end}{after}"


def write_docs(runs: list[dict]) -> None:
    write_json(RESULTS, {"runs": runs})
    for page, text in pages(runs).items():
        page.write_text(marked(page.read_text(), text))


class Kept:
    """FOLDER/results.json: the finished runs, in the order of seeds and kernels, written after each."""

    def __init__(self, out: Path) -> None:
        self.path, self.lock = out / "results.json", threading.Lock()
        self.runs: list[dict] = read_json(self.path)["runs"] if self.path.exists() else []

    def has(self, kernels: str, seed: int, threads: int) -> bool:
        """Errors: SystemExit where this run was made by other params or threads."""
        number = settings(seed)["seed"]
        for one in self.runs:
            if (one["kernels"], one["seed"]) == (kernels, number):
                if (one["params"], one["threads"]) != (params_of(seed), threads):
                    sys.exit(f"--out: {self.path} has {kernels}, seed {number} by other params; name a new folder")
                return True
        return False

    def add(self, one: dict) -> None:
        with self.lock:
            order = list(KERNELS)
            self.runs = sorted([*self.runs, one], key=lambda run: (run["seed"], order.index(run["kernels"])))
            write_json(self.path, {"runs": self.runs})


def wanted_run(text: str) -> tuple[str, int]:
    kernels, _, seed = text.partition(":")
    if kernels not in KERNELS or not seed.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not KERNELS:SEED, such as compatible:2 ({', '.join(KERNELS)})")
    return kernels, int(seed)


def measure(out: Path, wanted: list[tuple[str, int]], together: int, threads: int) -> tuple[list[dict], list[str]]:
    """The finished runs, and what failed. A run that fails leaves the others alone."""
    out.mkdir(parents=True, exist_ok=True)
    kept = Kept(out)
    missing = [one for one in wanted if not kept.has(*one, threads)]
    data = shared(out, threads) if missing else out

    def one(key: tuple[str, int]) -> str:
        began = time.monotonic()
        try:
            kept.add(found := run(out, data, *key, threads))
        except Failed as error:
            return str(error)
        rates = ", ".join(f"{name} {found['pass@1'][model]:.3f}" for model, name in MODELS.items())
        print(f"{key[0]}:{key[1]}: {rates} ({time.monotonic() - began:.0f} s)", flush=True)
        return ""

    with ThreadPoolExecutor(together) as pool:
        failed = [error for error in pool.map(one, missing) if error]
    return kept.runs, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--together", type=int, default=1, help="runs at once")
    parser.add_argument("--threads", type=int, default=2, help="of a run")
    parser.add_argument(
        "--only", type=wanted_run, nargs="+", metavar="KERNELS:SEED", help="these runs, seeds from 0 on"
    )
    parser.add_argument("--docs", action="store_true", help="write the pages' tables from results.json")
    options = parser.parse_args()
    out = options.out.resolve()
    if options.docs:
        write_docs(read_json(out / "results.json")["runs"])
        return 0
    print(machine(), flush=True)
    wanted = options.only or [(kernels, seed) for seed in range(options.seeds) for kernels in KERNELS]
    runs, wrong = measure(out, wanted, options.together, options.threads)
    wrong += faults(runs) if runs else []
    print("\n".join([said(runs), "", *by_model(runs), "", *by_run(runs), "", *wrong] if runs else wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
