"""`jobs tasks` as a process, and references judged in the real sandbox."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from jobs import tasks
from jobs.common.files import read_json, read_jsonl, sha256
from jobs.plumbing.params import load
from jobs.sandbox import Sandbox
from tests import program

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
PARAMS = load(ROOT / "params.yaml", ["tasks.toy=null"])


def collect(folder: Path, *assignments: str, sources: Path = DATA) -> subprocess.CompletedProcess:
    words = ("--sources", sources, "--out", "tasks", "--metrics", "metrics.json")
    return program.run(folder, "tasks", *words, settings=assignments)


def test_toy_tasks_are_the_same_from_run_to_run(tmp_path):
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        done = collect(tmp_path / name, "tasks.toy={distill: 8, train: 6, heldout: 5}", sources=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == read_json(tmp_path / name / "metrics.json")
        digests.append((sha256(tmp_path / name / "tasks"), sha256(tmp_path / name / "metrics.json")))
    assert digests[0] == digests[1]
    folder = tmp_path / "one/tasks"
    assert sorted(path.name for path in folder.iterdir()) == [
        "benchmarks.jsonl",
        "contamination.jsonl",
        "distill.jsonl",
        "left_out.jsonl",
        "toy.jsonl",
        "train.jsonl",
    ]
    counts = {name: len(read_jsonl(folder / f"{name}.jsonl")) for name in ("distill", "train", "toy", "left_out")}
    assert counts == {"distill": 8, "train": 6, "toy": 5, "left_out": 0}


def test_bad_params_and_missing_sources_end_in_one_line(tmp_path):
    done = collect(tmp_path, "tasks.mbpp.revision=main", sources=tmp_path)
    assert done.returncode == 2
    assert "tasks.mbpp.revision" in done.stderr
    (tmp_path / "MbppPlus.jsonl").write_text('{"task_id": "Mbpp/2"}\n')
    done = collect(tmp_path, "tasks.toy=null", sources=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "MbppPlus.jsonl: has the sha256" in done.stderr
    assert not (tmp_path / "tasks").exists()


def test_a_task_whose_reference_fails_is_left_out_and_listed():
    good = {
        "task_id": "T/1",
        "prompt": "",
        "entry_point": "f",
        "setup": "",
        "tests": ["assert f(2) == 4"],
        "reference": "def f(x): return x * x",
        "source": "here",
        "license": "MIT",
    }
    bad = [
        good | {"task_id": "T/2", "reference": "def f(x): return x"},
        good | {"task_id": "T/3", "reference": "def f(x):\n    while True: pass"},
        good | {"task_id": "T/4", "reference": "import os\nos._exit(0)"},
        good
        | {
            "task_id": "T/5",
            "base_input": [[1]],
            "plus_input": [],
            "atol": 0,
            "contract": "",
            "reference": "def f(x): raise MemoryError",
        },
        good | {"task_id": "T/6", "entry_point": ""},
        good | {"task_id": "T/7", "setup": "from os import path"},
        good | {"task_id": "T/8", "reference": "import time\ndef f(x):\n    time.sleep(0.6)\n    return x * x"},
    ]
    with Sandbox(workers=1, timeout=1.0) as sandbox:
        kept, left_out = tasks.check("distill", [good, *bad], sandbox)
        assert tasks.check("mbpp", [bad[-1]], sandbox) == ([bad[-1]], [])  # a benchmark is whole
    assert kept == [good]
    assert {row["task_id"]: row["reason"] for row in left_out} == {
        "T/2": "reference",
        "T/3": "reference",
        "T/4": "reference",
        "T/5": "reference",
        "T/6": "entry_point",
        "T/7": "setup",
        "T/8": "slow",
    }


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark files in ../shared/data")
@pytest.mark.parametrize(("split", "count"), [("distill", 60), ("train", 15), ("mbpp", 10), ("humaneval", 8)])
def test_real_references_pass_their_own_tests(split, count):
    """A seeded sample of each split; the slowest MBPP+ references do not fit into the training limits."""
    chosen = random.Random(5).sample(tasks.collect(PARAMS.tasks, DATA)[split], count)
    with Sandbox.from_params(PARAMS.sandbox, benchmark=split in tasks.BENCHMARKS) as sandbox:
        kept, left_out = tasks.check(split, chosen, sandbox)
    assert len(kept) >= count - 2, left_out
    assert {row["reason"] for row in left_out} <= {"reference", "setup", "slow"}
