"""The bench of GRPO's step: what it makes of a system's log, and what a system is started with. The runs want a GPU."""

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from jobs import __main__
from jobs.common.files import write_jsonl
from jobs.common.task import read_tasks
from jobs.plumbing.params import load
from jobs.toy import world
from jobs.training import loop
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
    assert {key for key in ("UNSLOTH_GRPO_SEQ_PACKING",) if started.get(key) == "1"} == switches
    assert found["flat"] == {"seconds": 6.25, "generate": 3.38, "steps": [6.5, 6.0], "tokens": 32768}
    assert found["reference"] == {"seconds": 5.0, "generate": 3.0, "steps": [5.0], "tokens": 17010}


@pytest.mark.parametrize("system", grpo_peers.OURS)
@pytest.mark.parametrize("case", grpo_peers.SHAPES)
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
    monkeypatch.setattr(grpo_peers, "draw_rewards", lambda: None)
    monkeypatch.setattr(__main__, "main", words.extend)
    grpo_peers.ours(
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
    assert params.grpo.batch_size * params.grpo.gradient_accumulation == grpo_peers.SHAPES[case][0] * grpo_peers.GROUP
    assert [task["task_id"] for task in read_tasks(Path(said["--tasks"]))] == [task["task_id"] for task in tasks]


class FakeEvent:
    def set(self) -> None: ...
