"""The bench of GRPO's step: what it makes of a system's log, and what a system is started with. The runs want a GPU."""

import argparse
import json
import sys
import time
from pathlib import Path

import pytest

from jobs import __main__
from jobs.common.files import write_jsonl
from jobs.common.task import read_tasks
from jobs.plumbing.params import load
from jobs.toy import world
from jobs.training import loop
from tests.bench import gpu_jobs, grpo_peers, limited
from tests.bench import grpo_peers_clock as clock
from tests.bench import grpo_peers_systems as systems
from tests.unit.test_supervisor import gone

LOG = """Step 1:  50%|###   STEP {"case": "flat", "seconds": 0.0, "generate": 9.5, "tokens": 32768}
STEP {"case": "flat", "seconds": 6.5, "generate": 3.5, "tokens": 32768}
 10%|# STEP {"case": "flat", "seconds": 6.0, "generate": 3.25, "tokens": 32768} 20%|##
STEP {"case": "reference", "seconds": 30.0, "generate": 3.0, "tokens": 17010}
STEP {"case": "reference", "seconds": 5.0, "generate": 3.0, "tokens": 17010}
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The bench with a stand-in for every system, which begins in Python by the lines that are given for it."""
    monkeypatch.setattr(grpo_peers, "PROGRAM", tmp_path / "system.py")
    lines = "import json, os, subprocess, sys, time\nsystem = sys.argv[-1]\n"

    def run(program: str, *words: str) -> dict:
        (tmp_path / "system.py").write_text(lines + program)
        monkeypatch.setattr(sys, "argv", ["bench", "model", "adapter", "tasks", "--out", str(tmp_path / "out"), *words])
        grpo_peers.main()
        return json.loads((tmp_path / "out/steps.json").read_text())

    return run


def test_each_system_is_started_with_its_switches_alone(started, monkeypatch):
    name = "UNSLOTH_GRPO_SEQ_PACKING"
    monkeypatch.delitem(gpu_jobs.ENVIRONMENT, name, raising=False)
    started(f"open('switch', 'w').write(os.environ.get({name!r}, ''))")
    work = Path(sys.argv[5]) / "work"
    told = {system: (work / system / "switch").read_text() for system in systems.SYSTEMS}
    assert {system: found for system, found in told.items() if found} == {"ours-packed": "1"}


def test_the_first_step_of_each_case_is_left_out(started):
    found = started(f"print({LOG!r})\nsys.exit(3)", "--systems", "trl")
    result = found["trl flat reference"]
    assert result["code"] == 3 and "ended" not in result
    assert result["flat"] == {"seconds": 6.25, "generate": 3.38, "steps": [6.5, 6.0], "tokens": 32768}
    assert result["reference"] == {"seconds": 5.0, "generate": 3.0, "steps": [5.0], "tokens": 17010}


HANGS = """
if system == "trl":
    sys.exit()
row = {"case": "flat", "seconds": 1.0, "generate": 0.5, "tokens": 7}
for _ in range(1 if system == "unsloth" else 3):
    print("STEP", json.dumps(row), flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open("new", "w").write(f"{os.getpid()} {child.pid}")
os.rename("new", "pids")
time.sleep(600)
"""


def test_a_system_that_does_not_end_is_ended_its_steps_are_kept_and_the_next_one_is_run(started, monkeypatch):
    """Its time is over as soon as it hangs, however long a start takes here."""
    whole = limited.Case.left

    def left(case: limited.Case) -> float:
        seconds = whole(case)
        assert 0 < seconds <= 90
        while case.name != "trl" and not (case.folder / "pids").exists():
            time.sleep(0.02)
        return seconds if case.name == "trl" else 0.1

    monkeypatch.setattr(limited.Case, "left", left)
    found = started(HANGS, "--systems", "ours", "unsloth", "trl", "--limit", "90")
    assert found["ours flat reference"]["ended"] == "after 90 s" and "code" not in found["ours flat reference"]
    assert found["ours flat reference"]["flat"]["steps"] == [1.0, 1.0]
    assert "flat" not in found["unsloth flat reference"], "its only step is the one that compiles"
    assert found["unsloth flat reference"]["ended"] == "after 90 s"
    assert found["trl flat reference"]["code"] == 0
    for system in ("ours", "unsloth"):
        for pid in (Path(sys.argv[5]) / "work" / system / "pids").read_text().split():
            assert gone(int(pid)), "what it had started holds the card"


@pytest.mark.parametrize("system", systems.OURS)
@pytest.mark.parametrize("case", clock.SHAPES)
def test_the_job_is_given_params_that_it_takes_of_the_adapters_own_shape_and_no_task_with_a_long_prompt(
    tmp_path, monkeypatch, system, case
):
    adapter, tasks = tmp_path / "adapter", world.tasks(1, {"train": 2})["train"]
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 64, "lora_alpha": 16}))
    long = tasks[1] | {"task_id": "long", "prompt": tasks[1]["prompt"] + "# " + "x" * 1000 + "\n"}
    write_jsonl(tmp_path / "tasks.jsonl", [*tasks, long])
    words: list = []
    monkeypatch.chdir(adapter)
    monkeypatch.setattr(loop, "train", loop.train)  # which the bench replaces
    monkeypatch.setattr(systems, "draw_rewards", lambda: None)
    monkeypatch.setattr(__main__, "main", words.extend)
    systems.ours(
        argparse.Namespace(
            one=system,
            cases=[case],
            profile=False,
            out=tmp_path,
            model=tmp_path / "model",
            adapter=adapter,
            tasks=tmp_path / "tasks.jsonl",
            set=[],
        )
    )
    said = dict(zip(words[1::2], words[2::2], strict=False))
    params = load(Path(said["--params"]), [words[i + 1] for i, word in enumerate(words) if word == "--set"])
    assert (params.sft.lora.rank, params.sft.lora.alpha) == (64, 16)
    assert params.grpo.batch_size * params.grpo.gradient_accumulation == clock.SHAPES[case][0] * clock.GROUP
    assert [task["task_id"] for task in read_tasks(Path(said["--tasks"]))] == [task["task_id"] for task in tasks]
