"""A task: its fields, and the one reader of files of tasks, which refuses what nothing can be judged by.

A task is one JSON object a line of a jsonl file, and that same dict in memory and in the sandbox's judge. official.py makes
tasks of the rows of other projects. A new field is one line in `Task`; what must hold beyond its type goes to `fault`.
"""

import ast
import keyword
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any, Required, TypedDict, get_args, get_origin, get_type_hints

from jobs.common.errors import JobError
from jobs.common.files import numbered_jsonl
from jobs.common.programs import fault_of_programs, fault_of_unittests, is_program

# What ast.parse raises for text that is no program, or one too deep for it.
UNPARSED = (SyntaxError, ValueError, RecursionError, MemoryError)


class Task(TypedDict, total=False):
    """What is asked of a model, and how its answer is judged.

    The tests have one of three forms: `tests`, `check`, or inputs (`base_input`, `plus_input`) with a `reference`. Inputs
    decide where there are any, and a check comes before tests. Three more forms stand alone (programs.py): `stdin_tests`
    of a whole program, `calls` with plain data, and `unittests`, of a benchmark. What may be missing may also be null.
    """

    task_id: Required[str]  # a name of its own, as "own/1"; evalplus's special comparisons are by "Mbpp/..."
    prompt: Required[str]  # what the model is asked: a statement, or the beginning of a program that it continues
    entry_point: Required[str]  # the function or class that the answer is to define and the tests use; "": a program
    setup: str  # Python that runs before the tests, in the judge; it does not define the entry point
    tests: list[str]  # Python sources, each a test of its own, with an assert or a raise: equal parts of the reward
    check: str  # Python source that defines check(candidate), as HumanEval has it; each of its asserts is a test
    base_input: list[list[Any]]  # a benchmark's own inputs: the arguments of each call, as evalplus's JSON has them
    plus_input: list[list[Any]]  # evalplus's added inputs, in the same form; what `reference` returns is expected
    atol: float  # absolute tolerance that results of the inputs are compared with; 0 is exact, or 1e-6 for floats
    contract: str  # evalplus's assertions on the inputs, as Python; kept, and used by nothing here
    stdin_tests: list[dict[str, Any]]  # {"input", "output"}: what a program reads, and what it is to write, as texts
    calls: list[dict[str, Any]]  # {"arguments", "expected"}: JSON values; LeetCode's kind of tests
    unittests: str  # Python source of a class TestCases, run in the answer's own process: of a benchmark alone
    method: str  # of the class `entry_point` that the calls are of; without it they are of the function
    shapes: dict[str, Any]  # {"arguments": [one each], "result"}: null, ListNode, TreeNode or "list of ListNode"
    comparison: str  # of outputs: lines (as it is without), tokens, livecodebench; of results: equal, livecodebench
    rtol: float  # relative tolerance, beside atol, of numbers in outputs and results
    checker: str  # why outputs cannot be compared by such rules: then no program is judged, the verdict is unsupported
    time_limit: float  # seconds of one test where the task is of a benchmark; in training it is sandbox.timeout
    timeout: float  # seconds in the place of sandbox.timeout, in training alone; where that is less, it holds
    prelude: str  # Python that stands before the answer wherever it is run: imports that the source takes for granted
    difficulty: str  # as the source grades it
    date: str  # of the problem's publication, YYYY-MM-DD
    reference: str  # a whole program that passes the tests
    source: str  # where the task comes from, with its version, for data cards
    license: str  # the task's licence, for data cards
    pass_rate: float  # the share in [0, 1] of the SFT model's samples that pass, once `grade` has drawn them
    graded: int  # how many samples that share is of


def read_tasks(path: Path, convert: Callable[[dict], dict] = lambda row: row) -> list[Task]:
    """The tasks of a jsonl file, gzipped or not. convert: makes a task of a row, and may raise ValueError with a fault.

    Errors: JobError naming file, line, task, field and fault for the first that is wrong, or if there is none at all.
    """
    tasks = []
    for number, task, wrong in examined(path, convert):
        if wrong:
            raise JobError(f"{path}: line {number}{named(task)}: {wrong}")
        tasks.append(task)
    if not tasks:
        raise JobError(f"{path}: has no tasks")
    return tasks


def examined(path: Path, convert: Callable[[dict], dict] = lambda row: row) -> Iterator[tuple[int, Task, str]]:
    """(line, task, what is wrong with it in a few words, or "") for each row of a file."""
    lines: dict[str, int] = {}
    for number, row in numbered_jsonl(path):
        task: Any = row
        try:
            task = convert(row)
        except ValueError as error:
            wrong = str(error)
        else:
            if is_program(task) and not task.get("entry_point"):
                task["entry_point"] = ""  # may be missing
            wrong = fault(task)
        if not wrong and task["task_id"] in lines:
            wrong = f"is a second {task['task_id']}, after line {lines[task['task_id']]}"
        if not wrong:
            lines[task["task_id"]] = number
        yield number, task, wrong


