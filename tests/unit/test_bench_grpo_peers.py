"""The bench of GRPO's step: what it makes of a system's log, and what a system is started with. The runs want a GPU."""

import argparse
import subprocess

import pytest

from tests.bench import grpo_peers

LOG = """Step 1:  50%|###   STEP {"case": "flat", "seconds": 0.0, "generate": 9.5, "tokens": 32768}
STEP {"case": "flat", "seconds": 6.5, "generate": 3.5, "tokens": 32768}
 10%|# STEP {"case": "flat", "seconds": 6.0, "generate": 3.25, "tokens": 32768} 20%|##
STEP {"case": "reference", "seconds": 30.0, "generate": 3.0, "tokens": 17010}
STEP {"case": "reference", "seconds": 5.0, "generate": 3.0, "tokens": 17010}
"""


@pytest.mark.parametrize(
    ("system", "switches"),
    [
        ("ours", set()),
        ("ours-packed", {"UNSLOTH_GRPO_SEQ_PACKING"}),
        ("ours-shared", {"UNSLOTH_GRPO_PREFIX_GROUPER"}),
    ],
)
def test_a_system_is_started_with_its_switches_and_its_first_steps_are_left_out(
    tmp_path, monkeypatch, system, switches
):
    started = {}

    def run(words, stdout, env, **_):
        started.update(env)
        stdout.write(LOG)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(grpo_peers.subprocess, "run", run)
    monkeypatch.setattr(
        grpo_peers, "Memory", lambda: argparse.Namespace(start=lambda: None, stopped=FakeEvent(), peak=[1.5])
    )
    found = grpo_peers.alone(system, argparse.Namespace(out=tmp_path, cases=["flat", "reference"]))
    assert {
        key for key in ("UNSLOTH_GRPO_SEQ_PACKING", "UNSLOTH_GRPO_PREFIX_GROUPER") if started.get(key) == "1"
    } == switches
    assert found["flat"] == {"seconds": 6.25, "generate": 3.38, "steps": [6.5, 6.0], "tokens": 32768}
    assert found["reference"] == {"seconds": 5.0, "generate": 3.0, "steps": [5.0], "tokens": 17010}


class FakeEvent:
    def set(self) -> None: ...
