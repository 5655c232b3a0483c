"""From an answer to a whole program, where there is no entry point."""

import pytest

from jobs.extraction.whole import extract_whole
from jobs.extraction.worker import Extractor

CODE = "n = int(input())\nprint(n * 2)\n"


@pytest.mark.parametrize(
    ("answer", "mode", "rule"),
    [
        (CODE, "plain", "whole"),
        (f"Here:\n```python\n{CODE}```\nDone.", "plain", "fenced+whole"),
        (f"```\n3\n```\nbecomes\n```python\n{CODE}```\nwith output\n```\n6\n```", "plain", "fenced+whole"),
        (f"<START_WORKING_OUT>\ndouble it\n</END_WORKING_OUT>\n<SOLUTION>\n{CODE}</SOLUTION>", "cot", "tagged+whole"),
        (f"<SOLUTION>\n```python\n{CODE}```\n</SOLUTION>", "cot", "tagged+fenced+whole"),
        (f"<think>\nprint(1)\n</think>\n```python\n{CODE}```", "plain", "thinking+fenced+whole"),
    ],
)
def test_found(answer, mode, rule):
    found = extract_whole(answer, mode)
    assert (found.solution, found.flaw, found.rule) == (CODE, None, rule)


def test_what_is_no_program_is_told():
    assert extract_whole(CODE, "cot").flaw == "no_tags"
    assert extract_whole("<SOLUTION>\nprint(\n</SOLUTION>", "cot").flaw == "syntax_error"
    assert extract_whole("I cannot solve this.", "plain").flaw == "syntax_error"


def test_a_cut_answer_is_kept_as_far_as_it_compiles():
    assert extract_whole(CODE + "print((", "plain", truncated=True).solution == CODE
    assert extract_whole(CODE + "print((", "plain").flaw == "syntax_error"


def test_the_worker_takes_an_empty_entry_point():
    with Extractor() as extractor:
        assert extractor.extract(CODE, "", "", "plain").solution == CODE
        assert extractor.fault(CODE, "") == ("", "")
        assert extractor.fault("print((", "")[0] == "syntax"
