"""One real small model through the jobs of the pipeline on one or more GPUs: several settings of GRPO, several seeds.

    python tests/bench/small.py --base DIR --tasks DIR --examples FILE --out DIR --work DIR [--runs NAME:SEED ...]

Reads   --base       models/base of the recipe, which `jobs base` makes of its GGUF file
        --tasks      data/tasks of the recipe
        --examples   data/distill/examples.jsonl of the recipe
Writes  --out        results.json: metrics by run, as each is ready; NAME-SEED.tar.gz: curves, metrics, samples and results
        --work       models, adapters and logs

A run is a setting of SETTINGS and a seed. Every seed has one SFT, but for settings of SFT, which have their own; every run
goes on from it with GRPO, and base, SFT and GRPO models are sampled on the held-out tasks. With `--until sft` no run trains
further: its SFT model draws 16 samples of each training task that it has seen no example of, which is what a setting of SFT
can be chosen by without the held-out tasks. Jobs go --together at a time on each of --devices; several processes share a
card well only with CUDA's MPS. What is finished is not run again, so the runs may come in several calls.
tests/bench/small_results.py makes tables and intervals of what this writes.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from tests.bench.gpu_jobs import Hog  # noqa: E402

RECIPE = REPO / "recipes/small.yaml"

# What differs from the recipe, one thing at a time. The first is the recipe itself.
SETTINGS: dict[str, dict] = {
    "recipe": {},
    "graded": {"grade.samples": 8, "grpo.difficulty": "[0.125, 0.875]"},
    "kl": {"grpo.beta": 0.02},
    "half-rate": {"grpo.learning_rate": "2.5e-5"},
    "double-rate": {"grpo.learning_rate": "1.0e-4"},
    "half-batch": {"grpo.gradient_accumulation": 16},
    "wide-groups": {"grpo.generations": 32},
    "partial-credit": {"grpo.rewards.all_tests_only": "false"},
    "transformers": {"grpo.engine": "transformers"},
    "sft-2-epochs": {"sft.epochs": 2},
    "sft-8-epochs": {"sft.epochs": 8},
    "sft-half-rate": {"sft.learning_rate": "5.0e-4"},
    "sft-half-batch": {"sft.batch_size": 8},
}
UNSEEN = 16  # samples of each training task without an example, by --until sft


def sft_of(setting: str, seed: int) -> str:
    """The folder of the SFT model that a run goes on from."""
    own = any(key.startswith("sft.") for key in SETTINGS[setting])
    return f"sft-{setting}-{seed}" if own else f"sft-{seed}"


def split(settings: dict) -> tuple[dict, dict]:
    """Settings of SFT, and the others."""
    sft = {key: value for key, value in settings.items() if key.startswith("sft.")}
    return sft, {key: value for key, value in settings.items() if key not in sft}


class Devices:
    """Places for jobs on GPUs: a job takes one on the GPU that has the fewest."""

    def __init__(self, names: list[str], each: int) -> None:
        self.free = dict.fromkeys(names, each)
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[str]:
        with self.changed:
            self.changed.wait_for(lambda: any(self.free.values()))
            name = max(self.free, key=self.free.__getitem__)
            self.free[name] -= 1
        try:
            yield name
        finally:
            with self.changed:
                self.free[name] += 1
                self.changed.notify()


class Bench:
    """Runs jobs in a work folder, each with its log, and keeps what they say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.base, self.tasks, self.examples = options.base, options.tasks, options.examples
        self.out, self.work, self.extra = options.out, options.work, options.set
        self.params = options.work / "params.yaml"
        self.devices = Devices(options.devices, options.together)
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "results.json"
        self.results = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.lock = threading.Lock()
        self.once: dict[Path, threading.Lock] = {}

    def keep(self, name: str, value: dict) -> None:
        with self.lock:
            self.results[name] = value
            self.file.write_text(json.dumps(self.results, indent=1))
            print(time.strftime("%H:%M:%S"), name, json.dumps(value)[:300], flush=True)

    def job(self, folder: Path, made: str, job: str, *words: object, **settings: object) -> None:
        """Runs a job that writes folder/`made`, in `folder`, unless that is there; others who want it wait.

        Errors: RuntimeError if it fails twice.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with self.lock:
            once = self.once.setdefault(folder / made, threading.Lock())
        with once:
            for attempt in range(2):
                if (folder / made).exists():
                    return
                self.attempt(folder, Path(made).name, [job, *words], settings, attempt)
            if not (folder / made).exists():
                raise RuntimeError(f"{folder.name}/{made}: `jobs {job}` failed")

    def attempt(self, folder: Path, name: str, words: list, settings: dict, attempt: int) -> None:
        sets = [f"--set={key}={value}" for key, value in settings.items()] + [f"--set={each}" for each in self.extra]
        command = [sys.executable, "-m", "jobs", words[0], "--params", self.params, *words[1:], *sets]
        log = folder / f"{name}.log"
        with self.devices.one() as device, open(log, "a") as output:
            began = time.time()
            around = os.environ | {
                "PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}",
                "CUDA_VISIBLE_DEVICES": device,
            }
            code = subprocess.run(
                list(map(str, command)), cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=around
            ).returncode
        said = {"failed": log.read_text()[-1500:], "attempt": attempt} if code else {}
        self.keep(f"{folder.name}/{name}", {"seconds": round(time.time() - began, 1), "device": device} | said)

    def evaluate(self, folder: Path, name: str, model: Path, mode: str = "cot") -> None:
        evaluation = f"{name}-{mode}"
        name = name if mode == "cot" else evaluation
        metrics = f"metrics-{name}.json"
        self.job(folder, metrics, "evaluate", "--model", model, "--mode", mode, "--benchmarks-dir", self.tasks,
                 "--out", folder / f"evaluations/{evaluation}", "--metrics", folder / metrics)  # fmt: skip
        self.keep(f"{folder.name}/scores-{name}", json.loads((folder / metrics).read_text()))

    def model(self, folder: Path, name: str, adapter: Path) -> None:
        """Merges an adapter and evaluates the sum."""
        self.job(folder, f"{name}-merged", "merge", "--base", self.base, "--adapter", adapter,
                 "--out", folder / f"{name}-merged", "--metrics", folder / f"merge-{name}.json",
                 "--plot", folder / f"merge-{name}.csv")  # fmt: skip
        self.evaluate(folder, name, folder / f"{name}-merged")

    def sft(self, setting: str, seed: int) -> Path:
        folder = self.work / sft_of(setting, seed)
        self.job(folder, "sft", "sft", "--base", self.base, "--examples", self.examples, "--out", folder / "sft",
                 "--metrics", folder / "sft.json", "--curve", folder / "sft.csv",
                 seed=seed, **split(SETTINGS[setting])[0])  # fmt: skip
        return folder

    def of_sft(self, setting: str, seed: int) -> None:
        folder = self.sft(setting, seed)
        self.model(folder, "sft", folder / "sft")
        self.pack(folder)

    def unseen(self, run: str) -> None:
        """How a run's SFT model fares on the training tasks that it has seen no example of."""
        setting, _, seed = run.partition(":")
        folder, tasks = self.sft(setting, int(seed)), self.work / "unseen.jsonl"
        self.job(folder, "unseen.json", "grade", "--base", self.base, "--adapter", folder / "sft", "--tasks", tasks,
                 "--out", folder / "unseen.jsonl", "--validation", folder / "none.jsonl",
                 "--metrics", folder / "unseen.json",
                 seed=int(seed), **{"grade.samples": UNSEEN, "grade.validation": 0})  # fmt: skip
        self.keep(f"{folder.name}/unseen", json.loads((folder / "unseen.json").read_text()))

    def of_base(self) -> None:
        self.evaluate(self.work / "base", "base", self.base)
        self.evaluate(self.work / "base", "base", self.base, "plain")  # without tags, which the base does not write
        self.pack(self.work / "base")

    def grade(self, setting: str, seed: int) -> Path:
        """Tasks to train on and to validate by, as stage `grade` makes them, by the SFT model if asked."""
        samples = SETTINGS[setting].get("grade.samples", 0)
        folder = self.work / f"grade-{seed if samples else 0}-{samples}"
        self.job(folder, "grade.json", "grade", "--base", self.base, "--adapter", self.sft(setting, seed) / "sft",
                 "--tasks", self.tasks / "train.jsonl", "--out", folder / "graded.jsonl",
                 "--validation", folder / "validation.jsonl", "--metrics", folder / "grade.json",
                 seed=seed, **{"grade.samples": samples})  # fmt: skip
        return folder

    def run(self, run: str) -> None:
        setting, _, seed = run.partition(":")
        number, settings = int(seed), split(SETTINGS[setting])[1]
        folder, adapter = self.work / f"{setting}-{number}", self.sft(setting, number)
        graded = self.grade(setting, number)
        self.job(folder, "grpo", "grpo", "--base", self.base, "--adapter", adapter / "sft",
                 "--tasks", graded / "graded.jsonl", "--validation", graded / "validation.jsonl",
                 "--out", folder / "grpo", "--metrics", folder / "grpo.json", "--curve", folder / "grpo.csv",
                 "--completions", folder / "completions.jsonl", seed=number, **settings)  # fmt: skip
        self.pack(folder)
        self.model(folder, "grpo", folder / "grpo")
        self.pack(folder)

    def pack(self, folder: Path) -> None:
        """What is worth keeping of a run, but for weights."""
        with tarfile.open(self.out / f"{folder.name}.tar.gz", "w:gz") as archive:
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if path.is_file() and path.suffix in (".json", ".jsonl", ".csv") and inside.parts[0][0] != ".":
                    archive.add(path, f"{folder.name}/{inside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "tasks", "examples", "out", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=["recipe:3407", "recipe:1", "recipe:2"], metavar="SETTING:SEED")
    parser.add_argument("--until", choices=("sft", "grpo"), default="grpo", help="the last step of training (grpo)")
    parser.add_argument("--devices", nargs="+", default=["0"], help="GPUs, by CUDA_VISIBLE_DEVICES")
    parser.add_argument("--together", type=int, default=3, help="jobs at a time on a GPU")
    parser.add_argument(
        "--free", type=float, metavar="GIB", help="as on a card of this size: the rest of the first is taken"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    for run in options.runs:
        setting, _, seed = run.partition(":")
        if setting not in SETTINGS or not seed.isdigit():
            parser.error(f"--runs {run}: not SETTING:SEED with one of {', '.join(SETTINGS)}")
    for name in ("base", "tasks", "examples", "out", "work"):
        setattr(options, name, getattr(options, name).resolve())
    bench = Bench(options)
    write_params(bench.params)
    write_unseen(options.tasks / "train.jsonl", options.examples, options.work / "unseen.jsonl")
    hog = Hog(options.free, options.devices[0]) if options.free else None
    for failed in carry_out(bench, options.runs, options.until):
        print("failed:", failed, flush=True)
    if hog:
        hog.release()


def carry_out(bench: Bench, runs: list[str], until: str) -> list[BaseException]:
    """All jobs of all runs, as many at a time as there are places. Returns what went wrong."""
    named = [(setting, int(seed)) for setting, _, seed in (run.partition(":") for run in runs)]
    trainings = {sft_of(*each): each for each in named}
    with ThreadPoolExecutor(2 * len(runs) + len(trainings) + 1) as pool:
        trained = [pool.submit(bench.sft, *each) for each in trainings.values()]
        waiting = [pool.submit(bench.run if until == "grpo" else bench.unseen, run) for run in runs]
        for future in trained:  # training goes before the evaluations, which nothing waits for
            future.exception()
        waiting += [pool.submit(bench.of_sft, *each) for each in trainings.values()]
        waiting.append(pool.submit(bench.of_base))
        return [error for future in waiting if (error := future.exception())]


def write_unseen(tasks: Path, examples: Path, out: Path) -> None:
    """The training tasks that no example answers."""
    seen = {json.loads(line)["task_id"] for line in examples.read_text().splitlines()}
    lines = [line for line in tasks.read_text().splitlines() if json.loads(line)["task_id"] not in seen]
    out.write_text("".join(f"{line}\n" for line in lines))


def write_params(path: Path) -> None:
    """The recipe laid over the committed params."""
    from jobs.plumbing.params import merged
    from jobs.plumbing.yaml12 import dump, read_yaml

    path.write_text(dump(merged(read_yaml(REPO / "params.yaml"), read_yaml(RECIPE))))


if __name__ == "__main__":
    main()
