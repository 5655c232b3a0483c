"""Verdicts of the sandbox against evalplus's own, on canonical solutions and seeded mutants, base and plus each.

    python tests/bench/exactness.py --data ../shared/data --mutants 1800 --out exactness.jsonl
    python tests/bench/exactness.py --data ../shared/data --samples completions.jsonl --out exactness-samples.jsonl

The second judges the completions of a model, as `jobs score` takes them, in place of both.

A row a sample: task_id, kind, ours and theirs for base and plus. Continues a file that was begun, and tries again what
differed in it (the last row of a sample counts). Samples on which the two differ are tried again by both, alone, and
every row that still differs is printed with the statuses of each try.
The oracle is evalplus 0.3.1's `untrusted_check` with main's fix of HumanEval/32; both sides get --min-limit seconds.
"""

import argparse
import ast
import copy
import inspect
import json
import random
import sys
import time
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.sandbox import Sandbox
from jobs.score import load_tasks, programs


class Mutation(ast.NodeTransformer):
    """Changes the `target`-th place where something can be changed; counts the places while it goes."""

    SWAPS: ClassVar = {
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Add,
        ast.Div: ast.FloorDiv,
        ast.FloorDiv: ast.Div,
        ast.Mod: ast.Mult,
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
        ast.And: ast.Or,
        ast.Or: ast.And,
        ast.In: ast.NotIn,
        ast.NotIn: ast.In,
    }

    def __init__(self, target: int, rng: random.Random) -> None:
        self.target, self.rng, self.place, self.kind = target, rng, 0, ""

    def here(self, kind: str) -> bool:
        self.place += 1
        if self.place - 1 == self.target:
            self.kind = kind
            return True
        return False

    def visit(self, node: ast.AST) -> ast.AST:
        swap = self.SWAPS.get(type(getattr(node, "op", None))) or self.SWAPS.get(
            type((getattr(node, "ops", None) or [0])[0])
        )
        if swap and self.here("operator"):
            if hasattr(node, "op"):
                node.op = swap()
            else:
                node.ops[0] = swap()
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool, str) and self.here("constant"):
            value = node.value
            node.value = (
                not value
                if type(value) is bool
                else value[:-1] + "x"
                if type(value) is str
                else value + self.rng.choice((-1, 1))
            )
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "range" and self.here("off by one"):
            node.args[-1] = ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))
        if (
            isinstance(node, (ast.FunctionDef, ast.For, ast.While, ast.If))
            and len(node.body) > 1
            and self.here("dropped line")
        ):
            del node.body[self.rng.randrange(len(node.body))]
        return self.generic_visit(node)


def mutants(task: dict, count: int, seed: int) -> list[tuple[str, str]]:
    """Up to `count` different (kind, program) mutants of a task's reference."""
    rng = random.Random(f"{seed} {task['task_id']}")
    tree = ast.parse(task["reference"])
    probe = Mutation(-1, rng)
    probe.visit(copy.deepcopy(tree))
    found: dict[str, str] = {}
    for target in rng.sample(range(probe.place), probe.place):
        mutation = Mutation(target, rng)
        changed = ast.fix_missing_locations(mutation.visit(copy.deepcopy(tree)))
        source = ast.unparse(changed)
        if source != ast.unparse(tree):
            found.setdefault(source, mutation.kind)
        if len(found) == count:
            break
    return [(kind, source) for source, kind in found.items()]


