"""KodCode (KodCode/KodCode-V1): synthetic tasks with pytest functions, CC BY-NC 4.0: not for commercial use.

question, solution, test (or test_code, as in its repository: test functions, mostly after `from solution import f`),
test_info (function_name, function_declaration, parameter_list and docstring of each function of the solution),
gpt_difficulty. Each test function becomes a test; what needs pytest is left out.
"""

import ast

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import parsed, solves, text

LICENSE = "CC-BY-NC-4.0"


def convert(row: dict) -> Converted:
    solution = text(row, "solution")
    try:
        tree = ast.parse(text(row, "test", "test_code"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("its test is no Python") from None
    infos = described(row.get("test_info"))
    name = tested(tree, infos)
    tests, setup = [], []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "solution":
            continue
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            if node.args.args or node.decorator_list:
                raise ValueError("its tests need pytest")
            tests.append(f"{ast.unparse(node)}\n{node.name}()")
        elif not runs_the_tests(node) and [alias.name for alias in getattr(node, "names", [])] != ["pytest"]:
            setup.append(node)
    if any(isinstance(node, ast.Name) and node.id == "pytest" for node in ast.walk(tree)):
        raise ValueError("its tests need pytest")
    if not tests:
        raise ValueError("has no tests")
    declared = declaration(infos, name)
    fields = {
        "prompt": f"{text(row, 'question').strip()}\n\nWrite the function `{declared.rstrip(':')}`.",
        "entry_point": name,
        "setup": "\n".join(ast.unparse(node) for node in setup),
        "tests": tests,
    }
    if row.get("gpt_difficulty"):
        fields["difficulty"] = row["gpt_difficulty"]
    return fields, [solution] if solves(solution, name) else []


def tested(tree: ast.Module, infos: list[dict]) -> str:
    """The one function of the solution that the tests import, or call without an import. Errors: ValueError."""
    found = [alias for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "solution"
             for alias in node.names]  # fmt: skip
    names = {alias.name for alias in found}
    if not found:
        own = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names = {info["function_name"] for info in infos} & used - own
    if len(names) != 1 or any(alias.asname or alias.name == "*" for alias in found):
        raise ValueError("its tests do not call one function of the solution")
    return names.pop()


def runs_the_tests(node: ast.stmt) -> bool:
    """Whether a top-level statement is what a script ends with: a call of the tests, or all that is under __main__."""
    if isinstance(node, ast.If):
        return any(isinstance(inner, ast.Name) and inner.id == "__name__" for inner in ast.walk(node.test))
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id.startswith("test")


def described(value: object) -> list[dict]:
    """What test_info says of each function of the solution; nothing where it is missing."""
    found = parsed(value or [], "test_info")
    if not isinstance(found, list) or not all(
        isinstance(info, dict) and isinstance(info.get("function_name"), str) for info in found
    ):
        raise ValueError("its test_info is no list of functions")
    return found


def declaration(infos: list[dict], name: str) -> str:
    lines = [info.get("function_declaration") for info in infos if info["function_name"] == name]
    return str(lines[0]) if lines and lines[0] else f"def {name}"
