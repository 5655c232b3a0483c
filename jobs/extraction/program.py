"""From what a model wrote to a program that tests can run: one function, the same for every model and benchmark.

Candidates are tried in the order that docs/extraction.md gives, and the program decides: the first that compiles and binds
the entry point is taken. Nothing is run. The texts are not trusted and Python's compiler can be made to work for hours:
jobs use it through worker.py, in a process with limits.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jobs.common.answer_format import left_margin
from jobs.extraction import source, text
from jobs.extraction.text import Piece

# What was done to find a program, in the order of the doing.
RULES = ("thinking", "tagged", "runs_on", "fenced", "joined", "unfenced", "cleaned", "whole", "body", "dedented", "cut",
         "trimmed", "tied", "too_hard")  # fmt: skip
Flaw = Literal["no_tags", "syntax_error", "wrong_entry_point", "too_hard"]


@dataclass(frozen=True)
class Extraction:
    """solution: the whole program; "" if there is none.

    flaw: what is wrong with it on sight. It explains a failure in the tests and never decides one: programs with a flaw
    are run like all others, and only "no_tags" leaves nothing to run. "too_hard": the limits ended the search.
    rule: those of RULES that found the program, joined by "+"; "" where none did. "tied" among them says that the
    answer holds another program as well, of which this one was preferred by the order of the candidates.
    """

    solution: str
    flaw: Flaw | None = None
    rule: str = ""


@dataclass(frozen=True)
class Candidate:
    """A program to be tried. first: of two definitions of the entry point the first counts, as what follows runs on."""

    program: str
    rules: tuple[str, ...]
    first: bool = False
    inside: tuple[str, ...] = ()


def extract(answer: str, prompt: str, entry_point: str, mode: str, truncated: bool = False) -> Extraction:
    """The program in `answer`, the model's answer to `prompt`, which asks for the function `entry_point`.

    mode: "cot" looks in solution tags alone, "plain" takes the answer as the prompt's continuation, or as a reply.
    truncated: whether the answer was cut at the token limit, or may have been. Only then is a function cut short that
    does not compile to its end; what stands after the function may be dropped from any answer.
    """
    source.parse.cache_clear()
    source.tree_or_line.cache_clear()
    search = Search(prompt, entry_point, truncated)
    plain = text.newlines(answer)
    pieces = list(search.pieces(plain, mode))
    if not pieces:
        return Extraction("", "no_tags")
    odd = text.cleaned(plain)
    others = [p for p in search.pieces(odd, mode) if odd != plain]
    for mend in (False, True):
        for number, piece in enumerate([*pieces, *others]):
            cleaned = ("cleaned",) if number >= len(pieces) else ()
            for candidate in search.programs(piece, mend):
                if found := search.take(candidate, cleaned):
                    return found
    return search.weak or search.flawed([piece for piece in pieces if not piece.inside], mode)


class Search:
    """One answer's candidates: what they are made of, and which is taken."""

    def __init__(self, prompt: str, entry_point: str, truncated: bool) -> None:
        self.prompt, self.entry_point, self.truncated = text.newlines(prompt), entry_point, truncated
        self.weak: Extraction | None = None  # the first that compiles, though it looks like no solution
        self.tied = False

    def pieces(self, answer: str, mode: str) -> Iterator[Piece]:
        """Where to look, in order. Nothing in mode "cot" without a solution tag."""
        for piece in text.after_thinking(Piece(answer)):
            complete, begun = text.solutions(piece)
            codes = {found.text.strip() for found in complete if not found.inside}
            self.tied = self.tied or sum(left_margin(code, self.entry_point) for code in codes) > 1
            for found in (*complete, *begun):
                yield from text.turns(found)
            if mode == "plain":
                yield from text.turns(piece)

    def programs(self, piece: Piece, mend: bool) -> Iterator[Candidate]:
        """The candidates of one piece: as it stands and in its fences, or, to mend it, its parts that compile."""
        marks = text.fences(piece.text)[: 4 * text.MOST]
        delimited = "tagged" in piece.rules
        if not mend:
            if not marks or piece.text[: marks[0][0]].strip():
                yield from self.forms(piece.text, piece, not delimited)
                if (bare := unquoted(piece.text.strip("\n"))) != piece.text.strip("\n"):
                    yield from self.forms(bare, piece, not delimited)
            if marks:
                head = piece.text[: marks[0][0]]
                yield from self.forms(head, piece, True, ("fenced",))
                found = blocks(piece.text, marks)
                yield from self.of_blocks(found, piece, ("fenced",))
                for block in found:
                    yield from self.forms(block, piece, False, ("fenced",))
                ends = [*(begin for begin, _, _ in marks[1:]), len(piece.text)]
                parts = [piece.text[marks[i][1] : ends[i]] for i in range(0, len(marks), 2)]  # of one function
                yield from self.forms("".join(parts), piece, False, ("fenced", "joined"))
            return
        head = piece.text[: marks[0][0]] if marks else piece.text
        yield from self.shortened(head, piece)
        if marks:
            raw = [part for block in blocks(piece.text, marks) for part in islands(block, self.truncated)]
            yield from self.of_blocks(raw, piece, ("fenced", "cut"))
            for block in blocks(piece.text, marks):
                yield from self.shortened(block, piece, ("fenced",))
        yield from self.of_blocks(islands(piece.text, self.truncated), piece, ("unfenced",), not delimited)

    def forms(self, code: str, piece: Piece, first: bool, rules: tuple[str, ...] = ()) -> Iterator[Candidate]:
        """The code as the whole function, moved to the margin if need be, or as the prompt's continuation."""
        bare = code.strip()
        if not bare:
            return
        inner = bare.strip("`")
        if bare in (f"`{inner}`", f"``{inner}``"):
            code = inner + "\n"
        moved = source.dedented(code)
        rules = piece.rules + rules
        for variant, more in ((code, ("whole",)), (moved, ("whole", "dedented"))):
            # By itself it must compile: an indented beginning would go on with the last of the prompt's helpers.
            if left_margin(variant, self.entry_point) and source.parse(variant):
                yield Candidate(self.whole(variant), (*rules, *more), False, piece.inside)
                break
        yield Candidate(source.hoist(self.prompt + code), (*rules, "body"), first, piece.inside)
        body = self.prompt + indented(moved)
        yield Candidate(body, (*rules, "body", "dedented"), first, piece.inside)
        lines = source.lines_of(code.lstrip("\n"))
        later = next((line for line in lines[1:] if line.strip()), "")
        if later[:1].isspace() and not lines[0][:1].isspace():  # the first line lost its indentation alone
            width = later[: len(later) - len(later.lstrip())]
            yield Candidate(self.prompt + width + "".join(lines), (*rules, "body", "dedented"), first, piece.inside)

    def whole(self, code: str) -> str:
        """The code after the prompt's imports and helpers."""
        return source.hoist(source.preamble(self.prompt, self.entry_point) + code)

    def of_blocks(
        self, found: list[str], piece: Piece, rules: tuple[str, ...], first: bool = False
    ) -> Iterator[Candidate]:
        """Programs of an answer's blocks: the last that defines the entry point, with what it needs of the others."""
        trees = [source.parse(block) for block in found]
        defining = [i for i, tree in enumerate(trees) if tree is not None and self.solves(tree)]
        if defining:
            self.tied = self.tied or len({found[i].strip() for i in defining}) > 1
            chosen = defining[0] if first else defining[-1]
            program, joined = self.join(found, chosen)
            more = ("joined",) if joined else ()
            yield Candidate(self.whole(program), (*piece.rules, *rules, *more, "whole"), first, piece.inside)
            if joined:
                yield Candidate(self.whole(found[chosen]), (*piece.rules, *rules, "whole"), first, piece.inside)

    def solves(self, tree: ast.Module) -> bool:
        return any(not source.stub(node) for node in source.definitions(tree, self.entry_point))

    def join(self, found: list[str], chosen: int) -> tuple[str, bool]:
        """The chosen block with the statements of other blocks that bind what it needs, the nearest before it first."""
        tree = source.parse(found[chosen])
        assert tree is not None
        have = {name for statement in tree.body for name in source.bound(statement)} | source.BUILTINS
        wanted = source.needed(tree.body, {self.entry_point})[1] - have
        order = [*range(chosen - 1, -1, -1), *range(chosen + 1, len(found))]
        taken: dict[int, list] = {}
        todo = sorted(wanted)
        while todo:
            name = todo.pop()
            for i in order:
                other = source.parse(found[i])
                binding = [s for s in other.body if {name, "*"} & source.bound(s)] if other else []
                if binding and name != self.entry_point:
                    kept = source.needed(other.body, {name, "*"})[0]  # type: ignore[union-attr]
                    kept = [s for s in kept if self.entry_point not in source.bound(s)]
                    new = [s for s in kept if s not in taken.setdefault(i, [])]
                    taken[i] += new
                    have |= {n for s in new for n in source.bound(s)} | {name}
                    todo += sorted({n for s in new for n in source.free(s)} - have - set(todo))
                    break
            have.add(name)
        parts = []
        for i in sorted({*taken, chosen}):
            if i == chosen:
                parts.append(found[i])
            else:
                body = source.parse(found[i]).body  # type: ignore[union-attr]
                parts.append("".join(source.text_of(found[i], s) for s in body if s in taken[i]))
        return "".join(part if part.endswith("\n") else part + "\n" for part in parts), bool(taken)

    def shortened(self, code: str, piece: Piece, rules: tuple[str, ...] = ()) -> Iterator[Candidate]:
        """The prompt's continuation up to where it stops being code."""
        if not code.strip():
            return
        rules = (*piece.rules, *rules)
        variants = [
            (self.prompt, code, ("body", "cut")),
            (self.prompt, indented(source.dedented(code)), ("body", "dedented", "cut")),
        ]
        if left_margin(code, self.entry_point):
            variants.insert(0, (source.preamble(self.prompt, self.entry_point), code, ("whole", "cut")))
        for front, rest, more in variants:
            program = source.cut(front + rest)
            if (
                program != front + rest
                and len(program.rstrip()) > len(front.rstrip())
                and self.may_end(front + rest, program)
            ):
                yield Candidate(source.hoist(program), (*rules, *more), "body" in more, piece.inside)

    def may_end(self, whole: str, beginning: str) -> bool:
        """Whether what was cut off begins at the left margin, or the answer was cut by its token limit."""
        rest = next((line for line in source.lines_of(whole[len(beginning) :]) if line.strip()), "")
        return self.truncated or not rest[:1].isspace()

    def take(self, candidate: Candidate, cleaned: tuple[str, ...]) -> Extraction | None:
        """The candidate as the result, if it compiles, binds the entry point and looks like a solution."""
        tree = source.parse(candidate.program)
        if tree is None or not all(mark in candidate.program for mark in candidate.inside):
            return None
        found = source.definitions(tree, self.entry_point)
        if not found:
            return None
        rules = {*candidate.rules, *cleaned}
        program, solid = candidate.program, [node for node in found if not source.stub(node)]
        wanted = (solid or found)[0 if candidate.first else -1]
        plain = all(isinstance(node, (*source.FUNCTIONS,)) for node in found)
        surplus = [
            node
            for node in found
            if plain and node is not wanted and (candidate.first or found.index(node) > found.index(wanted))
        ]
        if surplus:
            program, tree = self.without(program, tree, surplus)
            rules.add("runs_on")
        idle = source.idle(tree, self.entry_point)
        if idle:
            program, tree = self.without(program, tree, idle)
            rules.add("trimmed")
        if self.tied:
            rules.add("tied")
        result = Extraction(program, None, "+".join(rule for rule in RULES if rule in rules))
        if solid and (source.answers(wanted) or "whole" in rules):
            return result
        self.weak = self.weak or result
        return None

    def without(self, program: str, tree: ast.Module, statements: list[ast.stmt]) -> tuple[str, ast.Module]:
        shorter = source.drop(program, tree, statements)
        parsed = source.parse(shorter)
        return (shorter, parsed) if parsed is not None and source.binds(parsed, self.entry_point) else (program, tree)

    def flawed(self, pieces: list[Piece], mode: str) -> Extraction:
        """What to run where nothing fits: the likeliest reading, which the tests will fail."""
        if not pieces and mode == "cot":
            return Extraction("", "no_tags")
        piece = pieces[0] if pieces else Piece("")
        marks = text.fences(piece.text)
        found = blocks(piece.text, marks) if marks else [piece.text]
        code = next((b for b in found if left_margin(b, self.entry_point)), found[0] if found else piece.text)
        whole = left_margin(code, self.entry_point)
        program = self.whole(code) if whole else self.prompt + code
        return Extraction(program, "wrong_entry_point" if source.parse(program) else "syntax_error")


