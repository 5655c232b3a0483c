"""A step of GRPO on one GPU by this pipeline, by TRL and by Unsloth: the same model, prompts, lengths and batch.

    python tests/bench/grpo_peers.py MODEL ADAPTER TASKS --out DIR [--cases flat reference | own] [--systems NAME ...]

Reads   MODEL    a model folder      ADAPTER  an SFT adapter on all linear layers, which `ours` continues; the peers begin
                 new ones of its rank and alpha
        TASKS    tasks with prompts (jobs/common/task.py); those of more than 1,000 characters are left out
Writes  --out    steps.json: seconds of every step by system and case; SYSTEM-CASE.log; with --profile also the Python
                 functions that take most of a step's time, which itself takes longer then: SYSTEM-CASE.profile

Cases: `flat` forces every completion to 512 tokens, `reference` to lengths as the reference run had them (270 on average,
a long tail), 64 completions a step; both in one process, by each request's own max_tokens. `own` lets a real small model
end its 256 completions itself, 320 tokens at most. Rewards are drawn from the texts' hashes, so that no group is without a
signal and no system waits for a verdict. All sample with temperature 1 and without top-p, train all linear layers without a
KL term, and begin from the prompts that jobs/common/answer_format.py lays out.

The peers are set up as their own documents do: TRL's GRPOTrainer with vLLM in the same process ("colocate") and PEFT,
Unsloth as in its GRPO notebooks (fast_inference, gradient checkpointing "unsloth"). Systems run one after the other. One
that has not come to its end --limit seconds after its start is ended, with "ended" in its result and the steps that it
has done by then; of one that fails "code" is the exit code. The others go on.
A step's seconds are those from the end of the one before to its own end; the first of a case compiles and is left out.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.gpu_jobs import SECONDS, Memory
from tests.bench.grpo_peers_clock import SHAPES
from tests.bench.grpo_peers_systems import SWITCHES, SYSTEMS, run
from tests.bench.limited import Case

PROGRAM = Path(__file__).resolve()  # of one system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=SHAPES, default=["flat", "reference"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for `ours`")
    parser.add_argument("--limit", type=float, default=SECONDS, metavar="SECONDS", help=f"of a system ({SECONDS})")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("model", "adapter", "tasks", "out"):
        setattr(options, name, getattr(options, name).resolve())
    if options.one:
        run(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "steps.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for system in options.systems:
        found[f"{system} {' '.join(options.cases)}"] = result = alone(system, options)
        kept.write_text(json.dumps(found, indent=1))
        print(system, json.dumps(result), flush=True)


def alone(system: str, options: argparse.Namespace) -> dict:
    """One system in a process of its own: the median seconds of its steps by case, and the cards' peak memory.

    When its --limit is over it is ended with all that it has started, and what it has said by then is its result.
    """
    log = options.out / f"{system}-{options.cases[0]}.log"
    case = Case(system, options.out / "work", options.limit)
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    process = case.start([sys.executable, PROGRAM, *sys.argv[1:], "--one", system], log, **SWITCHES.get(system, {}))
    try:
        result: dict = {"code": process.wait(case.left())}
    except subprocess.TimeoutExpired:
        result = {"ended": f"after {options.limit:g} s"}
    finally:
        case.end()
        memory.stopped.set()
    result |= {"wall": round(time.perf_counter() - began, 1), "peak_gib": memory.peak}
    return result | medians(log.read_text(errors="replace"), options.cases)


def medians(said: str, cases: list[str]) -> dict:
    """What a system's log tells of the steps of each case after its first one, which compiles."""
    steps = [json.loads(found) for found in re.findall(r"STEP (\{.*?\})", said)]  # behind a progress bar, on its line
    result = {}
    for case in cases:
        of_case = [step for step in steps if step["case"] == case][1:]
        if of_case:
            result[case] = {
                name: round(statistics.median(step[name] for step in of_case), 2) for name in ("seconds", "generate")
            } | {"steps": [step["seconds"] for step in of_case], "tokens": of_case[-1]["tokens"]}
    return result


if __name__ == "__main__":
    main()
