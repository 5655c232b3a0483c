"""Where the free names of a task's tests come from, so that a submission cannot shadow what a test relies on.

A test's name is what the test, the setup or the prompt defines, a builtin, a module of the standard library, or the
entry point, which is the submission's. The prompt's functions, imports and constants are the judge's own copies. Any
other name only the submission could supply. It may then make arguments of the entry point (`f([Pair(1, 2)])`) and build
on them (`root.left = Node(2)`), and its objects' attributes may be looked at. Whatever decides a test must not come from
there: such a task is unsupported.
"""

import ast
import builtins
import dis
import importlib
import sys
from types import CodeType

BUILTINS = frozenset(dir(builtins)) | {"__file__", "__name__"}
# Modules of the standard library with nothing of the outside in them; a test may use one that the submission imported.
MODULES = frozenset({
    "bisect", "calendar", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "sys", "typing",
})  # fmt: skip


def imports(code: str) -> str:
    """The lines of `code` that may import something."""
    return "\n".join(line for line in code.replace("\\\n", " ").splitlines() if "import" in line)


def bound(node: ast.AST) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        return set(dir(importlib.import_module(node.module))) if node.module in sys.stdlib_module_names else set()
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    inner = (n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)))
    names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    caught = {n.name for n in ast.walk(node) if isinstance(n, ast.ExceptHandler) and n.name}
    return names.union(caught, *(bound(n) for n in inner if n is not node))


def free(tree: ast.Module) -> set[str]:
    """The names that a module takes from outside itself, as the compiler sees them."""
    found: set[str] = set()
    todo: list[CodeType] = [compile(tree, "<names>", "exec")]
    while todo:
        code = todo.pop()
        todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        loads = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
        stores = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_NAME"}
        found |= loads - stores
    return found - {name for node in tree.body for name in bound(node)} - {"__annotations__"}


class Misused(ast.NodeVisitor):
    """The names of `supplied` that do more than make arguments of the entry point."""

    def __init__(self, supplied: set[str], entry: set[str], trees: list[ast.Module]) -> None:
        self.supplied, self.entry = supplied, entry
        self.found: set[str] = set()
        self.made: dict[str, str] = {}  # variables that hold what a supplied name has made, and that name
        self.depth = 0  # of arguments of the entry point, or of a supplied name, that surround a node
        for _ in range(2):  # a variable may be used before the line that makes it, in a loop or a function
            for tree in trees:
                self.visit(tree)

    def origin(self, node: ast.AST) -> str:
        """The supplied name that `node` is, or that made it; "" if there is none."""
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        if isinstance(node, ast.Name):
            return node.id if node.id in self.supplied else self.made.get(node.id, "")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.supplied:
            return node.func.id
        if isinstance(node, (ast.List, ast.Tuple)):
            return next(filter(None, map(self.origin, node.elts)), "")
        return ""

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called in self.supplied and not self.depth:
            self.found.add(called)  # unless an assignment around it has seen it first
        if called in self.entry or called in self.supplied:
            self.depth += 1
            for child in (*node.args, *node.keywords):
                self.visit(child)
            self.depth -= 1
            return
        if isinstance(node.func, ast.Attribute) and self.origin(node.func):
            self.found.add(self.origin(node.func))
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        name = self.origin(node.value)
        if name:
            for target in node.targets:
                for inner in ast.walk(target):
                    if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                        self.made[inner.id] = name
        self.depth += bool(name)
        self.visit(node.value)
        self.depth -= bool(name)
        for target in node.targets:
            if not self.origin(target):
                self.visit(target)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not (self.origin(node) and isinstance(node.value, (ast.Name, ast.Attribute))):
            self.generic_visit(node)
        elif not self.depth and isinstance(node.value, ast.Name) and node.value.id in self.supplied:
            self.found.add(node.value.id)  # an attribute of the class or module itself

    def visit_Name(self, node: ast.Name) -> None:
        if not self.depth and isinstance(node.ctx, ast.Load) and self.origin(node):
            self.found.add(self.origin(node))


# What a test does in its own process alone, where the submission is not: it would see nothing, or change nothing.
STREAMS = {"redirect_stdout", "redirect_stderr", "capsys", "capfd"}
PATCHES = {"patch", "monkeypatch"}
SYSTEM = {"stdin", "stdout", "stderr", "argv"}
LOOKS = {"signature", "getsource", "getfullargspec", "getmembers", "isgeneratorfunction", "iscoroutinefunction"}


def own_process(trees: list[ast.Module]) -> str:
    """Why the tests need the submission in their own process, "" if they do not."""
    for node in (node for tree in trees for node in ast.walk(tree)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        owner = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if name in STREAMS or (stored and owner == "sys" and name in SYSTEM):
            return f"its tests catch or feed a stream ({name}), which is another in the submission's process"
        if stored and owner == "builtins":
            return f"its tests replace {name}, which stays as it is in the submission's process"
        if owner == "inspect" and name in LOOKS:
            return f"its tests look at the submission's code (inspect.{name})"
        if name in PATCHES and (owner in ("", "mock") and imported(trees, name, owner)):
            return f"its tests replace what the submission calls ({name})"
    return ""


def imported(trees: list[ast.Module], name: str, owner: str) -> bool:
    """Whether `name`, or its `owner` where there is one, comes from unittest.mock or is pytest's own."""
    wanted = owner or name
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return any(isinstance(node, ast.arg) and node.arg == wanted == "monkeypatch" for node in nodes) or any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("unittest")
        and wanted in {alias.asname or alias.name for alias in node.names}
        for node in nodes
    )


def from_prompt(prompt: str, entry_point: str, needed: set[str]) -> ast.Module | None:
    """The prompt's own imports, functions, classes and constants, if a test needs one of them."""
    try:
        tree = ast.parse(prompt)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # a prompt in words
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    body: list[ast.stmt] = [node for node in tree.body if isinstance(node, kinds) and entry_point not in bound(node)]
    if not any(needed & bound(node) for node in body):
        return None
    return ast.Module(body=body, type_ignores=[])
