"""The parts of a model's answer: what follows its thinking, what its tags hold, its fenced blocks, where it runs on.

Text is cut here and nothing is parsed; a piece of text says what must be part of any program that is made of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from jobs.common.answer_format import TAGS

START, END, OPEN, CLOSE = TAGS
MOST = 12  # tags, fences or turns of an answer that are looked at one by one
# As models name it: <think>, <seed:think>, <reasoning effort="low">, <|begin_of_thought|>, [THINK]. Ends set a group.
THINK = re.compile(
    r"<(/?)(?:[\w-]{1,30}:)?(?:think|thinking|thought|reasoning)(?:[ \t][^<>\n]{0,100})?>"
    r"|<\|(?:begin|(end))_of_thought\|>|\[(/?)THINK\]",
    re.IGNORECASE,
)
# The tags of the answer's format, with blanks inside them too, which the format itself does not allow.
TAG = re.compile(
    "|".join(rf"<[ \t]{{0,9}}{re.escape(tag[1:-1])}[ \t]{{0,9}}>" for tag in TAGS).replace("/", "/[ \t]{0,9}"),
    re.IGNORECASE,
)
FENCE = re.compile(r"`{3,}|^[ \t]*~{3,}", re.MULTILINE)
# A language as fences name it, alone or with attributes: ```python, ``` py, ```{python}, ```python title="x.py".
LANGUAGE = re.compile(r"[ \t]*[{.]*([\w+#-]+)\}*(?:[ \t]+[\w-]+=\S+|[ \t]*\{[^}\n]*\})*[ \t]*")
PYTHON = re.compile(r"[ \t]*(?:python|py)[\d.]*[ \t]+", re.IGNORECASE)
CODE = re.compile(r"(?:def|class|import|from|return|async|for|while|if|pass)\b|@|\w+[ \t]*=")
CELL = re.compile(r"In \[\d*\]: |[ \t]*\.\.\.:(?: |$)", re.MULTILINE)  # a line of a notebook's or IPython's session
BEGINNING = re.compile(r"(?:async[ \t]+def|def|class|import|from)\b|@")
# Where a model that does not stop begins the next task or turn: at the left margin, perhaps as a comment or a string.
NEXT = re.compile(
    r"^(?:[#*\"'>][ \t]*\n?)*(?:"
    r"You are an? |(?:User|Human|Question|Instructions?|Problem|Task|Exercise|Prompt|Q)(?: ?#?\d+)? ?[:.)*]"
    r"|Write an? (?:python )?(?:function|program|method|code)\b|(?:Problem|Task|Exercise|Question) #?\d+\b"
    r"|\[INST\])"
    r"|<\|(?:endoftext|im_start|im_end|eot_id|end_of_text|user|end)\|>|<\|start_header_id\|>|</s>",
    re.IGNORECASE | re.MULTILINE,
)
SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\u2581"
NOTHING = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys(SPACES, " "),
        **dict.fromkeys(NOTHING, ""),
        **dict.fromkeys("\u0085\u2028\u2029", "\n"),
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
    }
)


@dataclass(frozen=True)
class Piece:
    """A part of an answer in which a program is looked for.

    inside: marks that were read as code; they count as such only in a program that holds them, in a string or comment.
    rules: what was done to get here.
    """

    text: str
    rules: tuple[str, ...] = ()
    inside: tuple[str, ...] = field(default=())


def newlines(text: str) -> str:
    """Line ends as Python reads them, in strings too."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cleaned(text: str) -> str:
    """Characters that only look like those of a program replaced: odd spaces and quotes, invisible marks."""
    return text.translate(LOOKALIKES)


def after_thinking(piece: Piece) -> Iterator[Piece]:
    """The piece without its blocks of thinking; then, mark by mark from the end, with marks that are code after all.

    An end without a beginning ends the thinking that began in the prompt; a beginning without an end leaves nothing.
    """
    marks = list(THINK.finditer(piece.text))
    for count in range(len(marks), max(-1, len(marks) - MOST), -1):
        kept, depth, position = [], 0, 0
        for mark in marks[:count]:
            if not any(mark.groups()):
                if not depth:
                    kept.append(piece.text[position : mark.start()])
                depth += 1
            elif depth:
                depth -= 1
            else:
                kept = []
            position = mark.end()
        kept.append("" if depth else piece.text[position:])
        rules = ("thinking",) if count else ()
        yield Piece("\n".join(kept), piece.rules + rules, piece.inside + tuple(m[0] for m in marks[count:]))


