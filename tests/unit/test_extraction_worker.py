"""Extraction's worker: what breaks its limits costs that text its extraction, and nobody else anything."""

import builtins
import os
import signal
import threading
import time

import pytest

from jobs.common.errors import JobError
from jobs.extraction import worker
from jobs.extraction.program import extract
from jobs.extraction.worker import Extractor, unparsed

PROMPT = "import math\n\n\ndef f(x):\n"
RIGHT = "    return x\n"


def nested(depth):
    """Python copies each `finally` for every way out of its `try`: the code doubles with each level and more."""
    text = "def f(x):\n"
    for level in range(depth):
        text += f"{' ' * (2 * level + 1)}try:\n{' ' * (2 * level + 2)}return x\n{' ' * (2 * level + 1)}finally:\n"
    return text + " " * (2 * depth + 1) + "pass\n"


@pytest.fixture(scope="module")
def extractor():
    with Extractor(seconds=0.5, memory_mib=256) as extractor:
        yield extractor


@pytest.mark.parametrize("answer", [
    nested(14),  # time and memory
    "```python\n" + nested(14) + "```\nwell",
    "x = 1\n" * 400_000 + "def f(x): return x\n",  # long
    "```\n" * 40_000,  # marks to be tried as beginning and as end
], ids=["nested", "fenced", "long", "fences"])  # fmt: skip
def test_a_text_that_breaks_a_limit_is_too_hard_and_the_next_one_is_not(extractor, answer):
    for mode, text in (("plain", answer), ("cot", f"<SOLUTION>{answer}</SOLUTION>")):
        found = extractor.extract(text, PROMPT, "f", mode)
        assert (found.flaw, found.rule) == ("too_hard", "too_hard")
        assert found.solution, "the sandbox judges it nevertheless"
        assert extractor.extract(RIGHT, PROMPT, "f", "plain") == extract(RIGHT, PROMPT, "f", "plain")


@pytest.mark.parametrize("answer", ["-" * 300_000 + "1", "(" * 5000, "f = " + "lambda:" * 20_000 + "0", "\0", "\ud83d",
                                    '"""' * 50_000, "#" * 200_000, "<SOLUTION>" * 20_000, "f'" + "{" * 200])  # fmt: skip
def test_odd_texts_get_an_extraction(extractor, answer):
    assert extractor.extract(answer, PROMPT, "f", "plain").solution


def test_a_program_is_checked_within_the_limits(extractor):
    assert extractor.fault("def f(x):\n    return x", "f") == ("", "")
    assert extractor.fault("def g(x):\n    return x", "f") == ("entry_point", "")
    assert extractor.fault(nested(14), "f")[0] == "too_hard"
    kind, detail = extractor.fault("def f(:", "f")
    assert kind == "syntax"
    assert "invalid syntax" in detail


def test_a_worker_that_others_end_is_replaced():
    with Extractor() as extractor:
        os.kill(extractor.process.pid, signal.SIGKILL)
        assert extractor.extract(RIGHT, PROMPT, "f", "plain").flaw is None


def test_threads_share_a_worker(extractor):
    found = {}

    def work(i):
        found[i] = [extractor.extract(f"    return {i}, {n}\n", PROMPT, "f", "plain").solution for n in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [PROMPT + f"    return {i}, {n}\n" for n in range(20)] for i in range(4)}


def test_a_machine_that_cannot_start_it_is_told(monkeypatch):
    monkeypatch.setattr(worker.sys, "executable", "/bin/false")
    with pytest.raises(JobError, match="extraction: its worker does not start"):
        Extractor()


def test_nothing_is_compiled_in_the_jobs_own_process(extractor, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("compiled here")

    monkeypatch.setattr(builtins, "compile", refuse)
    assert extractor.extract(RIGHT, PROMPT, "f", "plain").flaw is None
    assert extractor.extract(nested(14), PROMPT, "f", "plain").flaw == "too_hard"
    assert extractor.fault("def f(", "f")[0] == "syntax"


@pytest.mark.parametrize(("answer", "mode", "solution"), [
    (RIGHT, "plain", PROMPT + RIGHT), (f"def f(x):\n{RIGHT}", "plain", f"def f(x):\n{RIGHT}"),
    (f"<SOLUTION>\n```python\ndef f(x):\n{RIGHT}```\n</SOLUTION>", "cot", f"def f(x):\n{RIGHT}"), (RIGHT, "cot", ""),
    (f"<solution>def f(x):\n{RIGHT}", "cot", f"def f(x):\n{RIGHT}"), ("```\nx", "plain", PROMPT + "x"),
])  # fmt: skip
def test_the_likeliest_program_is_found_without_compiling(answer, mode, solution):
    assert unparsed(answer, PROMPT, "f", mode).solution == solution
    began = time.process_time()
    unparsed("```<SOLUTION></SOLUTION>" * 100_000, PROMPT, "f", mode)
    assert time.process_time() - began < 5
