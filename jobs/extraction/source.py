"""Python source as extraction needs it: does it compile, what does it bind, what does a function need.

Everything here parses text that a model wrote: only jobs/extraction/worker.py, which has limits, may call it.
"""

import ast
import builtins
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)
BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__"}
# Calls of a module's functions set something up (random.seed), but for these, which try out, show or end a program.
TRIALS = frozenset({"exit", "main", "print", "pprint", "run", "show", "sleep", "testmod", "timeit", "write"})


@lru_cache(maxsize=256)
def parse(source: str) -> ast.Module | None:
    """The syntax tree of a text that compiles as a module, or None."""
    return tree_or_line(source)[0]


@lru_cache(maxsize=256)
def tree_or_line(source: str) -> tuple[ast.Module | None, int]:
    """(tree, 0), or (None, the line from 1 where compiling fails). Texts that Python gives up on fail at line 1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
            compile(tree, "solution", "exec", dont_inherit=True)
    except SyntaxError as error:
        return None, error.lineno or 1
    except (ValueError, RecursionError, OverflowError, MemoryError):  # the last: nested too deeply for the parser
        return None, 1
    return tree, 0


def lines_of(source: str) -> list[str]:
    """The lines with their ends, as Python counts them: str.splitlines would also split at form feeds."""
    parts = source.split("\n")
    return [f"{part}\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def cut(program: str) -> str:
    """The program's first lines, as many as compile: a statement cut in its middle goes, what came before stays."""
    lines = lines_of(program)
    while lines and (wrong := tree_or_line("".join(lines))[1]):
        del lines[min(len(lines), wrong) - 1 :]
    return "".join(lines)


