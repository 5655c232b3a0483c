"""Assertions and check functions, run in the judge and counted one by one.

A task's `tests` are source strings, each a test. Its `check` is OpenAI HumanEval's: a source that defines
`check(candidate)`; every assert statement in it becomes a test by itself, and a failing one does not end the rest. An
assert of a constant is none: anything would earn it.

A free name of a test is, in this order: a builtin; a module of the standard library, the judge's own; a function that
the task's prompt defines in full beside the entry point (`encode_cyclic`), the judge's own copy; and else whatever the
submission defines. The entry point always is the submission's, whatever else has its name (MBPP has a `sum`). So a
submission cannot shadow what a test relies on.
"""

import ast
import builtins
import sys
from types import CodeType
from typing import TYPE_CHECKING, Any

from jobs.sandbox.codec import Malformed

if TYPE_CHECKING:
    from jobs.sandbox.judge import Counts

BUILTINS = frozenset(dir(builtins))
# Modules of the standard library with nothing of the outside in them; a test may use one that the submission imported.
MODULES = frozenset({
    "bisect", "calendar", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "sys", "typing",
})  # fmt: skip


def imports(code: str) -> str:
    """The lines of `code` that may import something."""
    return "\n".join(line for line in code.replace("\\\n", " ").splitlines() if "import" in line)


class Suite:
    """The tests of one task, compiled."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.entry_point: str = record["entry_point"]
        setup = ast.parse(record.get("setup") or "")
        self.check: CodeType | None = None
        self.tests: list[CodeType] = []
        if record.get("check"):
            tree = Counting().visit(ast.parse(record["check"]))
            self.total = Counting.count_of(tree)
            trees = [tree]
            self.check = compile(ast.fix_missing_locations(tree), "<check>", "exec")
        else:
            trees = [ast.parse(source) for source in record["tests"]]
            self.tests = [compile(tree, "<test>", "exec") for tree in trees]
            self.total = len(self.tests)
        if not self.total:
            raise KeyError("no tests")
        self.setup = compile(setup, "<setup>", "exec") if setup.body else None
        sources = [record.get("setup"), record.get("check"), *record.get("tests", [])]
        self.imports = imports("\n".join(filter(None, sources)))  # what tests hand over may be of these modules' types
        needed = free([setup, *trees])
        helpers = prompt_helpers(record.get("prompt") or "", self.entry_point, needed)
        self.helpers = compile(helpers, "<prompt>", "exec") if helpers else None
        own = {name for node in helpers.body for name in bound(node)} if helpers else set()
        self.modules = sorted((needed & MODULES) - {self.entry_point} - own)
        self.names = sorted((needed - BUILTINS - MODULES - own - {"__tests__", "__error__"}) | {self.entry_point})

    def run(self, found: dict[str, Any], counts: "Counts") -> None:
        """Marks each test in `counts`. `found` are the submission's names. Errors: Lost; what setup or check raises."""
        space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        for name in self.modules:
            __import__(name)
            space[name] = sys.modules[name]
        if self.helpers:
            exec(self.helpers, space)
        space.update(found)
        if self.setup:
            exec(self.setup, space)
        if self.check:
            self.run_check(space, counts)
            return
        for i, test in enumerate(self.tests):
            try:
                exec(test, space)
                counts.passed[i] = True
            except Malformed:
                raise
            except Exception as error:
                note(counts, f"test {i + 1}", error)

    def run_check(self, space: dict[str, Any], counts: "Counts") -> None:
        marks = Marks(self.total)
        space["__tests__"] = marks
        exec(self.check, space)  # type: ignore[arg-type]
        ended = False
        try:
            space["check"](space[self.entry_point])
            ended = True
        except Malformed:
            raise
        except Exception as error:
            note(counts, "check", error)
        finally:
            # One that check() never came to is passed if check() ended by itself: it decided so.
            counts.passed[:] = [not bad and (ended or n > 0) for n, bad in zip(marks.seen, marks.bad, strict=True)]
            for i, raised in marks.errors:
                note(counts, f"test {i + 1}", raised)


class Marks:
    """What the rewritten asserts of a check function report to."""

    def __init__(self, total: int) -> None:
        self.seen, self.bad = [0] * total, [False] * total
        self.errors: list[tuple[int, Exception | None]] = []

    def open(self, i: int) -> bool:
        return not self.bad[i]

    def mark(self, i: int, value: Any) -> None:
        if value:
            self.seen[i] += 1
        else:
            self.error(i, None)

    def error(self, i: int, error: Exception | None) -> None:
        if isinstance(error, Malformed):
            raise error
        self.bad[i] = True
        self.errors.append((i, error))


class Counting(ast.NodeTransformer):
    """`assert TEST, MESSAGE` as: if not yet failed, note whether TEST holds or what it raises, and go on."""

    def __init__(self) -> None:
        self.number = 0

    @staticmethod
    def count_of(tree: ast.AST) -> int:
        return sum(isinstance(node, ast.If) and hasattr(node, "counted") for node in ast.walk(tree))

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant):
            return node
        i, self.number = self.number, self.number + 1
        lines = (f"if __tests__.open({i}):", " try:", f"  __tests__.mark({i}, 0)", " except Exception as __error__:",
                 f"  __tests__.error({i}, __error__)")  # fmt: skip
        report: Any = ast.parse("\n".join(lines)).body[0]
        report.body[0].body[0].value.args[1] = node.test
        report.counted = True
        return report


def note(counts: "Counts", where: str, error: Exception | None) -> None:
    from jobs.sandbox.judge import line

    if not counts.error:
        wrong = error is None or (isinstance(error, AssertionError) and not error.args)
        counts.error = f"{where}: a wrong answer" if wrong else f"{where}: {line(error)}"  # type: ignore[arg-type]


def bound(node: ast.AST) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def free(trees: list[ast.Module]) -> set[str]:
    """Names that the tests load and do not bind at their top level, plus what local names cannot be told from them."""
    loads = {node.id for tree in trees for node in ast.walk(tree)
             if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}  # fmt: skip
    return loads - {name for tree in trees for node in tree.body for name in bound(node)}


def prompt_helpers(prompt: str, entry_point: str, needed: set[str]) -> ast.Module | None:
    """The prompt's own functions and imports, if a test needs one of them."""
    try:
        tree = ast.parse(prompt)
    except (SyntaxError, ValueError):
        return None  # a prompt in words
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != entry_point]
    if not needed & {node.name for node in functions}:
        return None
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return ast.Module(body=[*imports, *functions], type_ignores=[])
