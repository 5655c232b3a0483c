"""`jobs tasks` as a process, and references judged in the real sandbox."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.common.errors import JobError
from jobs.common.files import read_json, read_jsonl, sha256
from jobs.plumbing.params import load
from jobs.tasks import job as tasks
from jobs.tasks import run_references, sources
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
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "README.md",
        "benchmarks.jsonl",
        "contamination.jsonl",
        "distill.jsonl",
        "left_out.jsonl",
        "sizes.json",
        "toy.jsonl",
        "train.jsonl",
    ]
    counts = {name: len(read_jsonl(folder / f"{name}.jsonl")) for name in ("distill", "train", "toy", "left_out")}
    assert read_json(folder / "sizes.json") == {"toy": 5}
    assert counts == {"distill": 8, "train": 6, "toy": 5, "left_out": 0}


def test_the_distilled_tasks_are_trained_on_as_well_if_params_say_so(tmp_path):
    toy = "tasks.toy={distill: 3, train: 2, heldout: 5}"
    done = collect(tmp_path, toy, "tasks.train_on_distill=true", sources=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {name: read_jsonl(tmp_path / f"tasks/{name}.jsonl") for name in ("train", "distill", "toy")}
    assert rows["train"][2:] == rows["distill"]
    assert [task["task_id"].split("/")[1] for task in rows["train"]] == ["train"] * 2 + ["distill"] * 3
    assert json.loads(done.stdout)["tasks"] == {"train": 5, "distill": 3, "toy": 5}


def test_training_tasks_have_limits_of_their_own_and_benchmarks_have_none(tmp_path):
    """What is switched off leaves the files as they were, to the byte."""
    toy = "tasks.toy={distill: 3, train: 2, heldout: 5}"
    digests = {}
    for name, assignments in {"on": (), "null": ("tasks.timeout=null",), "short": ("sandbox.timeout=0.5",)}.items():
        (tmp_path / name).mkdir()
        done = collect(tmp_path / name, toy, "tasks.train_on_distill=true", *assignments, sources=tmp_path)
        assert done.returncode == 0, done.stderr
        digests[name] = sha256(tmp_path / name / "tasks")
    assert digests["on"] != digests["null"] == digests["short"]
    for split, limits in {"train": {0.5}, "distill": {0.5}, "toy": {None}}.items():
        rows, before = (read_jsonl(tmp_path / name / f"tasks/{split}.jsonl") for name in ("on", "null"))
        assert {row.get("timeout") for row in rows} == limits
        assert [{key: value for key, value in row.items() if key != "timeout"} for row in rows] == before
    said = "has a time limit of its own"
    assert "5 of train have 0.5 s, 3 of distill have 0.5 s" in (tmp_path / "on/tasks/README.md").read_text()
    assert said not in (tmp_path / "null/tasks/README.md").read_text()


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


def record(number: int, reference: str, **changes) -> dict:
    return {
        "task_id": f"T/{number}",
        "prompt": "",
        "entry_point": "f",
        "setup": "",
        "tests": ["assert f(2) == 4"],
        "reference": reference,
        "source": "here",
        "license": "MIT",
    } | changes


SQUARE = "def f(x): return x * x"
SLOW = """import time
def f(x):
    end = time.process_time() + 1.0
    while time.process_time() < end: pass
    return x * x"""
LIMITS = PARAMS.sandbox.model_copy(update={"workers": 1})


def test_references_that_fail_stop_the_job_by_name():
    inputs = {"base_input": [[1]], "plus_input": [], "atol": 0, "contract": ""}
    bad = [
        record(2, "def f(x): return x"),
        record(3, "import os\nos._exit(0)"),
        record(4, "def f(x): raise MemoryError", **inputs),
        record(5, SQUARE, tests=[]),
    ]
    with pytest.raises(JobError, match=r"tasks\.exclude") as caught:
        run_references.require_passing({"distill": [record(1, SQUARE), *bad[:2]], "mbpp": bad[2:]}, ["mbpp"], LIMITS)
    for task, split in zip(bad, ("distill", "distill", "mbpp", "mbpp"), strict=True):
        assert f"{task['task_id']} ({split}): " in str(caught.value)
    assert "T/1 " not in str(caught.value)


def test_a_slow_reference_is_told_of_and_kept(caplog):
    """It takes longer than an answer has in training: nothing but a word on the log may come of that."""
    limits = LIMITS.model_copy(update={"timeout": 0.5})
    splits = {"train": [record(1, SQUARE), record(2, SLOW)], "mbpp": [record(3, SLOW)]}
    run_references.require_passing(splits, ["mbpp"], limits)
    assert [line.split(" (train)")[0] for line in caplog.messages] == ["T/2"]
    assert "0.5 s (sandbox.timeout)" in caplog.text


def test_a_limit_that_a_file_gives_a_task_does_not_fail_its_slow_reference(caplog):
    splits = {"train": [record(1, SLOW, timeout=0.25), record(2, SLOW, timeout=100.0)]}
    run_references.require_passing(splits, [], LIMITS.model_copy(update={"timeout": 50.0}))
    assert [line.split(" (train)")[0] for line in caplog.messages] == ["T/1"]
    assert "0.25 s (its own timeout)" in caplog.text


def test_a_params_switch_leaves_added_inputs_out_of_training_and_of_nothing_else():
    def row(number: int) -> dict:
        inputs = {"base_input": [[1]], "plus_input": [[2], [3]], "reference": "def f(x): return x"}
        return {"task_id": f"Mbpp/{number}", "entry_point": "f"} | inputs

    pools = {name: [] for name in (sources.MBPP, sources.HUMANEVAL_PLUS)} | {
        sources.MBPP_PLUS: [row(number) for number in range(6)]
    }
    settings = PARAMS.tasks.model_copy(update={"heldout": 2, "files": []})
    with_plus = tasks.collect(settings, pools)
    without = tasks.collect(settings.model_copy(update={"plus_inputs": False}), pools)
    assert [task["plus_input"] for task in with_plus["train"]] == [[[2], [3]]] * 4
    assert [task.get("plus_input") for task in without["train"]] == [None] * 4
    assert [task["base_input"] for task in without["train"]] == [[[1]]] * 4
    assert without["mbpp"] == with_plus["mbpp"] and [task["plus_input"] for task in without["mbpp"]] == [[[2], [3]]] * 2


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark files in ../shared/data")
def test_real_references_pass_their_own_tests():
    """A seeded sample of each split."""
    splits = tasks.collect(PARAMS.tasks, sources.pools(PARAMS.tasks, DATA))
    chosen, _ = tasks.drop(splits, PARAMS.tasks)
    counts = {"distill": 60, "train": 15, "mbpp": 10, "humaneval": 8}
    drawn = random.Random(5)
    sample = {name: drawn.sample(chosen[name], count) for name, count in counts.items()}
    run_references.require_passing(sample, ["mbpp", "humaneval"], PARAMS.sandbox)


def busy(stop: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", f"import time\nwhile time.time() < {stop}: pass"])


@pytest.mark.parametrize("timeout", [0.02, 2.0])
def test_a_loaded_machine_makes_the_same_bytes(tmp_path, timeout):
    """Alone, beside four busy loops, and pinned to one core that they share.

    With 0.02 s all references are slow; with 2 s the tasks have limits of their own.
    """
    digests = []
    for name, loops, cores in (("alone", 0, None), ("loaded", 4, None), ("pinned", 4, {0})):
        (tmp_path / name).mkdir()
        others = [busy(time.time() + 60) for _ in range(loops)]
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(before)} if cores else before)
            done = collect(
                tmp_path / name, "tasks.toy={distill: 12, train: 8, heldout: 6}", f"sandbox.timeout={timeout}"
            )
        finally:
            os.sched_setaffinity(0, before)
            for process in others:
                process.kill()
                process.wait()
        assert done.returncode == 0, done.stderr
        digests.append((sha256(tmp_path / name / "tasks"), sha256(tmp_path / name / "metrics.json")))
        assert ('"timeout": 0.5' in (tmp_path / name / "tasks/train.jsonl").read_text()) == (timeout > 0.5)
    assert len(set(digests)) == 1
