"""One real small model through the jobs of the pipeline on one GPU: several settings of GRPO, several seeds.

    python tests/bench/small.py --base DIR --tasks DIR --examples FILE --out DIR --work DIR [--runs NAME:SEED ...]

Reads   --base       models/base of the recipe, which `jobs base` makes of its GGUF file
        --tasks      data/tasks of the recipe
        --examples   data/distill/examples.jsonl of the recipe
Writes  --out        results.json: metrics by run, as each is ready; NAME-SEED.tar.gz: curves, metrics, samples and results
        --work       models, adapters and logs

A run is a setting of SETTINGS and a seed. Every seed has one SFT; every run goes on from it with GRPO, and base, SFT and
GRPO models are sampled on the held-out tasks. GRPO runs go --together at a time on the one card. What is finished is not
run again, so the runs may come in several calls.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).parents[2]
RECIPE = REPO / "recipes/small.yaml"
START_SECONDS = {"grpo": 12, "evaluate": 8}  # between two starts: an engine measures the card's memory as it begins
LOW, HIGH = 1 / 16, 14 / 16  # of its samples that the SFT model passes, for a task to be worth training on

# What differs from the recipe, one thing at a time. `tasks`: of the training tasks, MBPP+'s alone. `graded`: those that the
# SFT model passes at times.
SETTINGS: dict[str, dict] = {
    "recipe": {"graded": True},
    "ungraded": {},
    "few-tasks": {"tasks": "mbpp+"},
    "partial-credit": {"graded": True, "grpo.rewards.all_tests_only": "false"},
    "kl": {"graded": True, "grpo.beta": "0.02"},
    "half-rate": {"graded": True, "grpo.learning_rate": "5.0e-5"},
    "double-rate": {"graded": True, "grpo.learning_rate": "2.0e-4"},
    "clip-higher": {"graded": True, "grpo.clip_high": "0.28"},
    "wide-groups": {"graded": True, "grpo.generations": "32"},
    "transformers": {"graded": True, "grpo.engine": "transformers"},
}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Bench:
    """Runs jobs in a work folder, each with its log, and keeps what they say."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.base, self.tasks, self.examples = options.base, options.tasks, options.examples
        self.out, self.work = options.out, options.work
        self.params, self.extra = options.work / "params.yaml", options.set
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "results.json"
        self.results = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.lock, self.starting, self.sft_locks = threading.Lock(), threading.Lock(), {}

    def keep(self, name: str, value: dict) -> None:
        with self.lock:
            self.results[name] = value
            self.file.write_text(json.dumps(self.results, indent=1))
            print(time.strftime("%H:%M:%S"), name, json.dumps(value)[:300], flush=True)

    def job(self, folder: Path, name: str, job: str, *words: object, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sets = [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
        sets += [w for each in self.extra for w in ("--set", each)]
        command = [sys.executable, "-m", "jobs", job, "--params", self.params, *words, *sets]
        environment = os.environ | {"PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}"}
        for attempt in range(2):
            began = time.time()
            with (
                open(folder / f"{name}.log", "w") as log,
                self.starting,
            ):  # vLLM measures the card's memory as it starts
                process = subprocess.Popen(
                    list(map(str, command)), cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=START_SECONDS.get(job, 0))
            code = process.wait()
            tail = (folder / f"{name}.log").read_text()[-1500:]
            failed = {"failed": tail, "attempt": attempt} if code else {}
            self.keep(f"{folder.name}/{name}", {"seconds": round(time.time() - began, 1)} | failed)
            if not code:
                return
        raise RuntimeError(f"{folder.name}/{name}: exit code {code}")

    def evaluate(self, folder: Path, name: str, model: Path) -> None:
        metrics = folder / f"metrics-{name}.json"
        if not metrics.exists():
            self.job(folder, f"evaluate-{name}", "evaluate", "--model", model, "--mode", "cot", "--benchmarks-dir",
                     self.tasks, "--out", folder / f"evaluations/{name}-cot", "--metrics", metrics)  # fmt: skip
        self.keep(f"{folder.name}/scores-{name}", json.loads(metrics.read_text()))

    def model(self, folder: Path, name: str, adapter: Path) -> None:
        """Merges an adapter and evaluates the sum; the merged weights are not kept."""
        merged = folder / f"{name}-merged"
        if not (folder / f"metrics-{name}.json").exists():
            self.job(folder, f"merge-{name}", "merge", "--base", self.base, "--adapter", adapter, "--out", merged,
                     "--metrics", folder / f"merge-{name}.json", "--plot", folder / f"merge-{name}.csv")  # fmt: skip
        self.evaluate(folder, name, merged)

    def sft(self, seed: int) -> Path:
        folder = self.work / f"sft-{seed}"
        with self.lock:
            lock = self.sft_locks.setdefault(seed, threading.Lock())
        with lock:
            if not (folder / "sft").exists():
                self.job(folder, "sft", "sft", "--base", self.base, "--examples", self.examples,
                         "--out", folder / "sft", "--metrics", folder / "sft.json", "--curve", folder / "sft.csv",
                         seed=seed)  # fmt: skip
        return folder

    def of_sft(self, seed: int) -> None:
        folder = self.sft(seed)
        self.model(folder, "sft", folder / "sft")

    def graded(self, seed: int) -> Path:
        """The training tasks that the seed's SFT model passes at times: of 16 samples at least one, and not nearly all."""
        folder, file = self.sft(seed), self.work / f"sft-{seed}/graded.jsonl"
        if file.exists():
            return file
        rows = lines(self.tasks / "train.jsonl")
        plain = [{k: v for k, v in row.items() if k not in ("base_input", "plus_input")} for row in rows]
        (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
        merged = folder / "grade-merged"
        self.job(folder, "merge-grade", "merge", "--base", self.base, "--adapter", folder / "sft", "--out", merged,
                 "--metrics", folder / "merge-grade.json", "--plot", folder / "merge-grade.csv")  # fmt: skip
        self.job(folder, "grade", "evaluate", "--model", merged, "--mode", "cot", "--benchmarks-dir", folder,
                 "--benchmark", "all", "--out", folder / "grade", "--metrics", folder / "grade.json", seed=seed,
                 **{"evaluate.sampled": "{n: 16, temperature: 1.0, top_p: 1.0}", "evaluate.max_tokens": "256"})  # fmt: skip
        passes: dict[str, list[bool]] = {}
        for result in lines(folder / "grade/results-all.jsonl"):
            if result["sample"]:
                passes.setdefault(result["task_id"], []).append(result["passed"])
        rates = {task_id: sum(found) / len(found) for task_id, found in passes.items()}
        chosen = [row for row in rows if LOW <= rates[row["task_id"]] <= HIGH]
        file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        self.keep(
            f"{folder.name}/graded",
            {"tasks": len(rows), "chosen": len(chosen), "never": sum(not r for r in rates.values())},
        )
        return file

    def only_mbpp_plus(self) -> Path:
        asked = {row["task_id"] for row in lines(self.tasks / "distill.jsonl")}
        file = self.work / "mbpp-plus.jsonl"
        rows = [row for row in lines(self.tasks / "train.jsonl") if row["task_id"] not in asked]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def run(self, run: str) -> None:
        setting, _, seed = run.partition(":")
        number, settings = int(seed or 3407), dict(SETTINGS[setting])
        folder, trained = self.work / f"{setting}-{number}", self.sft(number)
        tasks = self.tasks / "train.jsonl"
        if settings.pop("graded", False):
            tasks = self.graded(number)
        if settings.pop("tasks", "") == "mbpp+":
            tasks = self.only_mbpp_plus()
        if not (folder / "grpo").exists():
            self.job(folder, "grpo", "grpo", "--base", self.base, "--adapter", trained / "sft", "--tasks", tasks,
                     "--out", folder / "grpo", "--metrics", folder / "grpo.json", "--curve", folder / "grpo.csv",
                     "--completions", folder / "completions.jsonl", seed=number, **settings)  # fmt: skip
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
    parser.add_argument("--together", type=int, default=3, help="jobs at a time on the card")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args()
    for name in ("base", "tasks", "examples", "out", "work"):
        setattr(options, name, getattr(options, name).resolve())
    bench = Bench(options)
    write_params(bench.params)
    seeds = sorted({int(run.partition(":")[2] or 3407) for run in options.runs}, reverse=True)
    with ThreadPoolExecutor(options.together) as pool:
        for future in [pool.submit(bench.sft, seed) for seed in seeds]:
            future.exception()
        waiting = [pool.submit(bench.run, run) for run in options.runs]
        waiting += [pool.submit(bench.of_sft, seed) for seed in seeds]
        waiting.append(pool.submit(bench.evaluate, bench.work / "base", "base", bench.base))
        for future in waiting:
            if future.exception():
                print("failed:", future.exception(), flush=True)
    for folder in [bench.work / "base", *(bench.work / f"sft-{seed}" for seed in seeds)]:
        if folder.exists():
            bench.pack(folder)


def write_params(path: Path) -> None:
    """The recipe laid over the committed params."""
    sys.path.insert(0, str(REPO))
    from jobs.plumbing.params import merged
    from jobs.plumbing.yaml12 import dump, read_yaml

    path.write_text(dump(merged(read_yaml(REPO / "params.yaml"), read_yaml(RECIPE))))


if __name__ == "__main__":
    main()