def solutions(piece: Piece) -> tuple[list[Piece], list[Piece]]:
    """What the solution tags hold: complete ones, in their order, then what an opening tag alone begins.

    Tags within reasoning do not count; reasoning is what stands between its tags, or before an end without beginning.
    A closing tag may be part of the code: after the text up to the first one comes the text up to the second.
    """
    marks = [(m.start(), m.end(), "".join(m[0].upper().split())) for m in TAG.finditer(piece.text)]
    complete: list[Piece] = []
    begun: list[Piece] = []
    quoted: list[Piece] = []
    for i, (_, start, kind) in enumerate(marks):
        if kind != OPEN or len(complete) + len(begun) > 4 * MOST:
            continue
        reasoning = in_reasoning([mark[2] for mark in marks], i)
        for j in range(i + 1, min(len(marks), i + 1 + MOST)):
            inside = tuple(piece.text[a:b] for a, b, _ in marks[i + 1 : j])
            part = Piece(code_of(piece.text[start : marks[j][0]]), (*piece.rules, "tagged"), piece.inside + inside)
            if reasoning:
                after = tuple(piece.text[a:b] for a, b, k in marks[i:j] if k == END)
                if after:  # the end of the reasoning stands in the code itself
                    quoted.append(part)
            elif marks[j][2] == CLOSE:
                on = any(kind in (OPEN, START) for _, _, kind in marks[j + 1 :])
                complete.append(replace(part, rules=(*part.rules, "runs_on")) if on else part)
            elif marks[j][2] in (OPEN, START):
                begun.append(part)
        if not reasoning:
            inside = tuple(piece.text[a:b] for a, b, _ in marks[i + 1 :])
            begun.append(Piece(code_of(piece.text[start:]), (*piece.rules, "tagged"), piece.inside + inside))
    return complete, [*begun, *quoted]


def in_reasoning(kinds: list[str], i: int) -> bool:
    """Whether the i-th tag stands in reasoning."""
    begun = [n for n in range(i) if kinds[n] == START]
    if not begun:
        return END in kinds[i + 1 :] and (START not in kinds or kinds.index(START) > kinds.index(END, i + 1))
    last = begun[-1]
    return END not in kinds[last:i] and END in kinds[i + 1 :]


def code_of(text: str) -> str:
    return text.strip("\n").rstrip() + "\n"


def turns(piece: Piece) -> Iterator[Piece]:
    """The piece up to where it seems to begin another task, up to the second such place, and so on; at last, whole."""
    count = 0
    for mark in NEXT.finditer(piece.text):
        before, after = piece.text[: mark.start()], piece.text[mark.start() : mark.start() + 4000]
        line = next((line for line in after.split("\n")[1:] if line.strip() and line.lstrip()[0] not in "#\"'"), "x")
        if before.strip() and not line[0].isspace():  # an indented line would go on with the code before the mark
            count += 1
            yield replace(piece, text=before, rules=(*piece.rules, "runs_on"))
        if count >= MOST:
            break
    yield piece


def fences(text: str) -> list[tuple[int, int, str]]:
    """The fence marks: where each begins, where the code after it begins if it opens a block, and the mark."""
    found = []
    for mark in FENCE.finditer(text):
        end = text.find("\n", mark.end())
        rest = text[mark.end() : end if end >= 0 else len(text)]
        language = LANGUAGE.fullmatch(rest)
        known = PYTHON.match(rest)
        if known and CODE.match(rest, known.end()):
            start = mark.end() + known.end()
        elif not rest.strip() or (language and not CODE.match(rest.strip())) or known:
            start = end + 1 if end >= 0 else len(text)
        else:
            start = mark.end()
        found.append((mark.start(), start, mark[0].strip()))
    return found
