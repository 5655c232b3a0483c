"""Several GPUs of one machine: seconds of a GRPO step's parts, memory, hashes; ranks that die; samplings side by side.

    python tests/bench/scaling.py --out DIR --toy FOLDER --big FOLDER [CASE ...]

Reads   --toy   a folder in which the smoke run has ended (made here without it, by its first stages)
        --big   a folder with a base model `model` and an adapter `sft`, as tests/bench/gpu.py leaves in its --work;
                without it a model of Qwen3-4B's shape with random weights is made here, with the tokenizer in --tokenizer
Writes  --out   results.json, added to as each case ends, so that a machine that is taken away loses one; logs.tar.gz

Cases are run one after another, and those joined by `+` (killed+nodes) side by side. Each has --limit seconds; then all
that it has started is killed. The machine is to have two cards.

- `allreduce`   milliseconds of a gradient's all-reduce between two cards, for adapters of 23.6 and 66.1 million weights
- `toy-*`       the smoke run's model by plain TRL and vLLM
- `4b-*`        a model of Qwen3-4B's shape, likewise, in three steps after a first one. A random model earns nothing, so
                rewards are drawn from the texts' hashes: the adapter is trained, by a gradient that means nothing
- `ahead-*`     `4b` and `toy` with one process that trains: `-0` samples and trains in turn on one card, `-1` samples a
                step ahead on the second card (grpo.staleness), everything else alike. Seconds of a step, and what was
                learned by fifths of the run, of the curve
- `killed`      `toy-2x64` with rank 1 killed after step 7, and resumed: what is left, and whether it ends as `toy-2x64`
- `nodes`       `toy-2x64` on two 'machines' of one card each, NCCL over TCP: two network namespaces with a veth pair where
                the machine permits them, else two on its loopback; and the all-reduce there
- `samples`     two samplings at once, each by docker/run with a card of its own, and then one after the other
- `shards`      one of these samplings by two processes (SHARDS=2)
- `cores`       tests/bench/cores.py; to be run alone

The cases are RANKSxCOMPLETIONS: 1x64, 2x64, 2x128. Of 4b-* and toy-* `adapters` has each rank's hash as the job compared
them at its last checkpoint. Memory is the cards', sampled by nvidia-smi.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.allreduce import reduced
from tests.bench.gpu_jobs import REPO, Memory, draw_rewards
from tests.bench.limited import Case, Failed, two_machines
from tests.bench.scaling_inputs import BIG_CACHE, JOBS, LOCK, TOY_CACHE, big_inputs, flags, sha256_of, toy_inputs
from tests.bench.scaling_samples import samples, shards

SHAPES = {"1x64": (1, 64), "2x64": (2, 64), "2x128": (2, 128)}
# Of both sides of ahead-*: what grpo.staleness wants, and the rollout that is the default.
AHEAD = [
    "grpo.rollout=vllm_merged", "grpo.importance_correction=true", "grpo.top_p=1.0", "grpo.temperature=1.0",
    "grpo.equal_groups=drop", "grpo.patience=0",
]  # fmt: skip
AHEAD_STEPS = {"4b": 8, "toy": 60}
LEARNED = "reward", "correctness", "kl", "staleness", "sampling_logp_difference", "importance_ratio"  # of the curve
# NCCL between two 'machines' of one host: over TCP, as it would talk between two hosts without InfiniBand.
TCP = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_IB_DISABLE": "1", "NCCL_DEBUG": "INFO"}
PORT = 29577
KILL_AFTER = 7  # steps
CHECKED = re.compile(r"^CHECKED rank (\d+): step (\d+): the adapter (\w+)$", re.M)


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        return as_rank(sys.argv[2:])
    options = parsed(sys.argv[1:])
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    for group in options.cases:
        threads = [threading.Thread(target=measure, args=(name, group, options)) for name in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with tarfile.open(options.out / "logs.tar.gz", "w:gz") as archive:
            archive.add(options.work / "logs", "logs")
    return None


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--toy", type=Path)
    parser.add_argument("--big", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="of Qwen3, without --big")
    parser.add_argument("--work", type=Path, default=Path("/tmp/bench-scaling"))
    parser.add_argument("--limit", type=float, default=150.0, help="seconds of a case (150)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every job, as theirs")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=list(CASES))
    options = parser.parse_args(words)
    options.cases = [text.split("+") for text in options.cases]
    for name in (name for group in options.cases for name in group):
        if name not in CASES:
            parser.error(f"no case {name!r}; there are {', '.join(CASES)}")
    for name in ("out", "toy", "big", "tokenizer", "work"):
        if path := getattr(options, name):
            setattr(options, name, path.resolve())
    return options


def measure(name: str, group: list[str], options: argparse.Namespace) -> None:
    """Runs a case, and adds what it found to the results."""
    shutil.rmtree(options.work / name, ignore_errors=True)
    case = Case(name, options.work, options.limit)
    began = time.perf_counter()
    try:
        found = CASES[name](case, options)
    except (Failed, OSError, ValueError, LookupError) as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    finally:
        case.end()
        ENDED[name].set()
    facts = {"case": name, "wall": round(time.perf_counter() - began, 1)}
    if beside := [other for other in group if other != name]:
        facts["beside"] = beside
    record(options.out / "results.json", facts | found)


def record(path: Path, found: dict) -> None:
    print(json.dumps(found), flush=True)
    with LOCK:
        results = json.loads(path.read_text()) if path.exists() else []
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps([*results, found], indent=1) + "\n")
        partial.replace(path)


def allreduce(case: Case, options: argparse.Namespace) -> dict:
    return {"allreduce": reduced(case, [[], []], PORT + 1, NCCL_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1")}


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
    """One GRPO run: its steps, the memory of each card, the adapter as each rank had it. card: those of a single rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks] if ranks > 1 else []
    program = [sys.executable, *torchrun, Path(__file__).resolve(), "--rank", *how]
    around = {"CUDA_VISIBLE_DEVICES": card} if ranks == 1 else {}
    memory = Memory()
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
        ENDED["toy-2x64"].wait(case.left())
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


