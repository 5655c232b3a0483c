import contextlib
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.common.errors import JobError
from jobs.common.files import read_json, read_jsonl, replace_dir, replace_file, sha256, write_jsonl, write_metrics
from jobs.plumbing import checkpoint


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(step: int, folder: Path) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(f"weights of step {step}")
    checkpoint.seal(path)
    return path


def test_the_newest_whole_checkpoint_is_used_and_a_broken_one_removed(caplog):
    folder = checkpoint.folder("sft", {"a": 1})
    made(5, folder), made(20, folder), made(100, folder)
    assert checkpoint.last(folder).name == "checkpoint-100"
    (folder / "checkpoint-100" / "weights").write_text("weights of step 10")
    assert checkpoint.last(folder).name == "checkpoint-20"
    assert "checkpoint-100 is broken" in caplog.text
    (folder / "checkpoint-20" / "MANIFEST.json").write_text("{")
    assert checkpoint.last(folder).name == "checkpoint-5"
    (folder / "checkpoint-5" / "weights").unlink()
    assert checkpoint.last(folder) is None
    assert not list(folder.iterdir())


def test_a_checkpoint_without_its_manifest_was_cut_short():
    folder = checkpoint.folder("sft", {"a": 1})
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "weights").write_text("half")
    assert checkpoint.last(folder) is None


