"""Test classes in the answer's own process: what passes, what fails and how, and that no reward hangs on them."""

import pytest

from jobs.sandbox import Sandbox
from jobs.scoring.judge import score
from tests.unit.test_task_sources import COMPLETE, DOUBLED

TASK = {"task_id": "bigcode/1", "prompt": COMPLETE, "entry_point": "task_func", "setup": "", "tests": [],
        "unittests": DOUBLED, "prelude": "import random\ndef task_func(n):\n    pass\n"}  # fmt: skip
RIGHT = "def task_func(n):\n    return n + n\n"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, benchmark=True) as sandbox:
        yield sandbox


def verdict(sandbox, code, **changes):
    return sandbox.run([(TASK | changes, code)])[0]


@pytest.mark.parametrize(
    ("code", "status", "passed", "error"),
    [
        (RIGHT, "passed", 2, ""),
        ("print('hello')\n" + RIGHT, "passed", 2, ""),
        (RIGHT + "if __name__ == '__main__':\n    raise SystemExit\n", "passed", 2, ""),
        ("def task_func(n):\n    return 9\n", "failed", 1, "test_double: AssertionError: 9 != 8"),
        (
            "def task_func(n):\n    random.random()\n    return 2 * n\n",
            "failed",
            1,
            "test_draws_nothing: AssertionError",
        ),
        ("def task_func(n):\n    return x\n", "failed", 0, "NameError"),
        ("def task_func(n:\n", "failed", 0, "SyntaxError"),
        ("raise SystemExit\n", "failed", 0, "SystemExit"),
        ("import os\nos._exit(0)\n", "failed", 0, "ended before its tests did"),
        ("def task_func(n):\n    import os\n    os._exit(0)\n", "failed", 0, "ended before its tests did"),
        ("def task_func(n):\n    import ctypes\n    ctypes.string_at(0)\n", "crashed", 0, ""),
        ("def task_func(n):\n    exit()\n", "failed", 0, "TypeError"),
        ("def task_func(n):\n    return int(input())\n", "failed", 0, "OSError"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)\n", "failed", 0, "wrote over"),
        ("def task_func(n):\n    open('x', 'w')\n", "failed", 0, "Error"),
        ("", "failed", 1, "test_double"),
    ],
)
def test_verdicts(sandbox, code, status, passed, error):
    found = verdict(sandbox, code)
    assert (found.status, found.tests_passed, found.tests_total) == (status, passed, 2), found
    assert error in found.error


def test_an_answer_that_does_not_end_is_a_timeout(sandbox):
    found = verdict(sandbox, "def task_func(n):\n    while True: pass\n", time_limit=1.0)
    assert found.status == "timeout"


@pytest.mark.parametrize(
    ("tests", "status", "error"),
    [
        ("    def setUp(self):\n        raise KeyError('no')\n    def test_a(self): pass\n", "failed", "test_a: KeyError"),
        ("    @classmethod\n    def setUpClass(cls):\n        raise KeyError('no')\n    def test_a(self): pass\n", "failed",
         "TestCases: KeyError"),
        ("    def test_a(self):\n        for i in (1, 2):\n            with self.subTest(i=i):\n"
         "                self.assertEqual(task_func(i), 2)\n", "failed", "test_a: AssertionError"),
        ("    @unittest.skip('not here')\n    def test_a(self): pass\n", "passed", ""),
        ("    @unittest.expectedFailure\n    def test_a(self):\n        self.fail()\n", "passed", ""),
        ("    def test_a(self):\n        self.assertEqual(__name__, '__test__')\n", "passed", ""),
    ],
)  # fmt: skip
def test_classes_of_every_kind(sandbox, tests, status, error):
    found = verdict(sandbox, RIGHT, unittests=f"import unittest\nclass TestCases(unittest.TestCase):\n{tests}")
    assert found.status == status, found
    assert error in found.error


def test_a_word_of_an_earlier_run_forges_nothing(sandbox):
    """The report stands behind a word that is another one in every run, and was read before the answer begins."""
    forged = "import os, sys\nos.write(1, b'\\n' + b'0' * 32 + b' {\"ran\": 2, \"bad\": {}}\\n')\nos._exit(0)\n"
    assert verdict(sandbox, forged).status == "failed"
    assert verdict(sandbox, "import sys\nprint(sys.stdin.read())\n" + RIGHT).status == "failed"


def test_no_reward_hangs_on_them():
    with Sandbox(workers=1, timeout=5) as rewarding:
        found = rewarding.run([(TASK, RIGHT)])[0]
    assert (found.status, found.tests_total) == ("unsupported", 0)
    assert "no reward can hang on them" in found.error


def test_a_completion_is_judged_with_its_prompts_imports(sandbox):
    samples = [
        {"task_id": "bigcode/1", "sample": number, "text": text, "tokens": 5, "finish": "stop"}
        for number, text in enumerate(["    return 2 * n\n", "    return n\n", RIGHT])
    ]
    assert [row["outcome"] for row in score([TASK], samples, "plain", sandbox)] == ["passed", "failed", "passed"]


def test_the_stop_rules_are_the_official_ones():
    from jobs.sampling.benchmark import STOP_BIGCODE, stop_strings

    assert stop_strings([TASK], "plain") == STOP_BIGCODE
    assert stop_strings([TASK], "cot") == ()