def named(task: Mapping[str, Any]) -> str:
    name = task.get("task_id")
    return f" ({name})" if isinstance(name, str) and name else ""


def fault(task: Mapping[str, Any]) -> str:
    """What is wrong with a task, in a few words, or "". Of tests it sees the text alone: nothing is run."""
    wrong = fault_of_types(task)
    if wrong:
        return wrong
    if not task["task_id"].strip():
        return "its task_id is empty"
    if (timeout := task.get("timeout")) is not None and not 0 < timeout < inf:
        return f"its timeout {timeout!r} is no number of seconds above 0"
    if is_program(task):
        wrong = "has stdin_tests, of a whole program, and an entry_point" if task.get("entry_point") else ""
        return wrong or fault_of_programs(task)
    if not task["entry_point"].isidentifier() or keyword.iskeyword(task["entry_point"]):
        return f"its entry_point {task['entry_point']!r} is no name of a function"
    if not 0 <= (task.get("pass_rate") or 0) <= 1:
        return f"its pass_rate {task['pass_rate']!r} is not a number between 0 and 1"
    if task.get("unittests"):
        return fault_of_unittests(task)
    if task.get("calls"):
        return fault_of_programs(task)
    return fault_of_tests(task) or fault_of_check(task) or fault_of_inputs(task) or fault_of_setup(task)


def fault_of_types(task: Mapping[str, Any]) -> str:
    """Whether each field that is there has the type that `Task` gives it. An empty list may be any empty value."""
    for name, kind in KINDS.items():
        value = task.get(name)
        if value is None and name == "entry_point" and is_program(task):
            continue
        if value is None and name in Task.__required_keys__:
            return f"has no {name}"
        absent = value is None or (get_origin(kind) is list and not value)
        if not absent and not is_of(value, kind):
            return f"its {name} is not {WORDS[kind]}"
    return ""


def is_of(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is list:
        return isinstance(value, list) and all(is_of(item, *get_args(kind)) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


KINDS = get_type_hints(Task)  # field -> type
WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list[str]: "a list of texts",
    list[list[Any]]: "a list of lists of arguments",
    list[dict[str, Any]]: "a list of objects",
    dict[str, Any]: "an object",
}


def fault_of_tests(task: Mapping[str, Any]) -> str:
    if not any(task.get(name) for name in ("tests", "check", "base_input", "plus_input")):
        return "has no tests"
    for number, test in enumerate(task.get("tests") or [], 1):
        try:
            tree = ast.parse(test)
        except UNPARSED:
            return f"its test {number} is no Python"
        if not asserts(tree):
            return f"its test {number} asserts nothing: {shorten(test)}"
    return ""


def fault_of_check(task: Mapping[str, Any]) -> str:
    if not task.get("check"):
        return ""
    try:
        tree = ast.parse(task["check"])
    except UNPARSED:
        return "its check is no Python"
    if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        return "its check defines no function check(candidate)"
    return "" if asserts(tree) else "its check asserts nothing"


def asserts(tree: ast.Module) -> bool:
    """Whether a test can fail by its own decision: it raises, or asserts something that is not the same in any case."""
    return any(
        isinstance(node, ast.Raise) or (isinstance(node, ast.Assert) and not settled(node.test))
        for node in ast.walk(tree)
    )


def settled(test: ast.expr) -> bool:
    """Whether an assertion holds whatever the answer: of constants alone, or a tuple, as in `assert (f(1) == 2, "why")`."""
    if isinstance(test, (ast.Tuple, ast.List, ast.Set)):
        return bool(test.elts)
    return not any(isinstance(node, ast.Name) for node in ast.walk(test))


def fault_of_inputs(task: Mapping[str, Any]) -> str:
    for name in ("base_input", "plus_input"):
        if task.get(name) and not task.get("reference"):
            return f"has {name} and no reference to tell what is expected"
    return ""


def fault_of_setup(task: Mapping[str, Any]) -> str:
    """The tests run after the setup: what it names as the entry point would be judged in place of the answer."""
    try:
        tree = ast.parse(task.get("setup") or "")
    except UNPARSED:
        return "its setup is no Python"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = {node.name}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
        if task["entry_point"] in names:
            return f"its setup defines {task['entry_point']}, which the answer is to define"
    return ""


def shorten(text: str) -> str:
    one = " ".join(text.split())
    return one if len(one) <= 80 else one[:77] + "..."
