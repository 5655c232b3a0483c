"""Find which training tasks' references solve a benchmark's task in full, and pin the pairs in a file.

\b
    python -m jobs overlap-pairs --sources data/sources --out data/overlap/pairs.jsonl

\b
Reads   the sources that `tasks` reads
        --out   an earlier file: what it has of sources that have not changed is kept
Writes  --out   the pairs by source of the training tasks and of the benchmark, and the hashes of what they were made of

`tasks` drops a training task that is in a pair with a task of a benchmark, and refuses a file made of other data. The
file is committed, so this runs again only when a source changes: for the three sources it is some 260,000 programs, a
quarter of an hour on two cores.

Each reference that takes as many arguments as a benchmark task's inputs have is given that task's name for its function,
and judged in the sandbox: by the first few inputs, and by all base and plus inputs if it passes these.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, write_jsonl
from jobs.plumbing.cli import job, log, progress, writes
from jobs.plumbing.outputs import ROWS
from jobs.tasks import sources

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Params
    from jobs.plumbing.params import Sandbox as Limits

SCREEN = 4  # inputs, or tests, by which most pairs are told apart
MANY = 10**9
# Seconds: a screened pair has one, and an input of the whole test five or four times the benchmark's own reference.
SCREENED = {"timeout": 1.0}
WHOLE = {"timeout": 60.0, "min_limit": 5.0}
TRAINED_ON = ("entry_point", "reference")
JUDGED_BY = ("entry_point", "setup", "tests", "check", "base_input", "plus_input", "atol", "reference")

HEAD = "training", "benchmark", "training_sha256", "benchmark_sha256"

Pair = tuple[str, str]


def digest(tasks: "Iterable[Task]", fields: tuple[str, ...]) -> str:
    """A hash of what decides a source's part in the pairs."""
    rows = [[task["task_id"], *(task.get(name) for name in fields)] for task in tasks]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def arguments(task: "Task") -> tuple[int, int]:
    """The least and the most positional arguments that the reference's function takes."""
    for node in ast.parse(task["reference"]).body:
        if isinstance(node, ast.FunctionDef) and node.name == task["entry_point"]:
            names = [*node.args.posonlyargs, *node.args.args]
            return len(names) - len(node.args.defaults), MANY if node.args.vararg else len(names)
    return 0, MANY


def taken(task: "Task") -> set[int]:
    """The numbers of arguments that a benchmark task's tests call its function with; empty where that is not plain."""
    inputs = [*(task.get("base_input") or []), *(task.get("plus_input") or [])]
    if inputs:
        return {len(given) for given in inputs}
    tests = "\n".join([*task["tests"], task.get("check") or ""])
    calls = [
        node
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in (task["entry_point"], "candidate")
    ]
    if any(node.keywords or any(isinstance(part, ast.Starred) for part in node.args) for node in calls):
        return set()
    return {len(node.args) for node in calls}


def renamed(task: "Task", name: str) -> str:
    """The task's reference as a program whose entry point is `name`."""
    return (
        task["reference"] if name == task["entry_point"] else f"{task['reference']}\n\n{name} = {task['entry_point']}\n"
    )


def screen(task: "Task") -> "Task":
    """The task with its first few tests alone."""
    if task.get("base_input") or task.get("plus_input"):
        inputs = [*(task.get("base_input") or []), *(task.get("plus_input") or [])]
        first: Task = {**task, "base_input": inputs[:SCREEN]}
        first.pop("plus_input", None)
        return first
    return {**task, "tests": task["tests"][:SCREEN]}


def candidates(training: "list[Task]", benchmark: "list[Task]") -> "Iterator[tuple[Task, Task]]":
    """(training task, benchmark task) for all whose numbers of arguments agree, benchmark task by benchmark task."""
    spans = {task["task_id"]: arguments(task) for task in training if task["entry_point"]}
    for target in benchmark:
        if any(target.get(name) for name in ("stdin_tests", "calls", "unittests")):
            continue  # of programs and methods the other two rules alone tell
        counts = taken(target)
        for task in training:
            least, most = spans.get(task["task_id"], (MANY, 0))
            if (
                task["task_id"] != target["task_id"]
                and all(least <= count <= most for count in counts)
                and least <= most
            ):
                yield task, target


