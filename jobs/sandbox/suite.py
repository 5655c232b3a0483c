"""Assertions and check functions, run in the judge and counted one by one.

A task's `tests` are source strings, each a test. Its `check` is OpenAI HumanEval's: a source that defines
`check(candidate)`; every assert statement that stands in it becomes a test by itself, and a failing one does not end the
rest. An assert in a helper, in a `with`, or in a `try` that may catch it stays as it is. A check without an assert is
one test. An assert of a constant is none: anything would earn it.

A run has one outcome: a check that ends in an exception has failed, whatever asserts held before.
"""

import ast
import builtins
import re
import sys
from types import CodeType
from typing import Any

from jobs.sandbox.names import BUILTINS, MODULES, Misused, bound, free, from_prompt, imports, own_process
from jobs.sandbox.protocol import Malformed
from jobs.sandbox.verdict import Counts, is_exhausted, line

OWN = frozenset({"__tests__", "__error__"})


class Suite:
    """The tests of one task, compiled. `unsupported`: why they cannot be judged; "" if they can."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.entry_point: str = record["entry_point"]
        self.of_class = is_class(record)
        setup = ast.parse(record.get("setup") or "")
        self.check: CodeType | None = None
        self.tests: list[CodeType] = []
        entry = {self.entry_point}
        if record.get("check"):
            tree = ast.parse(record["check"])
            self.sites = count_asserts(tree)
            self.total = max(1, self.sites)
            entry |= {node.args.args[0].arg for node in tree.body if is_check(node) and node.args.args}
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
        self.unsupported = own_process([setup, *trees])
        self.resolve(record.get("prompt") or "", [setup, *trees], entry)

    def resolve(self, prompt: str, trees: list[ast.Module], entry: set[str]) -> None:
        """Settles where each free name of the tests comes from; see names.py."""
        defined = {name for node in trees[0].body for name in bound(node)}
        needed = set().union(*(free(tree) for tree in trees)) - OWN - defined
        helpers = from_prompt(prompt, self.entry_point, needed)
        own: set[str] = set()
        classes: set[str] = set()
        if helpers:
            classes = {node.name for node in helpers.body if isinstance(node, ast.ClassDef)}
            own = {name for node in helpers.body for name in bound(node)} - classes
            needed |= free(helpers)
            trees = [*trees, helpers]
        self.helpers = compile(helpers, "<prompt>", "exec") if helpers else None
        self.modules = sorted((needed & MODULES) - {self.entry_point} - own - defined)
        supplied = needed - BUILTINS - MODULES - own - {self.entry_point} | (needed & classes)
        misused = Misused(supplied, entry, trees).found if supplied else set()
        if misused:
            names = ", ".join(sorted(misused)[:5])
            self.unsupported = f"its tests take {names} from the submission, for neither they nor the prompt define it"
        self.names = sorted(supplied | {self.entry_point})

    def run(self, found: dict[str, Any], counts: Counts) -> None:
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

    def run_check(self, space: dict[str, Any], counts: Counts) -> None:
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
            counts.passed[:] = marks.passed(ended)
            for i, raised in marks.errors:
                note(counts, f"test {i + 1}", raised)


class Marks:
    """What the rewritten asserts of a check function report to."""

    def __init__(self, total: int) -> None:
        self.seen, self.bad = [0] * total, [False] * total
        self.last = 0
        self.errors: list[tuple[int, Exception | None]] = []

    def open(self, i: int) -> bool:
        self.last = i
        return not self.bad[i]

    def mark(self, i: int, value: Any) -> None:
        if value:
            self.seen[i] += 1
        else:
            self.error(i, None)

    def error(self, i: int, error: Exception | None) -> None:
        if error is not None and (isinstance(error, Malformed) or is_exhausted(error)):
            raise error
        self.bad[i] = True
        self.errors.append((i, error))

    def passed(self, ended: bool) -> list[bool]:
        """A flag for each assert: whether its test is passed. ended: whether check() returned, rather than was cut short.

        An assert that was never reached, as in a branch not taken, is passed if check() returned. If check() was cut
        short, such an assert has failed. If it was cut short and every assert had held, as within a loop, the last one
        reached has failed.
        """
        flags = [not bad and (ended or seen > 0) for seen, bad in zip(self.seen, self.bad, strict=True)]
        if not ended and all(flags):
            flags[self.last] = False
        return flags


def is_check(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "check"


def is_class(record: dict[str, Any]) -> bool:
    """Whether the task is to write a class: as its reference does, or else as its name is spelled."""
    name = re.escape(record["entry_point"])
    reference = record.get("reference") or ""
    if re.search(rf"^(class|def|async def)\s+{name}\b|^{name}\s*=", reference, re.MULTILINE):
        return bool(re.search(rf"^class\s+{name}\b", reference, re.MULTILINE))
    return record["entry_point"][:1].isupper()


def count_asserts(tree: ast.Module) -> int:
    """Makes each assert that stands in check() itself count, and not end the run; how many there are."""
    counting = Counting()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and is_check(node):
            node.body = counting.statements(node.body)
    return counting.number


class Counting:
    """`assert TEST, MESSAGE` as: if not yet failed, note whether TEST holds or what it raises, and go on."""

    def __init__(self) -> None:
        self.number = 0

    def statements(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return [self.statement(node) for node in body]

    def statement(self, node: ast.stmt) -> ast.stmt:
        if isinstance(node, ast.Assert):
            return node if isinstance(node.test, ast.Constant) else self.counted(node)
        if isinstance(node, (ast.If, ast.For, ast.While)):
            node.body, node.orelse = self.statements(node.body), self.statements(node.orelse)
        elif isinstance(node, ast.Try):
            if not node.handlers:
                node.body = self.statements(node.body)
            node.orelse, node.finalbody = self.statements(node.orelse), self.statements(node.finalbody)
        return node

    def counted(self, node: ast.Assert) -> ast.stmt:
        i, self.number = self.number, self.number + 1
        lines = (f"if __tests__.open({i}):", " try:", f"  __tests__.mark({i}, 0)", " except Exception as __error__:",
                 f"  __tests__.error({i}, __error__)")  # fmt: skip
        report: Any = ast.parse("\n".join(lines)).body[0]
        report.body[0].body[0].value.args[1] = node.test
        return report


def note(counts: Counts, where: str, error: Exception | None) -> None:
    if not counts.error:
        wrong = error is None or (isinstance(error, AssertionError) and not error.args)
        counts.error = f"{where}: a wrong answer" if wrong else f"{where}: {line(error)}"  # type: ignore[arg-type]
