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
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.files import read_json, write_json
from tests.bench.smoke_spread_pages import by_model, by_run, faults, said, write_docs
from tests.bench.smoke_spread_run import KERNELS, MODELS, Failed, machine, params_of, run, settings, shared


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
