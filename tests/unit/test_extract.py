"""The extraction function on answers as models write them."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.extraction.program import extract
from jobs.extraction.source import cut

PROMPT = 'import math\n\n\ndef helper(x):\n    return x\n\n\ndef area(r):\n    """Area of a circle."""\n'
BODY = "    return math.pi * r ** 2\n"
WHOLE = f"def area(r):\n{BODY}"
MBPP = '"""\nWrite a function area.\nassert area(1) > 3\n"""\n'


def value(extraction, call):
    space: dict = {}
    exec(compile(extraction.solution, "solution", "exec"), space)
    return eval(call, space)


def cot(code, reasoning="It is pi r squared."):
    return f"<START_WORKING_OUT>\n{reasoning}\n</END_WORKING_OUT>\n<SOLUTION>\n{code}\n</SOLUTION>"


@pytest.mark.parametrize("text", [
    BODY,
    WHOLE,
    f"```python\n{WHOLE}```\n",
    f"Here it is:\n```py\n{WHOLE}```\nAnd a test:\n```python\nassert area(1)\n```\n",
    f"```\nprint('hello')\n```\n```python\n{WHOLE}```",
    f"```python\n{WHOLE}",  # cut before the closing fence
    f"from __future__ import annotations\n{WHOLE}",
    f"import os\n\n{WHOLE}",
    "return math.pi * r ** 2",  # a body at the left margin
    "    x = r\n    return math.pi * x ** 2",
    "class area:\n    def __new__(cls, r):\n        return math.pi * r ** 2\n",
    "area = lambda r: math.pi * r ** 2\n",
    f"async def other():\n    pass\n\n\n{WHOLE}",
])  # fmt: skip
def test_code_in_all_its_forms_runs(text):
    for mode, answer in (("plain", text), ("cot", cot(text))):
        extraction = extract(answer, PROMPT, "area", mode)
        assert extraction.flaw is None
        assert value(extraction, "area(2)") == pytest.approx(12.566, abs=1e-3)


def test_plain_text_continues_the_prompt_verbatim():
    assert extract(BODY, PROMPT, "area", "plain").solution == PROMPT + BODY
    assert extract(WHOLE, MBPP, "area", "plain").solution == WHOLE


def test_a_whole_function_gets_the_prompts_imports_and_helpers():
    extraction = extract(cot("def area(r):\n    return helper(math.pi) * r ** 2"), PROMPT, "area", "cot")
    assert value(extraction, "area(1)") == pytest.approx(3.14159, abs=1e-4)
    assert extraction.solution.count("def area") == 1


@pytest.mark.parametrize("text", ["", "def area(r): return 3", "</SOLUTION>", "<START_WORKING_OUT>x</END_WORKING_OUT>",
                                  "<SOLUTION>def area(r): return 3</SOLUTION></END_WORKING_OUT>"])  # fmt: skip
def test_without_a_solution_tag_after_the_reasoning_there_is_nothing(text):
    extraction = extract(text, PROMPT, "area", "cot")
    assert (extraction.solution, extraction.flaw) == ("", "no_tags")


def test_tags_are_read_leniently_and_the_first_solution_after_the_reasoning_counts():
    text = cot("def area(r):\n    return 1", "I could write <SOLUTION>def area(r): return 0</SOLUTION>, but no.")
    assert value(extract(text, PROMPT, "area", "cot"), "area(0)") == 1
    assert value(extract("<solution>\ndef area(r):\n    return 2\n", PROMPT, "area", "cot"), "area(0)") == 2
    twice = "<SOLUTION>def area(r): return 3</SOLUTION><SOLUTION>def area(r): return 4</SOLUTION>"
    found = extract(twice, PROMPT, "area", "cot")
    assert value(found, "area(0)") == 3
    assert {"runs_on", "tied"} <= set(found.rule.split("+"))


def test_what_follows_the_function_is_dropped_and_the_function_itself_is_cut_only_at_the_token_limit():
    text = BODY + "\n\ndef unfinished(x):\n    return (x +"
    for truncated in (True, False):
        assert extract(text, PROMPT, "area", "plain", truncated).solution == PROMPT + BODY + "\n\n"
    whole = extract(f"<SOLUTION>{WHOLE}\nprint(area(", PROMPT, "area", "cot", truncated=True)
    assert value(whole, "area(1)") == pytest.approx(3.14159, abs=1e-4)
    broken = "    if r < 0:\n        return 0\n    return (r *\n"
    assert extract(broken, PROMPT, "area", "plain").flaw == "syntax_error"
    assert value(extract(broken, PROMPT, "area", "plain", truncated=True), "area(-1)") == 0


def test_truncation_before_anything_useful_is_a_syntax_error():
    assert extract("    return (r *", PROMPT, "area", "plain", truncated=True).flaw == "syntax_error"
    assert extract("def area(", MBPP, "area", "plain", truncated=True).flaw == "syntax_error"


@pytest.mark.parametrize(("text", "flaw"), [
    ("def volume(r):\n    return 1", "wrong_entry_point"), ("def area(r):\n    return (", "syntax_error"),
    ("x = 1\0", "syntax_error"), ("(" * 500, "syntax_error"), ("this isn't python", "syntax_error"),
])  # fmt: skip
def test_flaws_are_named_and_the_program_is_kept(text, flaw):
    extraction = extract(cot(text), MBPP, "area", "cot")
    assert extraction.flaw == flaw
    assert extraction.solution


PIECES = ["<SOLUTION>", "</SOLUTION>", "</END_WORKING_OUT>", "```", "```python\n", "def area(r):\n", BODY, "\n", "(",
          "return ", '"""', "\\", "\t", "\0", "\ud800", "if r:\n", "from __future__ import annotations\n"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.sampled_from(["plain", "cot"]),
    st.booleans(),
    st.sampled_from([PROMPT, MBPP, "", "Not Python: ("]),
)
def test_no_text_breaks_it(text, mode, truncated, prompt):
    extraction = extract(text, prompt, "area", mode, truncated)
    assert extraction == extract(text, prompt, "area", mode, truncated)
    if extraction.flaw is None:
        assert any(getattr(n, "name", None) == "area" or isinstance(n, ast.Assign)
                   for n in ast.parse(extraction.solution).body)  # fmt: skip
    assert (extraction.solution == "") <= (extraction.flaw is not None)