def solved(training: "list[Task]", benchmark: "list[Task]", limits: "Limits") -> list[Pair]:
    """The pairs of ids in which the training task's reference passes all of the benchmark task's tests, sorted.

    Errors: JobError if a benchmark task cannot be judged.
    """
    found = list(candidates(training, benchmark))
    screens = {id(target): screen(target) for target in benchmark}
    likely = judged([(t, target, screens[id(target)]) for t, target in found], limits, SCREENED, "screened")
    return sorted((t["task_id"], target["task_id"]) for t, target, _ in judged(
        [(t, target, target) for t, target, _ in likely], limits, WHOLE, "judged in full"))  # fmt: skip


def judged(
    rows: "list[tuple[Task, Task, Task]]", limits: "Limits", times: dict[str, float], label: str
) -> "list[tuple[Task, Task, Task]]":
    """The (training task, benchmark task, its tests) whose reference passes the tests."""
    from jobs.sandbox import Sandbox

    passed: list[tuple[Task, Task, Task]] = []
    broken: list[str] = []
    for inputs in (True, False):  # evalplus's limits for an input hold for tasks that have inputs
        part = [row for row in rows if (row[2].get("base_input") is not None) == inputs]
        if not part:
            continue
        full = inputs and "min_limit" in times
        with Sandbox.from_params(limits.model_copy(update=times), benchmark=full) as sandbox:
            futures = []
            for task, target, tests in progress(part, label=f"overlap-pairs: {label}"):
                futures.append((task, target, tests, sandbox.submit(tests, renamed(task, target["entry_point"]))))
            for task, target, tests, future in futures:
                verdict = future.result()
                if verdict.status == "infrastructure_error":
                    broken.append(f"{task['task_id']} by the tests of {target['task_id']}: {verdict.error}")
                elif verdict.passed:
                    passed.append((task, target, tests))
    if broken:
        raise JobError(f"the sandbox failed on {len(broken)} programs; {'; '.join(broken[:10])}")
    return passed


def block(training: str, tasks: "list[Task]", benchmark: str, targets: "list[Task]") -> dict:
    """The head of one part of the file: which sources, and the hashes of what they hold."""
    return {
        "training": training,
        "benchmark": benchmark,
        "training_sha256": digest(tasks, TRAINED_ON),
        "benchmark_sha256": digest(targets, JUDGED_BY),
    }


def load(path: Path) -> dict[str, list[Pair]]:
    """The pairs by their block's head as JSON. Errors: JobError for a file of another form."""
    try:
        return {head_of(row): [(str(task), str(target)) for task, target in row["pairs"]] for row in read_jsonl(path)}
    except (KeyError, TypeError, ValueError):
        raise JobError(f"{path}: is not a file of overlap-pairs") from None


def head_of(row: dict) -> str:
    return json.dumps({name: row[name] for name in HEAD}, sort_keys=True)


def of(path: Path, training: "dict[str, list[Task]]", benchmarks: "dict[str, list[Task]]") -> list[Pair]:
    """The file's pairs of these sources' tasks. Errors: UsageError if it was made of other tasks than these."""
    if not path.is_file():
        raise UsageError(f"--pairs: {path} does not exist; make it: python -m jobs overlap-pairs")
    known = load(path)
    found: list[Pair] = []
    for name, tasks in training.items():
        for target, targets in benchmarks.items():
            head = head_of(block(name, tasks, target, targets))
            if head not in known:
                raise UsageError(
                    f"{path}: is not of these tasks of {name} and {target}; make it anew: python -m jobs overlap-pairs"
                )
            found += known[head]
    return found


@job("tasks", "sandbox")
@sources.folder_option
@writes("--out", "data/overlap/pairs.jsonl", "The pairs.", ROWS(*HEAD, "pairs"))
def command(params: "Params", folder: Path, out: Path) -> None:
    pools = sources.pools(params.tasks, folder)
    training, benchmarks = sources.roles(params.tasks, pools)
    known = load(out) if out.exists() else {}
    blocks: list[dict] = []
    for name, tasks in training.items():
        for target, targets in benchmarks.items():
            head = block(name, tasks, target, targets)
            found = known.get(head_of(head))
            if found is None:
                found = solved(tasks, targets, params.sandbox)
                log.info("overlap-pairs: %d of %s solve a task of %s", len({a for a, _ in found}), name, target)
            blocks.append(head | {"pairs": found})
            write_jsonl(out, blocks)  # a run that is stopped goes on from here
    click.echo(json.dumps({f"{row['training']} -> {row['benchmark']}": len(row["pairs"]) for row in blocks}))
