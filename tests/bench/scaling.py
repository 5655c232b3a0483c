"""GRPO on one and on two GPUs of a machine: seconds of a step's parts, memory, hashes.

    python tests/bench/scaling.py --tokenizer DIR --out DIR [--work DIR] [CASE ...]

Reads   --tokenizer  a folder with the Qwen3 tokenizer, for the cases `4b-*`      Writes  --out  each job's log

Prints a JSON line a case as soon as it has ended, so that a machine that is taken away loses one at most:

- `allreduce`   milliseconds of a gradient's all-reduce between two cards, for adapters of 23.6 and 66.1 million weights
- `toy-*`       the smoke run's model, made and tuned here, by plain TRL and vLLM
- `4b-*`        a model of Qwen3-4B's shape with random weights, likewise. A random model earns nothing, so its rewards
                are drawn from the texts' hashes: the adapter is trained, by a gradient that means nothing
- `killed`      `toy-2x64` with rank 1 killed after step 7, and resumed: whether it ends with the same adapter

The cases are RANKSxCOMPLETIONS: 1x64, 2x64, 2x128. With two ranks every checkpoint has been held to equal adapters on both
and an unchanged base. Memory is the cards', sampled by nvidia-smi.
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.gpu_jobs import ENVIRONMENT, REPO, SECONDS, Memory, draw_rewards, run_logged

SHAPES = {"1x64": (1, 64), "2x64": (2, 64), "2x128": (2, 128)}
GPU = {
    "sft": {"engine": "transformers"},
    "grpo": {"engine": "transformers", "rollout": "vllm", "gpu_memory": 0.3},
    "distill": {"recorded": str(REPO / "data/smoke/teacher.jsonl")},
}
ADAPTERS = {"23.6M": 23_592_960, "66.1M": 66_060_288}  # four and seven projections of Qwen3-4B at rank 32


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        return as_rank(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/bench-scaling"))
    parser.add_argument("cases", nargs="*", metavar="CASE", default=list(CASES))
    options = parser.parse_args()
    options.out, options.work = options.out.resolve(), options.work.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for case in options.cases:
        began = time.perf_counter()
        try:
            found = CASES[case](case, options)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            found = {"failed": str(error)[-160:], "log": tail(options.out / f"{case}.log")}
        print(json.dumps({"case": case, "wall": round(time.perf_counter() - began, 1)} | found), flush=True)
    return None


def tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-6:] if log.exists() else []


def allreduce(case: str, options: argparse.Namespace) -> dict:
    log = options.out / "allreduce.log"
    torchrun(log, options.out, 2, "allreduce")
    return json.loads(next(line for line in log.read_text().splitlines() if line.startswith('{"allreduce')))


def toy(case: str, options: argparse.Namespace) -> dict:
    ranks, completions = SHAPES[case.removeprefix("toy-")]
    settings = [f"grpo.gradient_accumulation={completions // 64}", f"grpo.processes={ranks}", "checkpoints.every=5"]
    return grpo(case, options, toy_inputs(options), [*settings, "grpo.steps=12"], jobs)


def toy_inputs(options: argparse.Namespace) -> Path:
    """The smoke run's first stages, once: what GRPO reads, and the params it is run with."""
    from jobs.plumbing.params import merged
    from jobs.plumbing.yaml12 import dump, read_yaml

    folder = options.work / "toy"
    if (folder / "models/adapters/sft").exists():
        return folder
    folder.mkdir(parents=True)
    params = merged(read_yaml(REPO / "params.yaml"), read_yaml(REPO / "data/smoke/params.yaml"))
    (folder / "params.yaml").write_text(dump(merged(params, GPU)))
    for job in ("base", "tasks", "distill", "sft"):
        jobs(options.out / f"toy-{job}.log", folder, [job])
    os.link(folder / "data/tasks/train.jsonl", folder / "tasks.jsonl")
    return folder


def big(case: str, options: argparse.Namespace) -> dict:
    ranks, completions = SHAPES[case.removeprefix("4b-")]
    shape = ["grpo.batch_size=8", f"grpo.gradient_accumulation={completions // 8}", f"grpo.processes={ranks}"]
    settings = [*shape, "grpo.steps=4", "checkpoints.every=2", "checkpoints.keep=1"]

    def run(log: Path, folder: Path, words: list[str]) -> None:
        torchrun(log, folder, ranks, *words)

    return grpo(case, options, big_inputs(options), settings, run)


def big_inputs(options: argparse.Namespace) -> Path:
    """A random model of Qwen3-4B's shape, an adapter that one step of SFT made, and generated tasks."""
    from jobs.common.files import write_jsonl
    from jobs.plumbing.params import merged
    from jobs.plumbing.yaml12 import dump, read_yaml
    from jobs.toy import world
    from tests.bench.gpu import make_examples, make_model

    folder = options.work / "4b"
    if (folder / "models/adapters/sft").exists():
        return folder
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(dump(merged(read_yaml(REPO / "params.yaml"), GPU)))
    make_model(options.tokenizer, folder / "models/base")
    write_jsonl(folder / "tasks.jsonl", world.tasks(1, {"train": 40})["train"])
    make_examples(folder / "tasks.jsonl", folder / "examples.jsonl")
    words = ["sft", "--examples", "examples.jsonl", "--set", "sft.epochs=1", "--set", "sft.batch_size=10"]
    jobs(options.out / "4b-sft.log", folder, words)
    return folder


