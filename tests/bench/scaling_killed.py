"""The case `killed` of tests/bench/scaling.py: a rank is killed, the others end, and the command given again goes on."""

import argparse
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.bench.gpu_jobs import Memory
from tests.bench.limited import Case, Failed
from tests.bench.scaling_grpo import beside_unbroken, facts_of, grpo_words, toy_settings
from tests.bench.scaling_inputs import JOBS, toy_inputs

KILL_AFTER = 7  # steps


def killed(case: Case, options: argparse.Namespace) -> dict:
    words = [*JOBS, *grpo_words(toy_inputs(options), [*toy_settings(2, 64), *options.set])]
    curve = case.folder / "plots/grpo.csv"
    process = case.start(words, case.log("1"))
    while not (curve.exists() and len(curve.read_text().splitlines()) > KILL_AFTER):  # a line of names, and the steps
        if process.poll() is not None or case.left() < 1:
            raise Failed(f"no step {KILL_AFTER}: {case.log('1').read_text(errors='replace')[-800:]}")
        time.sleep(0.005)
    os.kill(rank_in(case, "1"), signal.SIGKILL)
    began = time.monotonic()
    try:
        code = process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        return {"ended_after": None, "left": list(case.processes().values())}
    found: dict = {"ended_after": round(time.monotonic() - began, 2), "exit_code": code, "left": case.settled()}
    found |= {"steps_before": len(curve.read_text().splitlines()) - 1, "gib_after": used_gib()}
    found["said"] = case.log("1").read_text(errors="replace").splitlines()[-1:]
    case.run(words, case.log("2"))
    lines = case.log("2").read_text(errors="replace").splitlines()
    found["went_on"] = [line.rpartition("/")[2] for line in lines if "resuming from" in line]
    return found | {"left_at_end": case.settled()} | facts_of(case.folder) | beside_unbroken(case, options)


def used_gib() -> list[float]:
    """The memory in use of each card."""
    memory = Memory()
    memory.sample()
    return memory.peak


def rank_in(case: Case, number: str) -> int:
    """The process that supervises a rank of the case; the rank dies with it."""
    found = []
    for pid in case.processes():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={number}".encode() in variables:
            found.append(pid)
    return min(found)