def test_cutting_leaves_the_longest_beginning_that_compiles():
    assert cut("x = (\n" * 150) == ""
    assert cut("x = 1\n" * 2000 + "y = (\n" * 50) == "x = 1\n" * 2000
    assert cut("def f():\n    if x:\n        y = [1,\n") == ""
    assert cut("def f():\n    x = 1\n    if x:\n        y = [1,\n") == "def f():\n    x = 1\n"


# Answers of every kind: each is right, and "draft" is what must not be taken from it.
DRAFT = "def area(r):\n    return 'draft'\n"
OTHER = "def volume(r):\n    return 'other'\n"
INDENTED = "".join(f"   {line}\n" for line in WHOLE.splitlines())


@pytest.mark.parametrize("text", [
    f"<think>\n{DRAFT}\nhm\n</think>\n{WHOLE}",
    f"Perhaps\n```python\n{DRAFT}```\n</think>\n\n```python\n{WHOLE}```",  # the beginning stood in the prompt
    f"<THINK>one</THINK><thinking>{DRAFT}</thinking>{BODY}",
    "def area(r):\n    return math.pi * r ** 2 if '</think>' else 0\n",
    f"<think>a</think>\ndef area(r):\n    marks = '<think>'\n{BODY}",
    f"<seed:think>\n{DRAFT}</seed:think>\n{WHOLE}", f'<thinking effort="high">{DRAFT}</thinking>\n{WHOLE}',
    f"<|begin_of_thought|>\n{DRAFT}<|end_of_thought|>\n{WHOLE}", f"[THINK]{DRAFT}[/THINK]{WHOLE}",
])  # fmt: skip
def test_thinking_is_no_answer(text):
    assert value(extract(text, PROMPT, "area", "plain"), "area(1)") == pytest.approx(3.14159, abs=1e-4)


def test_thinking_without_an_end_leaves_nothing():
    found = extract(f"<think>maybe\n```python\n{DRAFT}```\nno, because", PROMPT, "area", "plain", truncated=True)
    assert "draft" not in found.solution
    assert extract(f"<think>{cot(DRAFT)}", PROMPT, "area", "cot").flaw == "no_tags"


@pytest.mark.parametrize("text", [
    cot(WHOLE) + "\n\nNext:\n" + cot(OTHER),
    cot(WHOLE) + "\n<START_WORKING_OUT>\nAgain.\n</END_WORKING_OUT>\n<SOLUTION>\ndef volume(r):\n    return [",
    cot(WHOLE) + "<SOLUTION></SOLUTION>",
    f"<SOLUTION>{WHOLE}<START_WORKING_OUT>next</END_WORKING_OUT><SOLUTION>{OTHER}</SOLUTION>",  # never closed
    cot(OTHER) + cot(WHOLE),
    f"A try: <SOLUTION>{DRAFT}</SOLUTION> No.</END_WORKING_OUT><SOLUTION>{WHOLE}</SOLUTION>",
    cot(f"{WHOLE}\nWrite a function to add two numbers.\n{OTHER}"),
    cot(f"{DRAFT}\n# That is wrong.\n{WHOLE}"),
    cot(f"Here it is.\n\n{WHOLE}\nThat is all."),
    cot(f'def area(r):\n    """In </SOLUTION> and <SOLUTION> it stands."""\n{BODY}'),
    cot(f"def area(r):\n    # after </END_WORKING_OUT>, <START_WORKING_OUT>\n{BODY}"),
    f"<SOLUTION>def area(r):\n    # </END_WORKING_OUT>\n{BODY}</SOLUTION>",
    f"<START_WORKING_OUT>{DRAFT}</ END_WORKING_OUT>\n< SOLUTION >\n{WHOLE}\n</ SOLUTION >",
])  # fmt: skip
def test_of_the_tags_the_first_complete_solution_counts(text):
    assert value(extract(text, PROMPT, "area", "cot"), "area(1)") == pytest.approx(3.14159, abs=1e-4)


