"""From what a model wrote to a program that tests can run: one function, the same for every model and benchmark."""

import ast
import re
import textwrap
import warnings
from dataclasses import dataclass
from typing import Literal

from jobs.common.answer_format import SOLUTION, TAGS, defines

FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Extraction:
    """solution: the whole program; "" if there is none.

    flaw: what is wrong with it on sight. It explains a failure in the tests and never decides one: programs with a flaw
    are run like all others, and only "no_tags" leaves nothing to run.
    """

    solution: str
    flaw: Literal["no_tags", "syntax_error", "wrong_entry_point"] | None = None


def extract(text: str, prompt: str, entry_point: str, mode: str, truncated: bool = False) -> Extraction:
    """The program in `text`, the model's answer to `prompt`, which asks for the function `entry_point`.

    1. Tags. In mode "cot" the code is what stands in the last <SOLUTION> after the reasoning, up to </SOLUTION> or the
       end of the text. Without an opening tag there is no program: "no_tags". In mode "plain" all of the text is code.
    2. Fences. If the code holds ``` fences, it is the first block that defines the entry point, else the first block.
    3. Whole function or body. Code that defines the entry point at its left margin is whole; the rest of the prompt
       (imports, helper functions) goes in front of it. Other code continues the prompt verbatim; if that does not
       compile but the code indented under the prompt's header does, it is that.
    4. Truncation. If the text was `truncated` at the token limit and does not compile, lines are dropped from its end
       until it does. Text that ended by itself is never mended.
    5. A program that does not compile is a "syntax_error"; one without the entry point a "wrong_entry_point".
    """
    code: str | None = text if mode == "plain" else tagged(text)
    if code is None:
        return Extraction("", "no_tags")
    blocks = FENCE.findall(code)
    if blocks:
        code = next((block for block in blocks if left_margin(block, entry_point)), blocks[0])
    if left_margin(code, entry_point):
        variants = [in_front(without(prompt, entry_point), code)]
    else:
        variants = [prompt + code, prompt + textwrap.indent(textwrap.dedent(code), "    ")]
    for program in variants:
        if compiles(program) and binds(program, entry_point):
            return Extraction(program)
    for program in variants if truncated else ():
        shorter = cut(program)
        if len(shorter) > len(prompt if program.startswith(prompt) else "") and binds(shorter, entry_point):
            return Extraction(shorter)
    return Extraction(variants[0], "wrong_entry_point" if compiles(variants[0]) else "syntax_error")


def tagged(text: str) -> str | None:
    """What the last solution tag after the reasoning holds, or None."""
    answer = re.split(re.escape(TAGS[1]), text, flags=re.IGNORECASE)[-1]
    found = SOLUTION.findall(answer)
    return found[-1].strip("\n").rstrip() + "\n" if found else None


def left_margin(code: str, entry_point: str) -> bool:
    """Whether a line of `code` begins the definition of `entry_point`; the code need not be complete."""
    return bool(
        re.search(
            rf"^(?:(?:async\s+)?def|class)\s+{re.escape(entry_point)}\b|^{re.escape(entry_point)}\s*=",
            code,
            re.MULTILINE,
        )
    )


def without(prompt: str, entry_point: str) -> str:
    """The prompt's source except the entry point's definition; "" for a prompt that is not Python."""
    if not compiles(prompt):
        return ""
    kept = [
        node
        for node in ast.parse(prompt).body
        if getattr(node, "name", None) != entry_point
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    return "".join(f"{ast.get_source_segment(prompt, node)}\n" for node in kept)


def in_front(preamble: str, code: str) -> str:
    """`preamble` before `code`, but after its __future__ imports, which must come first."""
    future = re.findall(r"^from __future__ import .*\n", code, re.MULTILINE)
    return "".join(future) + preamble + re.sub(r"^from __future__ import .*\n", "", code, flags=re.MULTILINE)


def binds(program: str, entry_point: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return defines(program, entry_point)


def compiles(program: str) -> bool:
    return error_line(program) is None


def error_line(program: str) -> int | None:
    """The line, from 1, where `program` fails to compile, or None. Programs that Python gives up on fail at line 1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(program, "solution", "exec", dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return 1
    return None


def cut(program: str) -> str:
    """The program's first lines, as many as compile: a statement cut in its middle goes, what came before stays."""
    lines = program.splitlines(keepends=True)
    while lines and (wrong := error_line("".join(lines))) is not None:
        del lines[min(len(lines), wrong) - 1 :]
    return "".join(lines)
