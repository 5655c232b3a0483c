"""Tasks out of the rows of the official files: OpenAI's HumanEval, evalplus's HumanEval+ and MBPP+, Google's MBPP."""

import ast
import warnings

from jobs.common.task import UNPARSED

INPUTS = "base_input", "plus_input", "atol", "contract"


def task_of(row: dict, version: str = "") -> dict:
    """The task (jobs/common/task.py) that an official row is; a row of no official form is returned as it is.

    version: evalplus's, for `source`. What it makes is not checked yet: the reader does that.
    Errors: ValueError with the field of an official row that nothing can be made of.
    """
    if "canonical_solution" in row:
        return mbpp_plus(row, version) if "assertion" in row else humaneval(row, version)
    return mbpp(row) if "test_list" in row else row


def text(row: dict, name: str) -> str:
    """Errors: ValueError with the field, if it is missing or no text."""
    if not isinstance(row.get(name), str):
        raise ValueError(f"has no {name}" if row.get(name) is None else f"its {name} is not a text")
    return row[name]


def humaneval(row: dict, version: str) -> dict:
    plus = "plus_input" in row
    return {
        "task_id": text(row, "task_id"),
        "prompt": text(row, "prompt"),
        "entry_point": text(row, "entry_point"),
        "setup": "",
        "tests": [],
        "check": row.get("test"),
        **{name: row[name] for name in INPUTS if name in row},
        "reference": row["prompt"] + text(row, "canonical_solution"),
        "source": f"HumanEval+ {version}".strip() if plus else "HumanEval",
        "license": "MIT, Apache-2.0" if plus else "MIT",
    }


def mbpp_plus(row: dict, version: str) -> dict:
    """Its tests are evalplus's corrected assertions: MBPP's own at times name another function or expect otherwise."""
    lines: dict[bool, list[str]] = {False: [], True: []}
    try:
        tree = ast.parse(text(row, "assertion"))
    except UNPARSED:
        raise ValueError("its assertion is no Python") from None
    for node in tree.body:
        lines[isinstance(node, ast.Assert)].append(ast.get_source_segment(row["assertion"], node) or "")
    return {
        "task_id": text(row, "task_id"),
        "prompt": text(row, "prompt"),
        "entry_point": text(row, "entry_point"),
        "setup": "\n".join(lines[False]),
        "tests": lines[True],
        **{name: row[name] for name in INPUTS if name in row},
        "reference": row["prompt"] + text(row, "canonical_solution"),
        "source": f"MBPP+ {version}".strip(),
        "license": "CC-BY-4.0, Apache-2.0",
    }


def mbpp(row: dict) -> dict:
    """Its entry point is "" where the tests do not agree on one, and its prompt shows one assertion, as evalplus's do."""
    statement = text(row, "text").strip()
    code = text(row, "code").replace("\r\n", "\n").rstrip() + "\n"
    if not isinstance(row["test_list"], list) or not all(isinstance(test, str) for test in row["test_list"]):
        raise ValueError("its test_list is not a list of texts")
    tests = [test.replace("\r\n", "\n").strip() for test in row["test_list"]]
    return {
        "task_id": f"Mbpp/{row.get('task_id')}",
        "prompt": f'"""\n{statement}\n{tests[0] if tests else ""}\n"""\n',
        "entry_point": entry_point(code, tests),
        "setup": text(row, "test_setup_code").replace("\r\n", "\n"),
        "tests": tests,
        "reference": code,
        "source": "MBPP",
        "license": "CC-BY-4.0",
    }


def entry_point(code: str, tests: list[str]) -> str:
    """The outermost function of `code` that all `tests` call, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in regular expressions
            names = {node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            called = [
                [
                    node.func.id
                    for node in ast.walk(ast.parse(test))
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
                ]
                for test in tests
            ]
    except UNPARSED:
        return ""
    common = [name for name in called[0] if all(name in others for others in called)] if called else []
    return common[0] if common else ""
