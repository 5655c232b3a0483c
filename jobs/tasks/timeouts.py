"""A training task's own limit of time, `timeout`: what its reference takes, times a factor, on a ladder of few rungs.

What a reference takes is counted, not timed: the turns of its loops and the calls of its functions, at SPEED of them a
second. So the limit is the same on every machine, busy or not, and for every version of Python. Loops in C (a sort, a sum,
numpy) have no turns, so the clock has a veto: a reference that takes over ROOM of a rung does not get that rung.
"""

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.common.errors import JobError
from jobs.common.task import UNPARSED
from jobs.plumbing.cli import log
from jobs.tasks.run_references import ROOM, patient

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import OwnTimeout
    from jobs.plumbing.params import Sandbox as Limits
    from jobs.sandbox import Sandbox

    Splits = dict[str, list[Task]]

SPEED = 5e6  # turns and calls in a second: MBPP's references make 6 to 40 million on an EPYC core
RUNG = 4  # times the rung below it
TRIES = 3  # of the clock's veto: what slows a machine for a moment decides nothing
# Ends the process, and raises nothing that a reference could catch.
HEAD = """
def __turn__(left=[{turns}]):
    left[0] -= 1
    if left[0] < 0:
        __import__('os')._exit(1)
    return True
"""


class Counting(ast.NodeTransformer):
    """Has each turn of a loop, and each call of a function, call __turn__(), which returns True."""

    def block(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.For | ast.AsyncFor | ast.While) -> ast.stmt:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(turn()))
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_For = visit_AsyncFor = visit_While = block

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        self.generic_visit(node)
        node.body = ast.IfExp(turn(), node.body, ast.Constant(None))
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        self.generic_visit(node)
        node.ifs.insert(0, turn())
        return node


def turn() -> ast.expr:
    return ast.parse("__turn__()", mode="eval").body


def counted(program: str, turns: int) -> str:
    """The program, which ends its process when it has made `turns` turns. Errors: those of UNPARSED where it cannot be."""
    tree = ast.fix_missing_locations(Counting().visit(ast.parse(program)))
    first = 0  # a docstring and imports from the future have to stand before all else
    while first < len(tree.body) and is_head(tree.body[first]):
        first += 1
    tree.body[first:first] = ast.parse(HEAD.format(turns=turns)).body
    return ast.unparse(tree)


def is_head(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def rungs(floor: float, most: float) -> Iterator[float]:
    """The limits in seconds below `most` that a task can have."""
    while floor < most:
        yield floor
        floor *= RUNG


def fixed(splits: "Splits", settings: "OwnTimeout | None", limits: "Limits") -> "Splits":
    """Training tasks by split, each whose limit is below `sandbox.timeout` with its `timeout`; one that has it keeps it.

    settings: None for no limits. limits: the params of the sandbox. Errors: JobError where the sandbox fails.
    """
    waiting = [task for tasks in splits.values() for task in tasks if not task.get("timeout")]
    ladder = list(rungs(settings.floor, limits.timeout)) if settings else []
    if settings is None or not ladder or not waiting:
        return splits
    found: dict[int, float] = {}
    with patient(limits) as sandbox:
        for rung in ladder:
            few = with_few_turns(waiting, int(rung / settings.factor * SPEED), sandbox)
            found |= {id(task): rung for task in quick(few, ROOM * rung, sandbox)}
            waiting = [task for task in waiting if id(task) not in found]
    log.info("%d training tasks have a time limit of their own; %d have sandbox.timeout", len(found), len(waiting))
    return {
        name: [{**task, "timeout": found[id(task)]} if id(task) in found else task for task in tasks]
        for name, tasks in splits.items()
    }


def with_few_turns(tasks: "list[Task]", turns: int, sandbox: "Sandbox") -> "list[Task]":
    """Those whose references pass their tests in so many turns: a program's runs each, and base and plus inputs each."""
    submissions = []
    for task in tasks:
        try:
            submissions.append((task, counted(task["reference"], turns)))
        except UNPARSED:
            continue  # it keeps sandbox.timeout
    return passing(submissions, sandbox)


def quick(tasks: "list[Task]", seconds: float, sandbox: "Sandbox") -> "list[Task]":
    """Those whose references take no more seconds of the sandbox's clock in the quickest of a few runs."""
    passed: set[str] = set()
    for _ in range(TRIES):
        left: list[tuple[Task, str]] = [
            ({**task, "timeout": seconds}, task["reference"]) for task in tasks if task["task_id"] not in passed
        ]
        passed |= {task["task_id"] for task in passing(left, sandbox)}
    return [task for task in tasks if task["task_id"] in passed]


def passing(submissions: "list[tuple[Task, str]]", sandbox: "Sandbox") -> "list[Task]":
    """The tasks of those that pass. Errors: JobError where the sandbox fails."""
    verdicts = sandbox.run(submissions)
    for (task, _), verdict in zip(submissions, verdicts, strict=True):
        if verdict.status == "infrastructure_error":
            raise JobError(f"the sandbox failed on the reference of {task['task_id']}: {verdict.error}")
    return [task for (task, _), verdict in zip(submissions, verdicts, strict=True) if verdict.passed]
