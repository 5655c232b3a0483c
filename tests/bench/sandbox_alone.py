"""The cases of tests/bench/sandbox.py without a peer: a submission by itself, a step of GRPO, programs that never end."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jobs.common.files import read_jsonl
from jobs.plumbing.params import load
from jobs.sandbox import Sandbox
from jobs.sandbox.judge import COMMON
from jobs.score import load_tasks
from jobs.tasks import timeouts
from jobs.tasks.run_references import ROOM
from tests.bench.cpu import measure, tree_cpu


def mbpp(data: Path, repeat: int) -> None:
    """Assertions of the MBPP+ tasks, as evalplus corrected them, on one worker: the training load."""
    import ast

    tasks = []
    for row in read_jsonl(data / "MbppPlus.jsonl.gz"):
        tests = [ast.unparse(node) for node in ast.parse(row["assertion"]).body]
        tasks.append(
            {
                "task_id": row["task_id"],
                "prompt": row["prompt"],
                "entry_point": row["entry_point"],
                "setup": "",
                "tests": tests,
                "reference": row["prompt"] + row["canonical_solution"],
            }
        )
    latencies("sandbox, MBPP assertions, one worker", tasks, max(1, repeat // 2))


def latencies(name: str, tasks: list[dict], repeat: int) -> None:
    batch = [(task, task["reference"]) for task in tasks] * repeat
    with Sandbox(1) as sandbox:
        sandbox.run(batch[: len(tasks)])
        verdicts: list = []
        result = measure(
            name, len(batch), lambda: verdicts.extend(sandbox.run(batch)) or sum(v.passed for v in verdicts)
        )
        alone = []
        for task, code in batch[:400]:
            start = time.perf_counter()
            sandbox.run([(task, code)])
            alone.append(1000 * (time.perf_counter() - start))
    print(
        json.dumps(
            {
                "what": result["what"],
                "p50_ms": round(statistics.median(alone), 2),
                "p99_ms": round(sorted(alone)[len(alone) * 99 // 100], 2),
            }
        ),
        flush=True,
    )


def empty() -> None:
    """A submission of nothing, and what a bare fork costs here."""
    task = {
        "task_id": "empty",
        "prompt": "",
        "entry_point": "f",
        "setup": "",
        "tests": ["assert f"],
        "reference": "f = 1",
    }
    latencies("sandbox, empty submission, one worker", [task] * 400, 1)
    bare = [sys.executable, "-I", "-S", "-c", BARE_FORK, *COMMON]
    print(subprocess.run(bare, capture_output=True, text=True, check=True).stdout, end="", flush=True)


# What forks alone cost: of a Python that has imported what the sandbox's server has, with children that end at once.
BARE_FORK = """
import gc, importlib, json, os, resource, sys, time
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()
walls, cpu = [], time.process_time()
for _ in range(1000):
    start = time.perf_counter()
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    walls.append(1000 * (time.perf_counter() - start))
children = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = time.process_time() - cpu + children.ru_utime + children.ru_stime
walls.sort()
found = {"p50_ms": round(walls[500], 2), "p99_ms": round(walls[990], 2), "cpu_ms": round(cpu, 2)}
print(json.dumps({"what": "bare fork"} | found))
"""


def step(data: Path, workers: int) -> None:
    """64 completions of 4 MBPP+ tasks with all their inputs, as one GRPO step; the tasks are new to the pool."""
    tasks = list(load_tasks(data / "MbppPlus.jsonl.gz").values())[:100]
    with Sandbox(workers) as sandbox:
        verdicts = sandbox.run([(task, task["reference"]) for task in tasks])
    tasks = [task for task, v in zip(tasks, verdicts, strict=True) if v.passed and v.seconds < ROOM * 2.0]
    seconds = []
    with Sandbox(workers) as sandbox:
        for first in range(0, 80, 4):
            batch = [(task, task["reference"]) for task in tasks[first : first + 4] for _ in range(16)]
            start = time.monotonic()
            sandbox.run(batch)
            seconds.append(time.monotonic() - start)
    print(
        json.dumps(
            {
                "what": "a GRPO step's 64 completions of MBPP+, seconds",
                "median": round(statistics.median(seconds), 3),
                "worst": round(max(seconds), 3),
            }
        ),
        flush=True,
    )


def hang(workers: int) -> None:
    """When a program that never ends is judged, under the limit of 2 s."""
    task = {
        "task_id": "hang",
        "prompt": "",
        "entry_point": "f",
        "setup": "",
        "tests": ["assert f() == 1"],
        "reference": "",
    }
    programs = {"a loop": "def f():\n    while True: pass", "a sleep": "import time\ndef f(): time.sleep(60)"}
    with Sandbox(workers, timeout=2.0) as sandbox:
        for name, code in programs.items():
            verdicts = sandbox.run([(task, code)] * 10)
            assert {v.status for v in verdicts} == {"timeout"}
            seconds = sorted(v.seconds for v in verdicts)
            print(
                json.dumps(
                    {
                        "what": f"a hanging program ({name}), judged after seconds",
                        "least": round(seconds[0], 3),
                        "most": round(seconds[-1], 3),
                    }
                ),
                flush=True,
            )


def own_limits(data: Path, workers: int, rounds: int = 12) -> None:
    """A GRPO step's 64 completions of 4 MBPP+ tasks of which 3 never end: by sandbox.timeout, and by the tasks' own limits.

    The two take turns, on the same tasks, which both have ready.
    """
    params = load(Path(__file__).resolve().parents[2] / "params.yaml", [])
    tasks = list(load_tasks(data / "MbppPlus.jsonl.gz").values())[: 6 * rounds]
    tasks = [task for task in timeouts.fixed({"train": tasks}, params.tasks.timeout, params.sandbox)["train"]
             if task.get("timeout")][: 4 * rounds]  # fmt: skip
    seconds: dict[bool, list[float]] = {False: [], True: []}
    cpu = {False: 0.0, True: 0.0}
    with Sandbox(workers, timeout=params.sandbox.timeout) as sandbox:
        for first in range(0, len(tasks), 4):
            for own in (False, True):
                step = [{**task, "timeout": task["timeout"] if own else None} for task in tasks[first : first + 4]]
                sandbox.run([(task, task["reference"]) for task in step])
                batch = [(task, task["reference"]) for task in step for _ in range(16)]
                for i in (0, 21, 42):
                    task, _ = batch[i]
                    batch[i] = (task, f"def {task['entry_point']}(*arguments):\n    while True: pass\n")
                before, start = tree_cpu(os.getpid()), time.monotonic()
                verdicts = sandbox.run(batch)
                seconds[own].append(time.monotonic() - start)
                cpu[own] += tree_cpu(os.getpid()) - before
                assert [verdict.status for verdict in verdicts].count("timeout") == 3
                assert sum(verdict.passed for verdict in verdicts) == 61
    found = {
        "what": "64 completions of which 3 never end, own limits / sandbox.timeout",
        "steps": len(seconds[True]),
        "wall": round(statistics.median(seconds[True]) / statistics.median(seconds[False]), 2),
        "cpu": round(cpu[True] / cpu[False], 2),
        "seconds": {
            name: round(statistics.median(seconds[own]), 2) for name, own in (("own", True), ("without", False))
        },
    }
    print(json.dumps(found), flush=True)
