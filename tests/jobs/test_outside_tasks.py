"""`jobs tasks` with published data sets, from a stand-in of the Hub to splits, benchmarks, reasons and the data card."""

import hashlib
import json
from pathlib import Path

import httpx
import huggingface_hub
import pytest
from click.testing import CliRunner
from pyarrow import Table, parquet

from jobs.__main__ import main
from jobs.common.benchmarks import read_benchmarks
from jobs.common.files import read_json, read_jsonl
from jobs.tasks import pairs, sources
from tests.program import ROOT
from tests.unit.test_task_sources import SUM, bigcode, lcb, leetcode, taco

REVISION = "0123456789abcdef0123456789abcdef01234567"
STORY = "Count the blue marbles that the second child holds after every round of the game has been played to its end."
ROWS = {
    "taco": [
        taco("Add two integers."),
        taco("Add them, in any order."),
        taco(f"{STORY} Print their number.", difficulty="HARD"),
        taco("Add two small integers.", solutions=["print(0)"]),
    ],
    "leetcode": [leetcode(["candidate(x = 5, y = 3) == 2", "candidate(y = 1,x = 2) == 1"])],
    "lcb": [lcb(question_content=f"{STORY} Output it."), lcb(question_id="old", contest_date="2023-01-01T00:00:00")],
    "bigcode": [bigcode(), bigcode(task_id="BigCodeBench/2", libs="['pandas', 'numpy']")],
}
FILES = {
    "taco": "ALL/train-00000-of-00001.parquet",
    "leetcode": "train.jsonl",
    "lcb": "test6.jsonl",
    "bigcode": "b.parquet",
}
SOURCES = [
    {"name": "taco", "format": "taco", "split": "train"},
    {"name": "leetcode", "format": "leetcode", "split": "train"},
    {"name": "lcb", "format": "livecodebench", "split": "livecodebench", "since": "2024-01-01"},
    {"name": "bigcode", "format": "bigcodebench", "split": "bigcodebench"},
]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Files of four data sets; what was asked for; and three empty sources that the job has anyway."""
    asked = []
    for name, rows in ROWS.items():
        path = tmp_path / "hub" / name / FILES[name]
        path.parent.mkdir(parents=True)
        if path.suffix == ".parquet":
            parquet.write_table(Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def download(repo, file, repo_type, revision):
        asked.append((repo, file, repo_type, revision))
        path = tmp_path / "hub" / repo.partition("/")[2] / file
        if not path.exists():
            raise OSError("no such file on the Hub")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    mbpp = {"task_id": "Mbpp/1", "prompt": "Write `f(x)`.", "entry_point": "f", "setup": "", "tests": ["assert f(1) == 2"],
            "reference": "def f(x):\n    return x + 1\n", "source": "MBPP+", "license": "Apache-2.0"}  # fmt: skip
    pool = {sources.MBPP_PLUS: [mbpp], sources.MBPP: [], sources.HUMANEVAL_PLUS: []}
    monkeypatch.setattr(sources, "pools", lambda settings, folder: pool)
    monkeypatch.setattr(pairs, "of", lambda *arguments: [])
    monkeypatch.chdir(tmp_path)
    return asked


def entries(folder: Path, **changes) -> str:
    found = []
    for entry in SOURCES:
        file = FILES[entry["name"]]
        digest = hashlib.sha256((folder / "hub" / entry["name"] / file).read_bytes()).hexdigest()
        pinned = {"repo": f"people/{entry['name']}", "revision": REVISION, "file": file, "sha256": digest}
        found.append(entry | pinned | changes.get(entry["name"], {}))
    return json.dumps(found)


def call(folder: Path, **changes):
    words = ["tasks", "--params", str(ROOT / "params.yaml"), "--out", "tasks", "--metrics", "metrics.json"]
    settings = ("tasks.heldout=0", "tasks.exclude=[]", "sandbox.require=[]", "sandbox.workers=1",
                f"tasks.sources={entries(folder, **changes)}")  # fmt: skip
    return CliRunner().invoke(main, [*words, *(word for text in settings for word in ("--set", text))])


def test_from_the_hub_to_the_splits(hub, tmp_path):
    done = call(tmp_path)
    assert done.exit_code == 0, done.output
    assert hub == [(f"people/{entry['name']}", FILES[entry["name"]], "dataset", REVISION) for entry in SOURCES]
    train = read_jsonl(Path("tasks/train.jsonl"))
    assert [(task["task_id"], task["source"]) for task in train] == [
        ("Mbpp/1", "MBPP+"), ("taco/0", "taco"), ("leetcode/0", "leetcode"),
    ]  # fmt: skip
    assert train[1]["reference"] == SUM and train[1]["difficulty"] == "easy"
    left_out = {row["task_id"]: row["reason"] for row in read_jsonl(Path("tasks/left_out.jsonl"))}
    assert left_out == {
        "taco/1": "unusable", "taco/2": "contaminated", "taco/3": "unverified", "bigcode/2": "packages",
    }  # fmt: skip
    [overlap] = [row for row in read_jsonl(Path("tasks/contamination.jsonl")) if row["rule"] == "words"]
    assert (overlap["task_id"], overlap["benchmark"]) == ("taco/2", "lcb/abc1")
    benchmarks = read_benchmarks(Path("tasks"), ["livecodebench", "bigcodebench"])
    assert {name: [task["task_id"] for task in tasks] for name, tasks in benchmarks.items()} == {
        "livecodebench": ["lcb/abc1"], "bigcodebench": ["bigcode/1"],
    }  # fmt: skip
    assert read_json(Path("tasks/sizes.json")) == {"livecodebench": 1, "bigcodebench": 1}
    metrics = read_json(Path("metrics.json"))
    assert metrics["left_out"]["packages"] == 1 and metrics["tasks"]["train"] == 3
    card = Path("tasks/README.md").read_text()
    for line in ("| train | 1 | taco | Apache-2.0 |", "| bigcodebench | 1 | bigcode | Apache-2.0 |"):
        assert line in card
    assert "| packages | it needs packages that the sandbox does not have (sandbox.packages) | 1 |" in card


def test_a_copy_in_the_folder_of_sources_is_taken_in_the_place_of_the_download(hub, tmp_path):
    for name in ROWS:
        place = tmp_path / "data/sources" / name / FILES[name]
        place.parent.mkdir(parents=True)
        (tmp_path / "hub" / name / FILES[name]).rename(place)
        (tmp_path / "hub" / name / FILES[name]).write_bytes(place.read_bytes())
    assert call(tmp_path).exit_code == 0
    assert not hub


def test_what_the_hub_does_not_have_or_has_changed_ends_in_one_line(hub, tmp_path):
    done = call(tmp_path, lcb={"file": "test9.jsonl"})
    assert done.exit_code == 1
    assert "people/lcb: test9.jsonl cannot be fetched (no such file on the Hub)" in done.output
    done = call(tmp_path, lcb={"sha256": "0" * 64})
    assert done.exit_code == 1
    assert "not the one of lcb in tasks.sources" in done.output
    assert not Path("tasks").exists()


@pytest.mark.parametrize("error", [httpx.ReadError("connection reset"), httpx.ConnectError("no such host")])
def test_a_connection_that_breaks_ends_in_one_line(hub, tmp_path, monkeypatch, error):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    done = call(tmp_path)
    assert done.exit_code == 1
    assert f"cannot be fetched ({error}); a copy in" in done.output
    assert not Path("tasks").exists()


def test_test_classes_are_never_trained_on(hub, tmp_path):
    done = call(tmp_path, bigcode={"split": "train"})
    assert done.exit_code == 2
    assert "no reward can hang on tests in the answer's own process" in done.output