def test_what_only_has_the_name_of_a_checkpoint_is_neither_used_nor_removed():
    folder = checkpoint.folder("sft", {"a": 1})
    made(5, folder), made(10, folder)
    elsewhere = made(40, Path("mine"))
    (folder / "checkpoint-30").write_text("a note")
    (folder / "checkpoint-40").symlink_to(elsewhere.absolute())
    assert checkpoint.last(folder).name == "checkpoint-10"
    checkpoint.prune(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-30", "checkpoint-40"]
    assert (elsewhere / "weights").exists()


def test_another_param_or_input_starts_anew_and_clears_the_old():
    Path("data").write_text("one")
    first = checkpoint.folder("sft", {"lr": 1.0}, Path("data"))
    assert checkpoint.folder("sft", {"lr": 1.0}, Path("data")) == first
    other = checkpoint.folder("sft", {"lr": 2.0}, Path("data"))
    assert other != first and not first.exists()
    Path("data").write_text("two")
    assert checkpoint.folder("sft", {"lr": 2.0}, Path("data")) != other
    assert checkpoint.folder("grpo", {"lr": 2.0}, Path("data")).exists(), "jobs do not clear one another's"


ROOT = Path(__file__).parents[2]
WORKER = """
import os, sys, time
from pathlib import Path
from jobs.common.errors import JobError
from jobs.plumbing import checkpoint
try:
    folder = checkpoint.folder("sft", {"lr": float(sys.argv[1])})
except JobError as error:
    sys.exit(f"error: {error}")
Path(folder, "mine").touch()
print(folder, flush=True)
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(60)
sys.stdin.read()
"""


@pytest.fixture
def worker():
    """Starts processes that take a folder, say which, and hold it until their stdin is closed or they are killed."""
    started = []

    def start(*words: str) -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        started.append(process)
        line = process.stdout.readline().strip()
        return process, line or process.stderr.read()

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_run_leaves_the_checkpoints_that_another_works_in(worker, caplog):
    first, theirs = worker("1.0")
    with caplog.at_level("INFO"):
        mine = checkpoint.folder("sft", {"lr": 2.0})
    assert Path(theirs, "mine").exists()
    assert f"{theirs} is in use and stays: process {first.pid} on" in caplog.text
    first.communicate("")
    assert first.returncode == 0
    assert checkpoint.folder("sft", {"lr": 2.0}) == mine
    assert [p.name for p in Path(".checkpoints/sft").iterdir() if p.is_dir()] == [mine.name], "its owner is gone"
    assert len(list(Path(".checkpoints/sft").iterdir())) == 2, "nor is a lock left of it"


def test_the_same_run_twice_is_refused_by_name(worker):
    first, theirs = worker("1.0")
    with pytest.raises(JobError, match=f"{theirs}: a run of sft with the same params .*process {first.pid} on"):
        checkpoint.folder("sft", {"lr": 1.0})
    assert Path(theirs, "mine").exists()
    assert worker("1.0")[1].startswith(f"error: {theirs}: ")
    assert checkpoint.folder("grpo", {"lr": 1.0}).exists(), "another job's lock is another"


@pytest.mark.parametrize("more", [[], ["fork"]])
def test_a_killed_runs_checkpoints_are_the_next_ones(worker, more):
    """SIGKILL leaves the lock's file, and may leave a child; neither keeps the lock."""
    first, theirs = worker("1.0", *more)
    time.sleep(0.2)
    first.kill()
    first.wait()
    assert str(checkpoint.folder("sft", {"lr": 1.0})) == theirs
    assert Path(theirs, "mine").exists()


def test_a_locks_file_that_was_removed_guards_nothing_and_is_made_anew(worker):
    mine = checkpoint.folder("sft", {"lr": 1.0})
    mine.with_suffix(".lock").unlink()
    checkpoint.folder("sft", {"lr": 1.0})
    assert worker("1.0")[1].startswith("error: ")


def test_only_one_of_many_that_begin_at_once_gets_the_folder(worker):
    """Each of them clears what the others leave, so that the lock's file comes and goes under them."""
    for _ in range(3):
        checkpoint.clear(checkpoint.folder("sft", {"lr": 1.0}))
        began = [subprocess.Popen([sys.executable, "-c", WORKER, "1.0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
                 for _ in range(3)]  # fmt: skip
        # The one that got it holds it until the others have ended.
        deadline = time.monotonic() + 30
        while sum(p.poll() is None for p in began) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        ended = [p.communicate("") and p.returncode for p in began]
        assert sorted(ended) == [0, 1, 1]


def test_an_interrupted_output_leaves_the_old_one_whole():
    out = Path("out")
    with replace_dir(out) as partial:
        (partial / "file").write_text("old")
    with pytest.raises(RuntimeError), replace_dir(out) as partial:
        (partial / "file").write_text("new")
        raise RuntimeError
    assert [p.name for p in Path().iterdir()] == ["out"]
    assert (out / "file").read_text() == "old"


def test_an_output_that_cannot_be_written_is_named():
    Path("blocked").write_text("a file, not a folder")
    with pytest.raises(JobError, match="blocked"), replace_file(Path("blocked/out.json")):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": 1}\n{"a": ', "line 2 is not valid JSON"),
        (b'{"a": 1}\nnonsense\n{"a": 2}\n', "line 2 is not valid JSON"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b'{"a": "\xff"}\n', "line 1"),
        (b'{"a": 1}\n{"a": ' + b'{"a": ' * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_a_broken_line_is_named_by_number(text, said):
    Path("rows.jsonl").write_bytes(text)
    with pytest.raises(JobError, match=f"rows.jsonl: {said}"):
        read_jsonl(Path("rows.jsonl"))


@pytest.mark.parametrize("spoil", ["flip", "cut", "plain"])
def test_a_broken_archive_is_named(spoil):
    packed = bytearray(gzip.compress(b'{"a": 1}\n' * 1000))
    if spoil == "flip":
        packed[len(packed) // 2 :] = bytes(255 - byte for byte in packed[len(packed) // 2 :])
    Path("rows.jsonl.gz").write_bytes({"cut": packed[:-9], "plain": b'{"a": 1}\n'}.get(spoil, packed))
    with pytest.raises(JobError, match=r"rows\.jsonl\.gz: cannot be read"):
        read_jsonl(Path("rows.jsonl.gz"))


def test_json_that_is_nested_too_deeply_is_named():
    Path("deep.json").write_bytes(b'{"a": ' * 100_000)
    with pytest.raises(JobError, match=r"deep\.json: is not valid JSON"):
        read_json(Path("deep.json"))


def test_jsonl_comes_back_as_it_went():
    rows = [{"text": "ünï\u2028 \x85", "n": 1.5}, {"nested": [None, True]}]
    write_jsonl(Path("rows.jsonl"), rows)
    assert read_jsonl(Path("rows.jsonl")) == rows


@pytest.mark.parametrize("value", ["text", True, None, [1]])
def test_metrics_are_numbers(value):
    with pytest.raises(TypeError, match="bad"):
        write_metrics(Path("metrics.json"), {"bad": value})


def test_a_folders_hash_sees_names_and_bytes_and_nothing_else():
    for name in ("one", "two"):
        (Path(name) / "sub").mkdir(parents=True)
        (Path(name) / "sub" / "file").write_text("same")
    assert sha256(Path("one")) == sha256(Path("two"))
    (Path("two") / "sub" / "file").rename("two/sub/other")
    assert sha256(Path("one")) != sha256(Path("two"))
