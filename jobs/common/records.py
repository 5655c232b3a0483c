"""Task records: what one must have to be judged by, and a reader that refuses others by file and line.

A record is one JSON object: task_id, prompt, entry_point, and tests in one of three forms (jobs/tasks/job.py).
"""

import ast
import keyword
from pathlib import Path

from jobs.common.errors import JobError
from jobs.common.files import numbered_jsonl

TEXTS = ("setup", "check", "reference", "source", "license")  # may be missing; if not, they are texts


def read_tasks(path: Path) -> list[dict]:
    """The task records of a jsonl file. Errors: JobError naming file, line, task and fault for the first bad one."""
    rows = []
    lines: dict[str, int] = {}
    for number, row in numbered_jsonl(path):
        refuse(row, f"{path}: line {number}")
        if row["task_id"] in lines:
            raise JobError(f"{path}: line {number} is a second {row['task_id']}, after line {lines[row['task_id']]}")
        lines[row["task_id"]] = number
        rows.append(row)
    if not rows:
        raise JobError(f"{path}: has no tasks")
    return rows


def refuse(row: dict, where: str) -> None:
    """Errors: JobError with the place and the fault of a record that nothing can be judged by."""
    wrong = fault(row)
    if wrong:
        name = row.get("task_id")
        raise JobError(f"{where}{f' ({name})' if isinstance(name, str) and name else ''}: {wrong}")


def fault(row: dict) -> str:
    """What is wrong with a record, in a few words, or "". Of tests it sees the text alone: nothing is run."""
    for name in ("task_id", "prompt", "entry_point"):
        if not isinstance(row.get(name), str):
            return f"has no {name}" if row.get(name) is None else f"its {name} is not a text"
    if not row["task_id"].strip():
        return "its task_id is empty"
    if not row["entry_point"].isidentifier() or keyword.iskeyword(row["entry_point"]):
        return f"its entry_point {row['entry_point']!r} is no name of a function"
    rate = row.get("pass_rate")  # of the SFT model, as `grade` found it
    if rate is not None and not (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1):
        return f"its pass_rate {rate!r} is not a number between 0 and 1"
    for name in TEXTS:
        if row.get(name) is not None and not isinstance(row[name], str):
            return f"its {name} is not a text"
    return fault_of_tests(row) or fault_of_inputs(row) or fault_of_setup(row)


def fault_of_tests(row: dict) -> str:
    tests = row.get("tests") or []
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        return "its tests are not a list of texts"
    if not any(row.get(name) for name in ("tests", "check", "base_input", "plus_input")):
        return "has no tests"
    for number, test in enumerate(tests, 1):
        try:
            tree = ast.parse(test)
        except (SyntaxError, ValueError):
            return f"its test {number} is no Python"
        if not asserts(tree):
            return f"its test {number} asserts nothing: {shorten(test)}"
    if row.get("check"):
        try:
            tree = ast.parse(row["check"])
        except (SyntaxError, ValueError):
            return "its check is no Python"
        if not any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
            return "its check defines no function check(candidate)"
        if not asserts(tree):
            return "its check asserts nothing"
    return ""


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


def fault_of_inputs(row: dict) -> str:
    for name in ("base_input", "plus_input"):
        given = row.get(name)
        if given and (not isinstance(given, list) or not all(isinstance(item, list) for item in given)):
            return f"its {name} is not a list of lists of arguments"
        if given and not row.get("reference"):
            return f"has {name} and no reference to tell what is expected"
    return ""


def fault_of_setup(row: dict) -> str:
    """The tests run after the setup: what it names as the entry point would be judged in place of the answer."""
    try:
        tree = ast.parse(row.get("setup") or "")
    except (SyntaxError, ValueError):
        return "its setup is no Python"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = {node.name}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
        if row["entry_point"] in names:
            return f"its setup defines {row['entry_point']}, which the answer is to define"
    return ""


def shorten(text: str) -> str:
    one = " ".join(text.split())
    return one if len(one) <= 80 else one[:77] + "..."