def in_scope(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what lies in it, without what lies inside functions and classes."""
    todo = [node]
    while todo:
        current = todo.pop()
        yield current
        if not isinstance(current, SCOPES):
            todo.extend(ast.iter_child_nodes(current))


def bound(statement: ast.AST) -> set[str]:
    """The names that a statement binds in the scope it stands in."""
    if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        return {statement.name}
    names: set[str] = set()
    for node in in_scope(statement):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
    return names


def binds(tree: ast.Module, entry_point: str) -> bool:
    return any(entry_point in bound(statement) for statement in tree.body)


def free(node: ast.AST) -> set[str]:
    """The names that a statement reads and does not itself bind: what must be there when it, or its function, runs."""
    names: set[str] = set()
    local: set[str] = set()
    for child in ast.iter_child_nodes(node):
        for inner in in_scope(child):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                names.add(inner.id)
            elif isinstance(inner, SCOPES):
                names |= free(inner)
    if isinstance(node, SCOPES) and not isinstance(node, ast.ClassDef):
        arguments = node.args
        local |= {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        local |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a}
        declared: set[str] = set()
        for statement in node.body if isinstance(node.body, list) else [node.body]:
            local |= bound(statement)
            for inner in in_scope(statement):
                if isinstance(inner, ast.Global):
                    declared |= set(inner.names)
        local -= declared
        names |= declared
        names -= local
        # Defaults, decorators and annotations are read outside the function.
        outside = [*arguments.defaults, *filter(None, arguments.kw_defaults), *getattr(node, "decorator_list", [])]
        outside += [
            a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.annotation
        ]
        outside += [node.returns] if getattr(node, "returns", None) else []  # type: ignore[union-attr]
        names |= {n.id for part in outside for n in ast.walk(part) if isinstance(n, ast.Name)}
    return names


def stub(node: ast.AST) -> bool:
    """Whether a function only says what it will do: nothing but docstring, pass, `...`, raise NotImplementedError."""
    return isinstance(node, FUNCTIONS) and all(
        isinstance(part, (ast.Pass, *FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom))
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or (isinstance(part, ast.Raise) and part.exc is not None and "NotImplemented" in ast.unparse(part.exc))
        for part in node.body
    )


def answers(node: ast.AST) -> bool:
    """Whether a function returns or yields something; what is no function is taken to."""
    if not isinstance(node, FUNCTIONS):
        return True
    return any(
        isinstance(inner, (ast.Yield, ast.YieldFrom)) or (isinstance(inner, ast.Return) and inner.value is not None)
        for statement in node.body
        for inner in in_scope(statement)
    )


def definitions(tree: ast.Module, entry_point: str) -> list[ast.stmt]:
    """The top-level statements that bind `entry_point`."""
    return [statement for statement in tree.body if entry_point in bound(statement)]


def span(statement: ast.stmt) -> tuple[int, int]:
    """First and last line, from 1, decorators included."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    return first, statement.end_lineno or statement.lineno


def text_of(source: str, statement: ast.stmt) -> str:
    first, last = span(statement)
    return "".join(lines_of(source)[first - 1 : last]).rstrip("\n") + "\n"


def drop(source: str, tree: ast.Module, statements: Iterable[ast.stmt]) -> str:
    """The source without these statements; those that share a line with one that stays, stay."""
    gone = {id(statement) for statement in statements}
    kept = {n for s in tree.body if id(s) not in gone for n in range(span(s)[0], span(s)[1] + 1)}
    lost = {n for s in tree.body if id(s) in gone for n in range(span(s)[0], span(s)[1] + 1)} - kept
    return "".join(line for number, line in enumerate(lines_of(source), 1) if number not in lost)


def roots(statement: ast.stmt) -> set[str]:
    """The names whose values a statement may change in place: of calls of methods, of stores to items or attributes."""
    names = set()
    for node in in_scope(statement):
        inner: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr not in TRIALS:
            inner = node.func
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            inner = node
        while isinstance(inner, (ast.Attribute, ast.Subscript, ast.Call)):
            inner = inner.func if isinstance(inner, ast.Call) else inner.value
        if isinstance(inner, ast.Name):
            names.add(inner.id)
    return names


def needed(statements: list[ast.stmt], names: set[str]) -> tuple[list[ast.stmt], set[str]]:
    """The statements that `names` hang on, and all the names that these bind or read."""
    wanted, found = set(names), set()
    changed = True
    while changed:
        changed = False
        for statement in statements:
            if id(statement) not in found and (bound(statement) & wanted):
                found.add(id(statement))
                wanted |= free(statement)
                changed = True
    return [s for s in statements if id(s) in found], wanted


def idle(tree: ast.Module, entry_point: str) -> list[ast.stmt]:
    """Top-level statements that `entry_point` does not need and that could fail or print: trials, tests, examples."""

    def harmless(statement: ast.stmt) -> bool:
        if isinstance(statement, FUNCTIONS):
            return not statement.decorator_list
        if isinstance(statement, ast.Assign):
            return isinstance(statement.value, ast.Constant)
        return is_text(statement) or isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass))

    if all(map(harmless, tree.body)):
        return []
    kept, wanted = needed(tree.body, {entry_point})
    essential = {id(statement) for statement in kept}
    imports = [s for s in tree.body if isinstance(s, (ast.Import, ast.ImportFrom))]
    modules = {name for statement in imports for name in bound(statement)}
    found = []
    for statement in tree.body:
        if harmless(statement) or id(statement) in essential:
            continue
        changed = roots(statement) & (wanted | modules)
        reads = free(statement)
        own = isinstance(statement, ast.Assign) and entry_point in changed  # an attribute of the function
        if not changed or "__name__" in reads or (entry_point in reads and not own):
            found.append(statement)
    return found


def hoist(program: str) -> str:
    """The program with its __future__ imports in front, where they must stand, however they are written."""
    if "__future__" not in program:
        return program
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return program
    found = [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__" and not s.level]
    first = next((i for i, s in enumerate(tree.body) if s not in found and not is_text(s)), len(tree.body))
    if not found or all(tree.body.index(s) < first for s in found):
        return program
    names = ", ".join(dict.fromkeys(alias.name for s in found for alias in s.names))
    lines = lines_of(program)
    for s in reversed(found):
        first_line, last_line = lines[s.lineno - 1], lines[(s.end_lineno or s.lineno) - 1]
        before = first_line.encode()[: s.col_offset].decode()
        after = last_line.encode()[s.end_col_offset :].decode().lstrip(" \t;")
        lines[s.lineno - 1 : s.end_lineno] = [before + after]
    return f"from __future__ import {names}\n" + "".join(lines)


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@lru_cache(maxsize=1024)
def preamble(prompt: str, entry_point: str) -> str:
    """The prompt's source except the entry point's definition; "" for a prompt that is not Python."""
    for end in ("", "\n    pass\n", "\n        pass\n"):
        source = prompt + end
        tree = parse(source)
        if tree is not None:
            kept = [s for s in tree.body if entry_point not in bound(s) and not is_text(s)]
            return "".join(text_of(source, statement) for statement in kept)
    return ""


def dedented(code: str) -> str:
    """The code moved to the left margin; a first line that lost its indentation alone gets it back."""
    moved = textwrap.dedent(code.expandtabs(4) if "\t" in code and " " in code else code)
    return moved.strip("\n") + "\n"
