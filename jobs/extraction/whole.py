"""From an answer to a whole program, where a task has no entry point: the program reads its input and writes its output.

The order of what is tried: in the solution tags, where there are any; the last fenced block that does something, where
there are fences; what stands outside of fences; and, of an answer that was cut, its first lines that compile.
"""

import ast
from collections.abc import Iterator

from jobs.extraction import source, text
from jobs.extraction.program import RULES, Extraction, blocks
from jobs.extraction.text import Piece


def extract_whole(answer: str, mode: str, truncated: bool = False) -> Extraction:
    """The program in `answer`. mode and truncated: as `program.extract` has them; nothing is run."""
    source.parse.cache_clear()
    source.tree_or_line.cache_clear()
    plain = text.newlines(answer)
    pieces = list(places(plain, mode))
    if not pieces:
        return Extraction("", "no_tags")
    odd = text.cleaned(plain)
    for cleaned in (False, True) if odd != plain else (False,):
        for piece in places(odd, mode) if cleaned else pieces:
            for program, rules in programs(piece):
                if source.parse(program) is not None:
                    return found(program, {*piece.rules, *rules, *(("cleaned",) if cleaned else ())})
    for piece in pieces:
        first = next(programs(piece))[0]
        shorter = source.cut(first)
        if truncated and acts(shorter):
            return found(shorter, {*piece.rules, "cut"})
    return Extraction(next(programs(pieces[0]))[0], "syntax_error")


def found(program: str, rules: set[str]) -> Extraction:
    return Extraction(program, None, "+".join(rule for rule in RULES if rule in rules))


def places(answer: str, mode: str) -> Iterator[Piece]:
    """Where to look, in order. Nothing in mode "cot" without a solution tag."""
    for piece in text.after_thinking(Piece(answer)):
        complete, begun = text.solutions(piece)
        yield from (*complete, *begun)
        if mode == "plain":
            yield piece


def programs(piece: Piece) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Programs of a piece and the rules that made them: of several blocks the last that does something comes first."""
    marks = text.fences(piece.text)[: 4 * text.MOST]
    if marks:
        parts = blocks(piece.text, marks)
        doing = [part for part in parts if acts(part)]
        for part in [*reversed(doing), *reversed(parts)]:
            yield part, ("fenced", "whole")
    yield piece.text.strip("\n") + "\n", ("whole",)


def acts(program: str) -> bool:
    """Whether a program calls anything: an example of input or output does not, though it may well be Python."""
    tree = source.parse(program)
    return tree is not None and any(isinstance(node, ast.Call) for node in ast.walk(tree))