@pytest.mark.parametrize("text", [
    f"~~~python\n{WHOLE}~~~\n", f"```{WHOLE}```", "```python def area(r): return math.pi * r ** 2```",
    f"```python\n{WHOLE.strip()}```", f"``` {{.python}}\n{WHOLE}```", f'```python title="a b.py"\n{WHOLE}```',
    f"{BODY}```\n", f"{BODY}```\n\nIt squares the radius.", f"{WHOLE}```\nprose\n```python\n{DRAFT}```",
    f"- So:\n\n   ```python\n{INDENTED}   ```\n", f"> ```python\n> {WHOLE.replace(chr(10), chr(10) + '> ')}\n> ```",
    f"```python\n>>> {WHOLE.replace(chr(10) + '    ', chr(10) + '...     ')}>>> area(1)\n3.14\n```",
    f'```python\ndef area(r):\n    """A fence:\n    ```\n    area(1)\n    ```\n    """\n{BODY}```',
    f'def area(r):\n    """A fence:\n    ~~~\n    area(1)\n    ~~~\n    """\n{BODY}',
    f"```python\n{DRAFT}```\nWrong. Rather:\n```python\n{WHOLE}```",
    f"```python\n{WHOLE}```\n\n### Problem 2\nThe same again.\n```python\n{DRAFT}```",
    f"```python\n{WHOLE}```\nTry it:\n```python\nassert area(1) == 3\n```\n```text\n3.14\n```",
    f"```python\ndef area(r):\n```\nand then\n```python\n{BODY}```",
    "```python\nfrom operator import *\n```\n```python\ndef area(r):\n    return mul(3.14159265, r ** 2)\n```",
    "```python\ndef area(r):\n    return pi() * square(r)\n```\nwhere\n```python\nPI = 3.14159265\n\ndef square(x):\n"
    "    return x ** 2\n\ndef pi():\n    return PI\n\nprint(1 / 0)\n```",
    "`def area(r): return math.pi * r ** 2`", "``def area(r): return math.pi * r ** 2``",
    "```diff\n@@ -1 +1,2 @@\n" + "".join(f"+{line}\n" for line in WHOLE.splitlines()) + "```",
])  # fmt: skip
def test_fences_of_every_kind(text):
    for mode, answer in (("plain", text), ("cot", cot(text))):
        found = extract(answer, PROMPT, "area", mode)
        assert found.flaw is None
        assert value(found, "area(1)") == pytest.approx(3.14159, abs=1e-4)


@pytest.mark.parametrize("text", [
    INDENTED, WHOLE.replace("\n", "\r\n"), WHOLE.replace("    ", "\u00a0" * 4), "\ufeff" + BODY,
    WHOLE.replace("r ** 2", "r\u200b ** 2"), BODY.replace("    ", "\u3000\u2003  "),
    "x = r\n    return math.pi * x ** 2", "\treturn math.pi * r ** 2",
    "from __future__ import (\n    annotations,\n    division,\n)\n" + WHOLE,
    '"""A module."""\nfrom __future__ import annotations; import os\n' + WHOLE,
    f"{WHOLE}\nassert area(1) == 3\nprint(area(input()))\nif __name__ == '__main__':\n    raise SystemExit(3)\n",
    f"{BODY}\n\nThis is the area.", f"So here it is:\n\n{WHOLE}\nand that was it", f"{BODY}\n\ndef area(r):\n    pass\n",
    f"{BODY}\n\n{DRAFT}", f"def area(r):\n    ...\n\n\n{WHOLE}", f"{PROMPT}{BODY}",
    "".join(f"> {line}\n" for line in WHOLE.splitlines()),
    "In [3]: def area(r):\n   ...:     return math.pi * r ** 2\n   ...:\nOut[3]: 1\nIn [4]: x = 1\n",
    f"    # Task 1: the square\n    if not r:\n        return math.pi * 0\n    # Task 2: pi\n{BODY}",
])  # fmt: skip
def test_plain_text_of_every_kind(text):
    found = extract(text, PROMPT, "area", "plain")
    assert found.flaw is None
    assert value(found, "area(1)") == pytest.approx(3.14159, abs=1e-4)


def test_what_the_function_hangs_on_stays():
    code = "import sys\nsys.setrecursionlimit(5000)\nmemo = {}\nmemo[0] = 7\nfor i in range(3):\n    memo[i + 1] = i\n"
    found = extract(
        f"{code}{OTHER}def area(r):\n    return memo[r]\narea.unit = 'm'\nprint(area(9))\n", MBPP, "area", "plain"
    )
    assert "print" not in found.solution
    assert "setrecursionlimit" in found.solution
    assert value(found, "(area(0), area(3), area.unit)") == (7, 2, "m")
    assert found.rule == "whole+trimmed"


def test_a_broken_answer_is_not_pieced_together():
    """A line that happens to be a right body, in a program that does not compile, is no answer."""
    for text in (f"def area(r):\n    x = (\n{BODY}", f"class A:\n    def area(r):\n        x = [\n    {BODY}"):
        assert extract(text, PROMPT, "area", "plain").flaw == "syntax_error"