def grpo(case: str, options: argparse.Namespace, inputs: Path, settings: list[str], run: Callable) -> dict:
    """One GRPO run in a folder of its own, by `run(log, folder, words)`: its steps, memory of each card, the adapter."""
    folder = options.work / case
    words = words_of(inputs, settings)
    folder.mkdir(parents=True, exist_ok=True)
    memory = Memory()
    memory.start()
    run(options.out / f"{case}.log", folder, words)
    memory.stopped.set()
    facts = json.loads((folder / "reports/provenance/grpo.json").read_text())
    metrics = json.loads((folder / "metrics/grpo.json").read_text())
    return {
        "seconds_of_a_step": {name: round(value, 3) for name, value in facts["seconds_of_a_step"].items()},
        "peak_gib": memory.peak,
        "reward": [round(metrics[part]["reward"], 4) for part in ("first", "last")],
        "steps_without_signal": metrics["steps_without_signal"],
        "adapter": sha256_of(folder),
        "card": (facts["gpu"] or {}).get("name"),
    }


def words_of(inputs: Path, settings: list[str]) -> list[str]:
    named = [word for setting in settings for word in ("--set", setting)]
    paths = [
        "--base",
        inputs / "models/base",
        "--adapter",
        inputs / "models/adapters/sft",
        "--tasks",
        inputs / "tasks.jsonl",
    ]
    return ["grpo", "--params", str(inputs / "params.yaml"), *map(str, paths), *named]


def sha256_of(folder: Path) -> str:
    return hashlib.sha256((folder / "models/adapters/grpo/adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def killed(case: str, options: argparse.Namespace) -> dict:
    folder, log = options.work / case, options.out / "killed.log"
    settings = ["grpo.processes=2", "checkpoints.every=5", "grpo.steps=12"]
    words = words_of(toy_inputs(options), settings)
    folder.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words], cwd=folder, stdout=file, stderr=file, env=ENVIRONMENT
        )
        curve = folder / "plots/grpo.csv"
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if curve.exists() and len(curve.read_text().splitlines()) > 7:  # a line of names, and seven steps
                break
            time.sleep(0.01)
        os.kill(rank_in(folder, "1"), signal.SIGKILL)
        began = time.monotonic()
        code = process.wait(timeout=60)
    found = {"ended_after": round(time.monotonic() - began, 2), "exit_code": code, "said": tail(log)[-1:]}
    jobs(log, folder, words)
    went_on = [line.rpartition("/")[2] for line in log.read_text().splitlines() if "resuming from" in line]
    unbroken = options.work / "toy-2x64"
    same = sha256_of(folder) == sha256_of(unbroken) if unbroken.exists() else None
    return found | {"went_on": went_on, "adapter": sha256_of(folder), "same_as_unbroken": same}


def rank_in(folder: Path, number: str) -> int:
    """The process that supervises a rank which works in a folder; the rank dies with it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            if (entry / "cwd").resolve() == folder and f"RANK={number}".encode() in variables:
                found.append(int(entry.name))
        except OSError:
            continue
    return min(found)


def jobs(log: Path, folder: Path, words: list[str]) -> None:
    run_logged(["-m", "jobs", *words], log, folder)


def torchrun(log: Path, folder: Path, ranks: int, *words: str) -> None:
    """This script as so many ranks."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        str(Path(__file__).resolve()),
    ]
    run_logged([*command, "--rank", *words], log, folder)


def as_rank(words: list[str]) -> None:
    """A job with rewards that are drawn from the texts, or the measurement of an all-reduce."""
    if words == ["allreduce"]:
        return measure_allreduce()
    from jobs import __main__

    draw_rewards()
    return __main__.main(words)


def measure_allreduce() -> None:
    import torch

    card = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(card)
    torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", card))
    found = {}
    for name, weights in ADAPTERS.items():
        gradient = torch.ones(weights, device="cuda")
        times = []
        for _ in range(25):
            torch.cuda.synchronize()
            torch.distributed.barrier()
            began = time.perf_counter()
            torch.distributed.all_reduce(gradient)
            torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
        found[name] = {"mb": round(weights * 4 / 1e6), "ms": round(statistics.median(times[5:]), 3)}
    if torch.distributed.get_rank() == 0:
        print(json.dumps({"allreduce": found}), flush=True)
    torch.distributed.destroy_process_group()


CASES: dict[str, Callable[[str, argparse.Namespace], dict]] = {
    "allreduce": allreduce,
    **{f"toy-{shape}": toy for shape in SHAPES},
    "killed": killed,
    **{f"4b-{shape}": big for shape in SHAPES},
}

if __name__ == "__main__":
    main()
