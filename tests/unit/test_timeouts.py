"""A training task's own limit of time: how it is found, and what a submission has of it."""

import functools
import sys
from pathlib import Path

import pytest

from jobs.common.errors import JobError
from jobs.common.files import write_jsonl
from jobs.plumbing import checkpoint, closure
from jobs.plumbing.params import OwnTimeout, load
from jobs.sandbox import Sandbox, Verdict
from jobs.tasks import timeouts
from tests.program import ROOT
from tests.submissions import task

LOOP = "def f(x):\n    while True: pass"
LIMITS = load(ROOT / "params.yaml", ["sandbox.workers=1"]).sandbox
SETTINGS = OwnTimeout(floor=0.5, factor=10.0)
TEN = "assert f(10) is not None"

KINDS = {
    "tests": task("assert f(1) == 1", "assert f(2) == 2"),
    "check": task(check="def check(candidate):\n    assert candidate(1) == 1\n"),
    "inputs": task(base_input=[[1]], plus_input=[[2]], atol=0, reference="def f(x): return x"),
    "calls": task(calls=[{"arguments": [1], "expected": 1}]),
    "program": {**task(stdin_tests=[{"input": "1\n", "output": "1\n"}]), "entry_point": ""},
}


@pytest.fixture(scope="module")
def patient():
    with Sandbox(workers=1, timeout=60) as sandbox:
        yield sandbox


@pytest.mark.parametrize("kind", KINDS)
def test_what_never_ends_is_ended_at_its_tasks_own_limit(patient, kind):
    """And the task itself, without a limit of its own, is judged after that as before."""
    loop = "while True: pass" if kind == "program" else LOOP
    right = "print(input())" if kind == "program" else "def f(x):\n    return x"
    found = patient.run([({**KINDS[kind], "timeout": 0.3}, loop)])[0]
    assert found.status == "timeout"
    assert found.seconds < 30
    assert [v.status for v in patient.run([(KINDS[kind], right), ({**KINDS[kind], "timeout": 5}, right)])] == (
        ["passed"] * 2
    )


def test_a_limit_of_its_own_above_the_sandboxs_is_cut():
    with Sandbox(workers=1, timeout=0.3) as sandbox:
        found = sandbox.run([({**KINDS["tests"], "timeout": 60}, LOOP)])[0]
    assert found.status == "timeout"
    assert found.seconds < 30


def test_tasks_without_one_and_a_slower_task_have_the_sandboxs(patient):
    sleep = "import time\ndef f(x):\n    time.sleep(0.6)\n    return x"
    given = [{**KINDS["tests"], "timeout": limit} for limit in (0.3, None)]
    quick, other = patient.run([(record, sleep) for record in given])
    assert (quick.status, other.status) == ("timeout", "passed")


def test_a_benchmarks_limits_are_its_own():
    sleep = "import time\ndef f(x):\n    time.sleep(0.3)\n    return x"
    with Sandbox(workers=1, benchmark=True) as sandbox:
        for kind in ("tests", "inputs", "calls"):
            found = sandbox.run([({**KINDS[kind], "timeout": 0.05}, sleep)])[0]
            assert found.passed, kind


COUNTS = {
    "for": ("def f(x):\n    for i in range(x): pass\n    return i", 11),
    "while": ("def f(x):\n    while x:\n        x -= 1\n    return x", 11),
    "recursion": ("def f(x):\n    return f(x - 1) if x else x", 11),
    "list": ("def f(x):\n    return [i for i in range(x)]", 11),
    "generator in a generator": ("def f(x):\n    return sum(i for i in range(x) for j in range(2))", 31),
    "dict": ("def f(x):\n    return {i: {j for j in range(3)} for i in range(x)}", 41),
    "lambda": ("f = lambda x: max(map(lambda i: i, range(x)))", 11),
    "method": ("class A:\n    def g(self): return 1\ndef f(x):\n    return sum(A().g() for _ in range(x))", 21),
    "module": ("table = [i for i in range(50)]\ndef f(x): return table[x]", 51),
    "async": (
        "import asyncio\nasync def one(): return 1\nasync def all_(x):\n    return [await one() for _ in range(x)]\n"
        "def f(x): return asyncio.run(all_(x))",
        22,
    ),
    "head": ('"""What it is."""\nfrom __future__ import annotations\ndef f(x: "no name") -> None: return x', 1),
    "none in C": ("def f(x):\n    return sorted(range(x * 1000))", 1),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_turns_and_calls_are_counted(patient, kind):
    program, turns = COUNTS[kind]
    enough, few = patient.run([(task(TEN), timeouts.counted(program, count)) for count in (turns, turns - 1)])
    assert enough.passed, enough.error
    assert not few.passed


def test_turns_that_a_reference_would_catch_end_it_all_the_same(patient):
    program = "def f(x):\n    try:\n        for i in range(100): pass\n    except BaseException: pass\n    return x"
    assert not patient.run([(task(TEN), timeouts.counted(program, 50))])[0].passed


def test_each_run_of_a_program_has_all_turns(patient):
    program = "for _ in range(10): pass\nprint(input())"
    tests = [{"input": f"{i}\n", "output": f"{i}\n"} for i in range(3)]
    record = {**task(stdin_tests=tests), "entry_point": ""}
    verdicts = patient.run([(record, timeouts.counted(program, turns)) for turns in (10, 9)])
    assert [v.passed for v in verdicts] == [True, False]


def fixed(*references: str, settings: OwnTimeout | None = SETTINGS, timeout: float = 10.0, **fields) -> list:
    """The limits that tasks of these references get."""
    tasks = [{**task(TEN, **fields), "task_id": str(i), "reference": text} for i, text in enumerate(references)]
    found = timeouts.fixed({"train": tasks, "distill": []}, settings, LIMITS.model_copy(update={"timeout": timeout}))
    assert [{**row, "timeout": None} for row in found["train"]] == [{**row, "timeout": None} for row in tasks]
    assert found["distill"] == []
    return [row.get("timeout") for row in found["train"]]


def turning(turns: int, more: str = "pass") -> str:
    return f"def f(x):\n    {more}\n    for _ in range({turns - 1}): pass\n    return x"


def test_the_limit_is_a_rung_of_few_below_the_sandboxs():
    """The budgets are 250,000 turns for 0.5 s, and a million for 2 s."""
    quick, first, second, endless = turning(10), turning(250_000), turning(250_001), turning(1_000_001)
    assert fixed(quick, first, second, endless, timeout=8.0) == [0.5, 0.5, 2.0, None]
    assert fixed(quick, second, timeout=2.0) == [0.5, None]


def test_a_slower_machine_finds_the_same_limits():
    """As many turns, and a hundred times the time: by the clock the limit would be another."""
    slow = "import time; time.sleep(0.1)"
    assert fixed(turning(100), turning(100, slow), turning(250_001), turning(250_001, slow)) == [0.5, 0.5, 2.0, 2.0]


def test_a_reference_whose_time_is_in_c_does_not_get_a_rung_that_it_nearly_takes():
    """Of 0.1 and 0.4 s a reference may take 0.04 and 0.16."""
    settings = OwnTimeout(floor=0.1, factor=10.0)
    slow = "import time\ndef f(x):\n    time.sleep(0.2)\n    return x"
    assert fixed(slow, settings=settings, timeout=1.0) == [None]


@pytest.mark.parametrize(("settings", "timeout"), [(None, 10.0), (SETTINGS, 0.5), (SETTINGS, 0.2)])
def test_no_limits_where_they_are_switched_off_or_the_sandboxs_is_no_longer(settings, timeout):
    assert fixed(turning(10), settings=settings, timeout=timeout) == [None]


def test_a_limit_that_a_task_has_stays():
    assert fixed(turning(10), timeout=10.0) == [0.5]
    rows = [{**task(TEN, reference=turning(10)), "timeout": 7.0}]
    assert timeouts.fixed({"train": rows}, SETTINGS, LIMITS) == {"train": rows}


def test_a_reference_that_cannot_be_rewritten_has_the_sandboxs(request):
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(1000)  # packages that other tests import set it higher
    deep = "def f(x):\n    return x" + " + 1" * 900
    with pytest.raises(RecursionError):
        timeouts.counted(deep, 10)
    assert fixed(deep, turning(10)) == [None, 0.5]


def test_tasks_with_other_limits_are_another_run(tmp_path):
    """Checkpoints go on only with the tasks that they began with; and only `tasks` hangs on how limits are found."""
    files = [tmp_path / f"{limit}.jsonl" for limit in (0.5, 2.0)]
    for path in files:
        write_jsonl(path, [{**task(TEN), "timeout": float(path.stem)}])
    assert checkpoint.key("grpo", {}, files[0]) != checkpoint.key("grpo", {}, files[1])
    stages = ("tasks", "distill", "grade", "grpo", "evaluate")
    assert [job for job in stages if Path(timeouts.__file__) in closure.code(job)] == ["tasks"]


def test_a_sandbox_that_fails_ends_the_job(monkeypatch):
    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run(self, submissions):
            return [Verdict("infrastructure_error", 0, 0, error="the judge died") for _ in submissions]

    monkeypatch.setattr(timeouts, "patient", lambda limits: Broken())
    with pytest.raises(JobError, match="the reference of 0: the judge died"):
        fixed(turning(10))
