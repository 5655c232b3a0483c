"""The extraction function on answers as models write them."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.common.program import cut, extract

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


def test_tags_are_read_leniently_but_the_last_solution_counts():
    text = cot("def area(r):\n    return 1", "I could write <SOLUTION>def area(r): return 0</SOLUTION>, but no.")
    assert value(extract(text, PROMPT, "area", "cot"), "area(0)") == 1
    assert value(extract("<solution>\ndef area(r):\n    return 2\n", PROMPT, "area", "cot"), "area(0)") == 2
    twice = "<SOLUTION>def area(r): return 3</SOLUTION><SOLUTION>def area(r): return 4</SOLUTION>"
    assert value(extract(twice, PROMPT, "area", "cot"), "area(0)") == 4


def test_truncated_text_loses_its_unfinished_end_and_other_text_does_not():
    text = BODY + "\n\ndef unfinished(x):\n    return (x +"
    assert extract(text, PROMPT, "area", "plain", truncated=True).solution == PROMPT + BODY + "\n\n"
    assert extract(text, PROMPT, "area", "plain").flaw == "syntax_error"
    whole = extract(f"<SOLUTION>{WHOLE}\nprint(area(", PROMPT, "area", "cot", truncated=True)
    assert value(whole, "area(1)") == pytest.approx(3.14159, abs=1e-4)


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