def killed(case: Case, options: argparse.Namespace) -> dict:
    words = [*JOBS, *grpo_words(toy_inputs(options), [*toy_settings(2, 64), *options.set])]
    curve = case.folder / "plots/grpo.csv"
    process = case.start(words, case.log("1"))
    while not (curve.exists() and len(curve.read_text().splitlines()) > KILL_AFTER):  # a line of names, and the steps
        if process.poll() is not None or case.left() < 1:
            raise Failed(f"no step {KILL_AFTER}: {case.log('1').read_text(errors='replace')[-800:]}")
        time.sleep(0.005)
    os.kill(rank_in(case, "1"), signal.SIGKILL)
    began = time.monotonic()
    try:
        code = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        return {"ended_after": None, "left": list(case.processes().values())}
    found: dict = {"ended_after": round(time.monotonic() - began, 2), "exit_code": code, "left": case.settled()}
    found |= {"steps_before": len(curve.read_text().splitlines()) - 1, "gib_after": used_gib()}
    found["said"] = case.log("1").read_text(errors="replace").splitlines()[-1:]
    case.run(words, case.log("2"))
    lines = case.log("2").read_text(errors="replace").splitlines()
    found["went_on"] = [line.rpartition("/")[2] for line in lines if "resuming from" in line]
    return found | {"left_at_end": case.settled()} | facts_of(case.folder) | beside_unbroken(case, options)


def used_gib() -> list[float]:
    """The memory in use of each card."""
    memory = Memory()
    memory.sample()
    return memory.peak


def rank_in(case: Case, number: str) -> int:
    """The process that supervises a rank of the case; the rank dies with it."""
    found = []
    for pid in case.processes():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={number}".encode() in variables:
            found.append(pid)
    return min(found)


def nodes(case: Case, options: argparse.Namespace) -> dict:
    words = [*JOBS, *grpo_words(toy_inputs(options), [*toy_settings(2, 64), *options.set])]
    with two_machines() as machines:
        enter = [machines.enter(number) for number in (0, 1)]
        around = TCP | {"NCCL_SOCKET_IFNAME": machines.INTERFACE, "GLOO_SOCKET_IFNAME": machines.INTERFACE}
        around |= {"MASTER_ADDR": machines.ADDRESS, "NCCL_DEBUG_FILE": str(case.logs / "nccl-nodes.%p.log")}
        found = {"network": machines.kind, "allreduce": reduced(case, enter, PORT + 1, **around)}
        logs = [case.log(str(number)) for number in (0, 1)]
        own = [{"NODE_RANK": str(i), "CUDA_VISIBLE_DEVICES": str(i), "NCCL_HOSTID": f"bench{i}"} for i in (0, 1)]
        here = around | {"NODES": "2", "MASTER_PORT": str(PORT)}
        started = [case.start([*enter[i], *words], logs[i], **here | own[i]) for i in (0, 1)]
        for process, log in zip(started, logs, strict=True):
            case.wait(process, log)
    said = "".join(path.read_text(errors="replace") for path in case.logs.glob("nccl-nodes.*"))
    return found | {"nccl_via": transports(said), "left_at_end": case.settled()} | facts_of(case.folder) | \
        beside_unbroken(case, options)  # fmt: skip


def transports(log: str) -> list[str]:
    """By what NCCL's channels between ranks go, of its log: `NET/Socket/0`, `P2P/CUMEM`, `SHM/direct/direct` ..."""
    return sorted(set(re.findall(r"Channel \S+ : \d+\[\w+\] -> \d+\[\w+\].* via (\S+)", log)))


def cores(case: Case, options: argparse.Namespace) -> dict:
    case.run([sys.executable, REPO / "tests/bench/cores.py", "--seconds", "3"], case.log())
    return {"submissions": [json.loads(line) for line in case.log().read_text().splitlines() if line.startswith("{")]}


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


CASES: dict[str, Callable[[Case, argparse.Namespace], dict]] = {
    "allreduce": allreduce,
    **{f"toy-{shape}": toy for shape in SHAPES},
    "killed": killed,
    "nodes": nodes,
    "samples": samples,
    "shards": shards,
    "cores": cores,
    **{f"4b-{shape}": big for shape in SHAPES},
    **{f"ahead-{kind}-{staleness}": ahead for kind in AHEAD_STEPS for staleness in (0, 1)},
}

ENDED = {name: threading.Event() for name in CASES}

if __name__ == "__main__":
    main()