def oracle(data: Path):
    """evalplus's problems, expected values and check, with HumanEval/32 as in its main branch."""
    import os

    import evalplus.eval as module
    from evalplus.data import mbpp
    from evalplus.gen.util import trusted_exec

    source = inspect.getsource(module.unsafe_execute)
    fixed = source.replace(
        "<= atol\n                            continue",
        "<= atol\n                            details[i] = True\n"
        "                            progress.value += 1\n                            continue",
    )
    assert fixed != source, "this evalplus is another version"
    exec(compile(fixed, module.__file__, "exec"), module.__dict__)
    os.environ.setdefault("EVALPLUS_MAX_MEMORY_BYTES", str(4 << 30))

    def check(task: dict, code: str, truth: dict, min_limit: float) -> tuple[bool, bool, str]:
        dataset = "mbpp" if task["task_id"].startswith("Mbpp/") else "humaneval"
        statuses = []
        for part in ("base", "plus"):
            raw = task[f"{part}_input"]
            inputs = mbpp.mbpp_deserialize_inputs(task["task_id"], raw) if dataset == "mbpp" else raw
            if part not in truth:
                truth[part] = trusted_exec(
                    task["reference"],
                    inputs,
                    task["entry_point"],
                    record_time=True,
                    output_not_none=task["entry_point"] in module.MBPP_OUTPUT_NOT_NONE_TASKS,
                )
            expected, seconds = truth[part]
            statuses.append(
                module.untrusted_check(
                    dataset,
                    code,
                    inputs,
                    task["entry_point"],
                    expected,
                    task["atol"],
                    seconds,
                    fast_check=True,
                    min_time_limit=min_limit,
                )[0]
            )
        return statuses[0] == "pass", statuses[1] == "pass", "/".join(statuses)

    return check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mutants", type=int, default=1800)
    parser.add_argument("--samples", type=Path, help="completions to judge, and nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-limit", type=float, default=2.0)
    parser.add_argument("--only", default="", help="the beginning of the task ids to try")
    parser.add_argument("--skip", nargs="*", default=[], help="task ids to leave for a machine that is less busy")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    tasks = {**load_tasks(options.data / "HumanEvalPlus.jsonl.gz"), **load_tasks(options.data / "MbppPlus.jsonl.gz")}
    each = -(-options.mutants // len(tasks)) + 1
    tasks = {
        task_id: task
        for task_id, task in tasks.items()
        if task_id.startswith(options.only) and task_id not in options.skip
    }
    given: dict[str, list[tuple[str, str]]] = {}
    for task, code in programs(options.samples, tasks) if options.samples else ():
        given.setdefault(task["task_id"], []).append(("sample", code))
    if options.samples:
        tasks = {task_id: tasks[task_id] for task_id in given}
    check = oracle(options.data)
    done = {(row["task_id"], row["code"]) for row in rows(options.out) if row["ours"] == row["theirs"]}
    counts: dict[str, int] = {}
    with Sandbox(options.workers, benchmark=True, min_limit=options.min_limit) as sandbox, options.out.open("a") as out:
        for number, task in enumerate(tasks.values()):
            made = [] if options.samples else [("canonical", task["reference"]), *mutants(task, each, options.seed)]
            samples = given.get(task["task_id"], made)
            samples = [(kind, code) for kind, code in samples if (task["task_id"], code) not in done]
            truth: dict = {}
            verdicts = sandbox.run([(task, code) for _, code in samples])
            for (kind, code), verdict in zip(samples, verdicts, strict=True):
                tries = []
                for _ in range(3):
                    base, plus, statuses = check(task, code, truth, options.min_limit)
                    tries.append(statuses + " " + verdict.status)
                    if (base, plus) == (verdict.base_passed, verdict.plus_passed):
                        break
                    time.sleep(1)
                    verdict = sandbox.run([(task, code)])[0]
                row = {
                    "task_id": task["task_id"],
                    "kind": kind,
                    "code": code,
                    "ours": [verdict.base_passed, verdict.plus_passed],
                    "theirs": [base, plus],
                    "status": verdict.status,
                    "error": verdict.error,
                    "tries": tries,
                }
                out.write(json.dumps(row) + "\n")
                out.flush()
                counts[kind] = counts.get(kind, 0) + 1
                if row["ours"] != row["theirs"]:
                    print(json.dumps({k: v for k, v in row.items() if k != "code"}), flush=True)
            if number % 20 == 0:
                print(number, counts, file=sys.stderr, flush=True)
    summary(rows(options.out))


def rows(path: Path) -> list[dict]:
    """The rows of a file, the last of each sample."""
    lines = path.read_text().splitlines() if path.exists() else []
    table = [json.loads(line) for line in lines]
    return list({(row["task_id"], row["code"]): row for row in table}.values())


def summary(table: list[dict]) -> None:
    """Prints how many verdicts there are of each kind, how many passed, and how many differ."""
    differ = [row for row in table if row["ours"] != row["theirs"]]
    again = [row for row in table if len(row["tries"]) > 1]
    print(
        json.dumps(
            {
                "samples": len(table),
                "verdicts": 2 * len(table),
                "canonical": sum(r["kind"] == "canonical" for r in table),
                "completions": sum(r["kind"] == "sample" for r in table),
                "mutants": sum(r["kind"] not in ("canonical", "sample") for r in table),
                "passed": sum(all(r["ours"]) for r in table),
                "differ": len(differ),
                "tasks_that_differ": sorted({r["task_id"] for r in differ}),
                "agreed_only_when_tried_again": sorted({r["task_id"] for r in again} - {r["task_id"] for r in differ}),
            }
        )
    )


if __name__ == "__main__":
    main()
