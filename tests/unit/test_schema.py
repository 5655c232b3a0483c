import time

import pytest

from jobs.common import answer_format
from jobs.extraction import source

GOOD = "<START_WORKING_OUT>\nthink\n</END_WORKING_OUT>\n<SOLUTION>\ndef f(): pass\n</SOLUTION>"


def test_a_good_answer_is_parsed_and_stripped():
    assert answer_format.parse(GOOD) == answer_format.Answer("think", "def f(): pass")
    assert answer_format.parse("\n " + GOOD.lower() + " \n") == answer_format.Answer("think", "def f(): pass")
    assert answer_format.parse(answer_format.render("a", "b")) == answer_format.Answer("a", "b")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "def f(): pass",
        "x" + GOOD,
        GOOD + "x",
        GOOD + GOOD,
        GOOD.replace("</SOLUTION>", ""),
        GOOD.replace("</END_WORKING_OUT>", "</START_WORKING_OUT>"),
        GOOD.replace("<SOLUTION>", "<SOLUTION><SOLUTION>"),
        GOOD.replace("think", "think <SOLUTION> no </SOLUTION>"),
        GOOD.replace("think", "</END_WORKING_OUT>"),
        GOOD.replace("\n<SOLUTION>", "\nand so\n<SOLUTION>"),
        GOOD.replace("<SOLUTION>", "< SOLUTION>"),
        "\n".join(reversed(GOOD.split("\n"))),
        GOOD[:-1],
    ],
)
def test_anything_else_is_refused(bad):
    assert answer_format.parse(bad) is None


def test_template_and_prompt_function_render_the_same():
    import jinja2

    template = jinja2.Template(answer_format.CHAT_TEMPLATE)
    for prompt in ("def f(x):\n", "  two\nlines \n\n", "ünï {{ x }} {% y %}"):
        assert template.render(messages=answer_format.messages(prompt), eos_token="<e>") == answer_format.chat_prompt(
            prompt
        )
        full = template.render(messages=answer_format.messages(prompt, "answer"), eos_token="<e>")
        assert full == answer_format.chat_prompt(prompt) + "answer<e>"


def test_every_tag_is_in_the_system_prompt_once():
    for tag in answer_format.TAGS:
        assert answer_format.SYSTEM_PROMPT.count(tag) == 1


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(): pass", True),
        ("async def f(): pass", True),
        ("class f: pass", True),
        ("f = lambda: 0", True),
        ("from m import f", True),
        ("import x as f", True),
        ("g, f = 1, 2", True),
        ("f: int = 1", True),
        ("try:\n    from m import f\nexcept ImportError:\n    f = None", True),
        ("def g():\n    def f(): pass", False),
        ("f()", False),
        ("", False),
    ],
)
def test_what_binds_a_name_at_the_top_level(code, found):
    tree = source.parse(code)
    assert tree is not None
    assert source.binds(tree, "f") is found


def test_the_format_is_read_in_linear_time():
    """Tags that a backtracking pattern would pair in every way there is."""
    start, end, solution, close = answer_format.TAGS
    began = time.process_time()
    for text in (start + (end + solution) * 20_000 + close * 20_000, (start + " ") * 50_000, " " * 500_000 + "x"):
        assert answer_format.parse(text) is None
    assert time.process_time() - began < 5
