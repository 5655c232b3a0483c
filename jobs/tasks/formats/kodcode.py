"""KodCode (KodCode/KodCode-V1): synthetic tasks with pytest functions, CC BY-NC 4.0: not for commercial use.

question, solution, test (or test_code: `from solution import f`, then test functions), test_info (function_name and
function_declaration), gpt_difficulty. Each test function becomes a test; what needs pytest is left out.
"""

import ast

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import parsed, solves, text

LICENSE = "CC-BY-NC-4.0"


def convert(row: dict) -> Converted:
    info = parsed(row.get("test_info") or [], "test_info")
    if (
        not isinstance(info, list)
        or len(info) != 1
        or not isinstance(info[0], dict)
        or not info[0].get("function_name")
    ):
        raise ValueError("its tests do not call one function of its own")
    name, solution = info[0]["function_name"], text(row, "solution")
    try:
        tree = ast.parse(text(row, "test", "test_code"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("its test is no Python") from None
    tests, setup = [], []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "solution":
            if [alias.name for alias in node.names] != [name] or node.names[0].asname:
                raise ValueError("its tests import more than the function")
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            if node.args.args or node.decorator_list:
                raise ValueError("its tests need pytest")
            tests.append(f"{ast.unparse(node)}\n{node.name}()")
        elif not (isinstance(node, ast.Import) and [alias.name for alias in node.names] == ["pytest"]):
            setup.append(node)
    if any(isinstance(node, ast.Name) and node.id == "pytest" for node in ast.walk(tree)):
        raise ValueError("its tests need pytest")
    if not tests:
        raise ValueError("has no tests")
    declared = info[0].get("function_declaration") or f"def {name}"
    fields = {
        "prompt": f"{text(row, 'question').strip()}\n\nWrite the function `{declared.rstrip(':')}`.",
        "entry_point": name,
        "setup": "\n".join(ast.unparse(node) for node in setup),
        "tests": tests,
    }
    if row.get("gpt_difficulty"):
        fields["difficulty"] = row["gpt_difficulty"]
    return fields, [solution] if solves(solution, name) else []
