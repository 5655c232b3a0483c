"""LeetCodeDataset (newfacade/LeetCodeDataset, version 0.3.1): problems of LeetCode with a class Solution.

problem_description, starter_code, prompt (imports and helpers), completion, entry_point as "Solution().name", test (a
function check(candidate) of assertions), difficulty, estimated_date. The assertions are read, not run: calls with plain
arguments, and lists and trees of nodes by the data set's own helpers.
"""

import ast
import math
from typing import Any

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import method, text

LICENSE = "Apache-2.0"
MAKERS = {"list_node": "ListNode", "tree_node": "TreeNode"}
SAME = {"is_same_list": "ListNode", "is_same_tree": "TreeNode"}


def convert(row: dict) -> Converted:
    starter, entry = text(row, "starter_code"), text(row, "entry_point")
    name = entry.removeprefix("Solution().")
    if name == entry or not name.isidentifier():
        raise ValueError(f"its entry_point {entry!r} is no method of Solution")
    names = parameters(starter, name)
    found = [read(node, names) for node in assertions(text(row, "test"))]
    shapes = {(tuple(kinds), result) for _, _, kinds, result in found}
    fields = method(text(row, "problem_description"), name, starter, [(given, value) for given, value, _, _ in found])
    if shapes != {((None,) * len(names), None)}:
        fields["shapes"] = common_shapes(shapes, len(names))
        if fields["shapes"]["result"]:  # no node is written as the empty list
            fields["calls"] = [{**call, "expected": call["expected"] or []} for call in fields["calls"]]
    for field, column in (("difficulty", "difficulty"), ("date", "estimated_date")):
        if row.get(column):
            fields[field] = str(row[column]).lower()[:10]
    prompt = row.get("prompt") or ""
    return fields | {"prelude": imports(prompt)}, [text(row, "completion")]


def common_shapes(found: set, count: int) -> dict:
    """One shape for each argument and the result: a call with None in a place says nothing of it."""

    def only(kinds: set) -> str | None:
        if len(kinds - {None}) > 1:
            raise ValueError("has tests that take one argument for different things")
        return next(iter(kinds - {None}), None)

    return {
        "arguments": [only({kinds[i] for kinds, _ in found}) for i in range(count)],
        "result": only({result for _, result in found}),
    }


def imports(prompt: str) -> str:
    """The prompt's import statements, and the name that its tests and answers take for infinity."""
    try:
        body = ast.parse(prompt).body
    except (SyntaxError, ValueError):
        raise ValueError("its prompt is no Python") from None
    lines = [ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join([*lines, "inf = float('inf')", ""])


def parameters(starter: str, name: str) -> list[str]:
    try:
        tree = ast.parse(starter.rstrip() + "\n        pass\n")
    except (SyntaxError, ValueError):
        raise ValueError("its starter_code is no Python") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [argument.arg for argument in node.args.args][1:]
    raise ValueError(f"its starter_code has no method {name}")


def assertions(source: str) -> list[ast.expr]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("its test is no Python") from None
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks or not checks[0].body or not all(isinstance(node, ast.Assert) for node in checks[0].body):
        raise ValueError("its test is no check function of assertions alone")
    return [node.test for node in checks[0].body if isinstance(node, ast.Assert)]


def read(test: ast.expr, names: list[str]) -> tuple[list, Any, list[str | None], str | None]:
    """(arguments, expected, shapes of the arguments, shape of the result) of an assertion."""
    result: str | None = None
    match test:
        case ast.Compare(left=ast.Call(func=ast.Name(id="candidate")) as made, ops=[ast.Eq()], comparators=[right]):
            expected = right
        case ast.Call(func=ast.Name(id=same), args=[ast.Call(func=ast.Name(id="candidate")) as made, right]) if (
            same in SAME
        ):
            result, expected = SAME[same], right
        case _:
            raise ValueError(f"has a test of another kind: {ast.unparse(test)[:60]}")
    given = dict(zip(names, made.args, strict=False)) | {word.arg: word.value for word in made.keywords}
    if sorted(given, key=str) != sorted(names):
        raise ValueError("has a test with other arguments than the starter code")
    values = [plain(given[name]) for name in names]
    value, kind = plain(expected)
    if kind and kind != result:
        raise ValueError("compares nodes without a helper")
    return [item for item, _ in values], value, [shape for _, shape in values], result


class Infinities(ast.NodeTransformer):
    """Puts numbers for the name `inf`, which the data set's own prompts define."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(math.inf) if node.id == "inf" else node


def plain(node: ast.expr) -> tuple[Any, str | None]:
    """The plain value of an argument, and which nodes it stands for. Errors: ValueError for anything else."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in MAKERS
        and len(node.args) == 1
    ):
        return plain(node.args[0])[0], MAKERS[node.func.id]
    try:
        return ast.literal_eval(Infinities().visit(node)), None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"has a value that is not plain: {ast.unparse(node)[:60]}") from None