def indented(code: str) -> str:
    return "".join(f"    {line}" if line.strip() else line for line in source.lines_of(code))


def is_code(block: str) -> bool:
    """Whether a block parses, as a module or as a function's body."""
    return source.parse(block) is not None or source.parse("def _():\n" + indented(block)) is not None


def blocks(answer: str, marks: list[tuple[int, int, str]]) -> list[str]:
    """The fenced blocks, moved to the left margin. A block ends at the first mark up to which it is code.

    So a fence in a docstring ends nothing. Where no end makes code, the next mark is the end.
    """
    found, i = [], 0
    ends = [*(begin for begin, _, _ in marks), len(answer)]
    while i < len(marks):
        start = marks[i][1]
        for j in range(i + 1, min(len(ends), i + 1 + text.MOST)):
            block = unquoted(source.dedented(answer[start : ends[j]])) if ends[j] > start else ""
            if block.strip() and is_code(block):
                found.append(block)
                i = j + 1
                break
        else:
            if ends[i + 1] > start and answer[start : ends[i + 1]].strip():
                found.append(unquoted(source.dedented(answer[start : ends[i + 1]])))
            i += 1
    return found


def unquoted(block: str) -> str:
    """A block without the marks of a quotation, of added lines, or of a session, whose output goes as well."""
    lines = source.lines_of(block)
    if block.startswith(">>>"):
        return "".join(line[4:] or "\n" for line in lines if line.startswith((">>>", "...")))
    if text.CELL.match(block):
        return "".join(line[mark.end() :] for line in lines if (mark := text.CELL.match(line)))
    if all(line.startswith(">") for line in lines if line.strip()):
        return "".join(line[1:].removeprefix(" ") or "\n" for line in lines)
    added = [line for line in lines if line.strip() and not line.startswith(("@@", "---", "+++"))]
    if added and all(line.startswith("+") for line in added):
        return "".join(line[1:] for line in added)
    return block


def islands(answer: str, truncated: bool) -> list[str]:
    """The parts of a text that compile, from a line that looks like code on: code among prose that no fence encloses.

    Indented ones begin with a definition or an import: another line would be a piece of a program that is broken.
    """
    lines, start = source.lines_of(answer), 0
    found: list[str] = []
    while start < len(lines) and len(found) < 4 * text.MOST:
        inner = lines[start][:1].isspace()
        if not (text.BEGINNING if inner else text.CODE).match(lines[start].lstrip()):
            start += 1
            continue
        rest = source.dedented("".join(lines[start:])) if lines[start][:1].isspace() else "".join(lines[start:])
        if lines[start][:1].isspace():
            width = len(lines[start]) - len(lines[start].lstrip())
            rest = "".join(line[width:] if not line[:width].strip() else line for line in lines[start:])
        block = source.cut(rest)
        count = block.count("\n") or 1
        after = next((line for line in source.lines_of(rest[len(block) :]) if line.strip()), "")
        if block.strip() and (truncated or not after[:1].isspace()):
            found.append(block)
            start += count
        else:
            start += 1
    return found
