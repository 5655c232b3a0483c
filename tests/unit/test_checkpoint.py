from pathlib import Path

import pytest

from jobs.common.errors import JobError
from jobs.common.files import read_jsonl, replace_dir, replace_file, sha256, write_jsonl, write_metrics
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


def test_another_param_or_input_starts_anew_and_clears_the_old():
    Path("data").write_text("one")
    first = checkpoint.folder("sft", {"lr": 1.0}, Path("data"))
    assert checkpoint.folder("sft", {"lr": 1.0}, Path("data")) == first
    other = checkpoint.folder("sft", {"lr": 2.0}, Path("data"))
    assert other != first and not first.exists()
    Path("data").write_text("two")
    assert checkpoint.folder("sft", {"lr": 2.0}, Path("data")) != other
    assert checkpoint.folder("grpo", {"lr": 2.0}, Path("data")).exists(), "jobs do not clear one another's"


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
    ],
)
def test_a_broken_line_is_named_by_number(text, said):
    Path("rows.jsonl").write_bytes(text)
    with pytest.raises(JobError, match=f"rows.jsonl: {said}"):
        read_jsonl(Path("rows.jsonl"))


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
