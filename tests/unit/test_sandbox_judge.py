"""What holds for the judge's process itself: how much it may take, and what becomes of one that is stuck."""

import os
import signal
from pathlib import Path

from jobs.sandbox import Sandbox, pool

TASK = {
    "task_id": "T/1",
    "prompt": "",
    "entry_point": "f",
    "setup": "import numpy",
    "tests": ["assert f(2) == 4", "assert numpy.array_equal(f(numpy.ones(3)), [2, 2, 2])"],
    "reference": "def f(x):\n    return x * 2\n",
    "source": "here",
    "license": "MIT",
}
RIGHT = TASK["reference"]


def judge_of(sandbox: Sandbox) -> int:
    process = sandbox.judges[0].process
    assert process is not None
    return process.pid


def test_numeric_libraries_have_one_thread_in_judge_and_servers():
    """With one a core, what they reserve for each breaks the judge's limit of memory on a machine of many cores."""
    with Sandbox(workers=1, timeout=5, packages=["numpy"]) as sandbox:
        assert sandbox.run([(TASK, RIGHT)])[0].passed
        judge = judge_of(sandbox)
        servers = [p for p in Path("/proc").glob("[0-9]*") if parent(p) == judge]
        assert servers
        for process in (Path(f"/proc/{judge}"), *servers):
            variables = (process / "environ").read_bytes().decode().split("\0")
            assert {f"{name}_NUM_THREADS=1" for name in ("OPENBLAS", "OMP", "MKL")} <= set(variables)


def parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_a_judge_that_waits_for_ever_does_not_hold_its_worker(monkeypatch):
    """It takes no CPU time, so no limit of that ends it. The second try is a judge of its own."""
    monkeypatch.setattr(pool, "SPARE_SECONDS", 0.5)
    with Sandbox(workers=1, timeout=1, packages=["numpy"]) as sandbox:
        assert sandbox.run([(TASK, RIGHT)])[0].passed  # its task is ready
        stuck = judge_of(sandbox)
        os.kill(stuck, signal.SIGSTOP)
        verdict = sandbox.submit(TASK, RIGHT).result(timeout=pool.PREPARING_SECONDS / 10)
        assert verdict.passed
        assert judge_of(sandbox) != stuck
