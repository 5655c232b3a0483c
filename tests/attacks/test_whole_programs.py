"""Hostile programs with standard input and output, one a file in whole/: none passes a test, none harms, and what runs
after each is judged right. Those named right_answer_* write what is expected, and must fail by how they end.
"""

import time
from pathlib import Path

import pytest

from jobs.sandbox import STATUSES, Sandbox
from tests.attacks.test_attacks import ANSWERS, below, harm, settled, world  # noqa: F401  # the fixture's name is its use

PROGRAMS = sorted((Path(__file__).parent / "whole").glob("*.py"))
TESTS = [{"input": f"{n}\n", "output": f"{answer}\n"} for n, (_, answer) in zip((3, 4, 5), ANSWERS, strict=True)]
TASKS = {
    rule: {"task_id": rule, "prompt": "", "entry_point": "", "stdin_tests": TESTS, "comparison": rule}
    for rule in ("lines", "tokens", "livecodebench")
}
TASKS["near"] = TASKS["lines"] | {"task_id": "near", "atol": 1e-6, "rtol": 1e-6}
RIGHT = f"print({dict(zip('345', (answer for _, answer in ANSWERS), strict=True))}[input()])\n"
WRONG = "print(input())\n"


@pytest.fixture(scope="module")
def sandbox(world):  # noqa: F811
    with Sandbox(workers=1, timeout=1.0, memory_mib=512) as sandbox:
        yield sandbox


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_attack(sandbox, world, path):  # noqa: F811
    listener, bystander = world
    before, achieved = harm(), []
    for name, task in TASKS.items():
        began = time.monotonic()
        verdict = sandbox.run([(task, path.read_text())])[0]
        if verdict.passed or verdict.tests_passed or verdict.status not in STATUSES[:-1]:
            achieved.append(f"{name}: {verdict}")
        if "471203" in verdict.error or "\n" in verdict.error or len(verdict.error) > 200:
            achieved.append(f"{name}: {verdict}")
        if time.monotonic() - began > 30:
            achieved.append(f"{name}: held the judge for {time.monotonic() - began:.0f} s")
        after = sandbox.run([(task, RIGHT), (task, WRONG)])
        if any(found.status == "timeout" for found in after):  # a busy machine; harm that stays would time out again
            after = sandbox.run([(task, RIGHT), (task, WRONG)])
        if [found.status for found in after] != ["passed", "failed"]:
            achieved.append(f"{name}: the next: {after}")
    achieved += sorted(harm() - before) + sorted(listener.reached())
    if bystander.poll() is not None:
        achieved.append("the bystander died")
    assert achieved == []


def test_nothing_is_left(world):  # noqa: F811
    with Sandbox(workers=1, timeout=1.0) as sandbox:
        judge = sandbox.judges[0].process.pid
        for name in ("fork_writers", "sleep_on", "right_answer_then_hangs", "close_output_and_stay"):
            sandbox.run([(TASKS["lines"], (Path(__file__).parent / "whole" / f"{name}.py").read_text())])
            assert settled(judge), "each server has the one child that is made ready, and nothing runs below that"
        left = {judge, *below(judge)}
    deadline = time.monotonic() + 5
    while (alive := {pid for pid in left if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive
