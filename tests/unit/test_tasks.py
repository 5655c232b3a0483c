"""The task records, against the real benchmark files where they are at hand."""

import ast
import gzip
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from jobs.common import official
from jobs.common.errors import JobError, UsageError
from jobs.plumbing.params import Exclusion, load
from jobs.tasks import job as tasks
from jobs.tasks import sources

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
PARAMS = load(ROOT / "params.yaml", ["tasks.toy=null"])
FIELDS = {"task_id", "prompt", "entry_point", "setup", "tests", "reference", "source", "license"}
INPUTS = {"base_input", "plus_input", "atol", "contract"}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark files in ../shared/data")


@cache
def pools() -> dict[str, list[dict]]:
    return sources.pools(PARAMS.tasks, DATA)


def splits(**changes) -> dict[str, list[dict]]:
    return tasks.collect(PARAMS.tasks.model_copy(update=changes), pools())


@needs_data
def test_every_source_has_the_same_format_and_no_task_is_in_two_splits():
    records = splits()
    assert {name: len(rows) for name, rows in records.items()} == {
        "distill": 596,
        "train": 300,
        "mbpp": 78,
        "humaneval": 164,
    }
    seen = Counter(task["task_id"] for rows in records.values() for task in rows)
    assert set(seen.values()) == {1}
    for name, rows in records.items():
        extra = {"distill": set(), "humaneval": INPUTS | {"check"}}.get(name, INPUTS)
        for task in rows:
            assert set(task) == FIELDS | extra, task["task_id"]
            assert task["entry_point"].isidentifier()
            assert "\r" not in json.dumps(task)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(task["reference"])
            assert task["tests"] or name == "humaneval"
            assert all(task["entry_point"] in test for test in task["tests"])


@needs_data
def test_mbpp_prompts_show_the_signature_as_those_of_mbpp_plus_do():
    records = splits()
    for task in records["distill"]:
        lines = task["prompt"].split("\n")
        assert lines[0] == lines[-2] == '"""'
        assert lines[-1] == ""
        assert task["tests"][0] in task["prompt"]
        assert f"{task['entry_point']}" in task["tests"][0]
        assert ast.parse(task["prompt"])  # plain mode continues it as a program
    # Where evalplus left a task as it was, our prompt for it is evalplus's to the letter.
    plus = {task["task_id"]: task["prompt"] for task in records["train"] + records["mbpp"]}
    ours = {
        task["task_id"]: task["prompt"] for task in map(official.task_of, sources.mbpp_rows(PARAMS.tasks.mbpp, DATA))
    }
    assert sum(plus[task_id] == ours[task_id] for task_id in plus) > 100


@needs_data
def test_heldout_is_drawn_by_a_seed_of_its_own_and_taken_from_train():
    known = {task["task_id"] for task in splits(heldout=0)["train"]}
    assert len(known) == 378
    for heldout in (1, 377):
        records = splits(heldout=heldout)
        held, train = ({task["task_id"] for task in records[name]} for name in ("mbpp", "train"))
        assert len(held) == heldout
        assert held | train == known
        assert not held & train
    again = splits(seed=PARAMS.tasks.seed + 1)["mbpp"]
    assert {task["task_id"] for task in again} != {task["task_id"] for task in splits()["mbpp"]}
    with pytest.raises(UsageError, match=r"tasks\.heldout"):
        splits(heldout=378)


@needs_data
def test_excluded_tasks_leave_training_and_no_benchmark():
    records = splits()
    held, trained = (records[name][0]["task_id"] for name in ("mbpp", "train"))
    listed = [Exclusion(id=name, reason=f"why {name}") for name in (held, trained)]
    kept, left_out = tasks.drop(records, PARAMS.tasks.model_copy(update={"exclude": listed}))
    assert [(row["task_id"], row["detail"]) for row in left_out if row["reason"] == "excluded"] == [
        (trained, f"why {trained}")
    ]
    assert kept["mbpp"] == records["mbpp"]
    assert kept["humaneval"] == records["humaneval"]
    assert kept["train"] == records["train"][1:]
    for name, word in (("Mbpp/0", "no source"), ("HumanEval/3", "keeps all its tasks")):
        bad = PARAMS.tasks.model_copy(update={"exclude": [Exclusion(id=name, reason="r")]})
        with pytest.raises(UsageError, match=f"{name}.*{word}|{word}.*{name}"):
            tasks.drop(records, bad)


@needs_data
def test_the_committed_exclusions_are_of_tasks_that_are_trained_on_with_some_seed():
    records = splits(heldout=0)
    kept, left_out = tasks.drop(records, PARAMS.tasks)
    gone = {row["task_id"] for row in left_out if row["reason"] == "excluded"}
    assert gone == {row.id for row in PARAMS.tasks.exclude}
    assert len(kept["train"]) == 378 - len(gone)


