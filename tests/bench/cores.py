"""Verification on the cores of a machine: submissions a second of the sandbox on 1, 2, 4 ... workers, the ideal beside.

    python tests/bench/cores.py [--seconds 4]

A rank of a GRPO run judges its own completions on its part of the cores, so these are what the ranks of a machine have
together. Judged are the references of generated tasks, each with another comment, as completions differ. Prints a JSON line
for each number of workers.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.sandbox import Sandbox
from jobs.toy import world

TASKS = 64
STEPS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="that each number of workers is measured for (4)")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    tasks = world.tasks(1, {"train": TASKS})["train"]
    alone = 0.0
    for workers in (count for count in STEPS if count <= cores):
        with Sandbox(workers) as sandbox:
            rate = measured(sandbox, tasks, options.seconds)
        alone = alone or rate
        found = {"cores": cores, "workers": workers, "a_second": round(rate, 1), "ideal": round(alone * workers, 1)}
        print(json.dumps(found | {"share": round(rate / alone / workers, 3)}), flush=True)


def measured(sandbox: Sandbox, tasks: list, seconds: float) -> float:
    """Submissions a second, after one of each task that is not counted."""
    sandbox.run((task, task["reference"]) for task in tasks)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        batch = [(task, f"{task['reference']}\n# {count} {i}\n") for i in range(8) for task in tasks]
        if not all(verdict.passed for verdict in sandbox.run(batch)):
            raise SystemExit("a reference did not pass")
        count += len(batch)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
