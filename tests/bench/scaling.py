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
them at its last checkpoint. Memory is that of a case's own cards, sampled by nvidia-smi.
"""

import argparse
import json
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.allreduce import reduced
from tests.bench.gpu_jobs import REPO
from tests.bench.limited import Case, Failed
from tests.bench.scaling_grpo import AHEAD_STEPS, SHAPES, ahead, big, toy
from tests.bench.scaling_inputs import LOCK, PORT
from tests.bench.scaling_killed import killed
from tests.bench.scaling_nodes import nodes
from tests.bench.scaling_samples import samples, shards


def main() -> None:
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
    options.ended = {name: threading.Event() for name in CASES}
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
        options.ended[name].set()
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


def cores(case: Case, options: argparse.Namespace) -> dict:
    case.run([sys.executable, REPO / "tests/bench/cores.py", "--seconds", "3"], case.log())
    return {"submissions": [json.loads(line) for line in case.log().read_text().splitlines() if line.startswith("{")]}


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

if __name__ == "__main__":
    main()