@pytest.mark.parametrize(
    ("code", "tests", "name"),
    [
        ("def f(x): return x", ["assert f(1) == 1"], "f"),
        ("def g(x): return x\ndef f(x): return g(x)", ["assert f(1) == g(1)", "assert f(2) == 2"], "f"),
        ("def g(x): return x\ndef f(x): return x", ["assert f(g(1)) == 1", "assert f(g(2)) == 2"], "f"),
        ("def f(x): return x", ["assert set(f([1])) == {1}", "assert math.isclose(f(1.0), 1.0)"], "f"),
        ("class Pair:\n  pass\ndef f(x): return x", ["assert f([Pair()]) == 1"], "f"),
        ("def f(x): return x", ["assert g(1) == 1"], ""),
        ("def f(x): return x\ndef g(x): return x", ["assert f(1) == 1", "assert g(1) == 1"], ""),
        ("def f(x: return x", ["assert f(1) == 1"], ""),
        ("def f(x): return x", ["assert f(1 == 1"], ""),
        ("def f(x): return x", [], ""),
    ],
)
def test_entry_points(code, tests, name):
    assert official.entry_point(code, tests) == name


def write(path: Path, text: str) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@needs_data
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_changed_file_is_refused_by_its_hash(tmp_path, suffix):
    for name, load_rows in (
        ("MbppPlus", lambda: sources.evalplus_rows("MbppPlus", PARAMS.tasks.mbpp_plus, tmp_path)),
        ("mbpp", lambda: sources.mbpp_rows(PARAMS.tasks.mbpp, tmp_path)),
    ):
        text = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).decode()
        path = tmp_path / f"{name}.jsonl{suffix}"
        write(path, text)
        assert load_rows()
        write(path, text.replace("Write", "Read", 1))
        with pytest.raises(JobError, match=rf"{path.name}.*sha256"):
            load_rows()
        write(path, text.replace('"task_id"', '"id"'))
        with pytest.raises(JobError, match=path.name):
            load_rows()
        write(path, text[:-40])
        with pytest.raises(JobError, match=rf"{path.name}: line \d+"):
            load_rows()


@needs_data
def test_evalplus_override_paths_stand_in_for_the_download(tmp_path):
    environment = dict(os.environ)
    for name, variable in (("HumanEvalPlus", "HUMANEVAL_OVERRIDE_PATH"), ("MbppPlus", "MBPP_OVERRIDE_PATH")):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()))
        environment[variable] = str(path)
    program = (
        "from pathlib import Path\nfrom jobs.tasks import sources\nfrom jobs.plumbing.params import load\n"
        f"p = load(Path({str(ROOT / 'params.yaml')!r})).tasks\nnowhere = Path('nowhere')\n"
        "print(len(sources.evalplus_rows('HumanEvalPlus', p.humaneval_plus, nowhere)),"
        " len(sources.evalplus_rows('MbppPlus', p.mbpp_plus, nowhere)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "164 378\n", done.stderr


def test_a_download_that_fails_says_so_in_one_line(tmp_path, monkeypatch):
    from evalplus.data import humaneval, utils

    monkeypatch.setattr(humaneval, "HUMANEVAL_OVERRIDE_PATH", None)
    monkeypatch.setattr(
        utils,
        "get_dataset_metadata",
        lambda name, version, mini: ("http://127.0.0.1:9/x.jsonl.gz", str(tmp_path / "cached.jsonl")),
    )
    with pytest.raises(JobError, match=r"http://127\.0\.0\.1:9/x\.jsonl\.gz: cannot be fetched"):
        sources.evalplus_rows("HumanEvalPlus", PARAMS.tasks.humaneval_plus, tmp_path)
    assert not (tmp_path / "cached.jsonl").exists()


@needs_data
def test_the_hub_s_rows_are_those_of_the_published_file(tmp_path, monkeypatch):
    """A folder laid out as the Hub's data set stands in for it: four splits of parquet files in the config `full`."""
    from datasets import Dataset, Features, List, Value

    text, texts = Value("string"), List(Value("string"))
    features = Features(
        {
            name: Value("int32") if name == "task_id" else texts if name.endswith("list") else text
            for name in sources.MBPP_FIELDS
        }
    )
    rows = sources.mbpp_rows(PARAMS.tasks.mbpp, DATA)
    folder = tmp_path / PARAMS.tasks.mbpp.repo
    (folder / "full").mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: full", "  data_files:"]
    for name, first, last in (("train", 601, 974), ("test", 11, 510), ("validation", 511, 600), ("prompt", 1, 10)):
        part = [row for row in rows if first <= row["task_id"] <= last]
        Dataset.from_list(part, features).to_parquet(folder / f"full/{name}-00000-of-00001.parquet")
        lines += [f"  - split: {name}", f"    path: full/{name}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert sources.mbpp_rows(PARAMS.tasks.mbpp, tmp_path / "nowhere") == rows


def test_the_hub_out_of_reach(tmp_path, monkeypatch):
    from datasets import config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(JobError, match=r"google-research-datasets/mbpp at 4bb6404.*: cannot be fetched"):
        sources.mbpp_rows(PARAMS.tasks.mbpp, tmp_path)
