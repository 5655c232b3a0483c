"""An output never takes the place of what no job wrote."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.common.errors import JobError, UsageError
from jobs.common.files import MARK, replace_dir, replace_file, sealed, write_jsonl, write_metrics
from jobs.plumbing.outputs import CACHE, FOLDER, METRICS, ROWS, SEALED, TABLE, require_outputs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def filled(path: str, **files: str) -> Path:
    with replace_dir(Path(path)) as partial:
        for name, text in (files or {"a": "old"}).items():
            (partial / name).write_text(text)
    return Path(path)


def refused(path: Path | str, kind=FOLDER, **inputs: str) -> str:
    with pytest.raises(UsageError) as error:
        require_outputs({f"--{name}": Path(value) for name, value in inputs.items()}, {"--out": (Path(path), kind)})
    assert str(error.value).startswith("--out: ")
    return str(error.value)


def allowed(path: Path | str, kind=FOLDER, **inputs: str) -> None:
    require_outputs({f"--{name}": Path(value) for name, value in inputs.items()}, {"--out": (Path(path), kind)})


def test_a_new_an_empty_and_a_jobs_own_folder_give_way():
    Path("empty").mkdir()
    for path in ("new", "new/below", "empty", filled("own"), filled("deep/own")):
        allowed(path)
    filled("own", b="new")
    assert sorted(p.name for p in Path("own").iterdir()) == [MARK, "b"]


def test_two_jobs_do_not_write_one_folder_at_once():
    """The second is refused and leaves the first one's work alone; one that was killed holds no lock."""
    with replace_dir(Path("out")) as partial:
        (partial / "a").write_text("first")
        script = (
            "from pathlib import Path; from jobs.common.files import replace_dir\nwith replace_dir(Path('out')): pass"
        )
        around = os.environ | {"PYTHONPATH": str(ROOT)}
        second = subprocess.run([sys.executable, "-c", script], env=around, capture_output=True, text=True, check=False)
        assert "out: another job is writing it at this moment" in second.stderr
        assert (partial / "a").read_text() == "first"
    assert Path("out/a").read_text() == "first"
    killed = script.replace("pass", "import os; os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", killed], env=around, check=False)
    assert Path(".out.partial").exists()
    assert sorted(p.name for p in filled("out", b="third").iterdir()) == [MARK, "b"]


@pytest.mark.parametrize("theirs", ["thesis.txt", "sub/thesis.txt", ".hidden", "a"])
def test_a_folder_with_anything_of_somebody_elses_does_not(theirs):
    for folder in ("home", filled("own")):
        file = Path(folder, theirs)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
        assert theirs in refused(folder)
        with pytest.raises(UsageError), replace_dir(Path(folder)):
            raise AssertionError("the work began")
        assert file.read_text() == "precious"


def test_large_files_are_told_apart_by_their_middle_too():
    def weights(byte: bytes) -> bytes:
        return bytes(5 << 20) + byte + bytes(5 << 20)

    with replace_dir(Path("model")) as partial:
        (partial / "w").write_bytes(weights(b"\0"))
    allowed("model")
    Path("model/w").write_bytes(weights(b"\1"))
    refused("model")


def test_links_are_nobodys_output_but_dvcs_own():
    own = filled("own")
    Path("link").symlink_to("own")
    refused("link")
    Path("nowhere").symlink_to("absent")
    refused("nowhere")
    refused("nowhere", METRICS)
    Path("loop").symlink_to("loop")
    refused("loop/x")
    (own / "elsewhere").symlink_to(ROOT)
    assert "elsewhere" in refused(own)
    (own / "elsewhere").unlink()
    # As a checkout with cache.type symlink leaves it.
    cached = Path(".dvc/cache/files/md5/ab") / ("0" * 30)
    cached.parent.mkdir(parents=True)
    (own / "a").rename(cached)
    (own / "a").symlink_to(cached.absolute())
    allowed(own)
    filled("own", a="new")
    assert cached.read_text() == "old"


def test_a_mark_goes_where_the_folder_goes():
    """Into DVC's cache and back, into a copy, over hard links: there is nothing of time, place or run in it."""
    filled("one", a="x", b="y")
    filled("two", b="y", a="x")
    assert Path("one", MARK).read_bytes() == Path("two", MARK).read_bytes()
    shutil.copytree("one", "copy", copy_function=os.link)
    allowed("copy")
    Path("copy/b").unlink()  # less than was written: nothing can be lost
    allowed("copy")


def test_what_an_interrupted_job_left_is_cleared_and_a_folder_of_that_name_is_not():
    code = (
        "import os, pathlib; from jobs.common.files import replace_dir\n"
        "with replace_dir(pathlib.Path('out')) as p: (p / 'half').touch(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=False)
    assert Path(".out.partial/half").exists()
    allowed("out")
    filled("out")
    assert not Path(".out.partial").exists()
    Path(".out.partial").mkdir()
    Path(".out.partial/mine").touch()
    assert "mine" in refused("out")


def test_what_appeared_during_the_work_is_kept_and_so_is_the_work():
    with pytest.raises(JobError, match=r"thesis.*kept in \.out\.partial"), replace_dir(Path("out")) as partial:
        (partial / "result").write_text("hours")
        Path("out").mkdir()
        Path("out/thesis").write_text("precious")
    assert Path("out/thesis").read_text() == "precious"
    assert Path(".out.partial/result").read_text() == "hours"


def test_an_output_is_no_input_and_no_working_folder():
    base, here = filled("models/base"), Path.cwd()
    for path in (base, "models", "models/../models/base", base.absolute()):
        refused(path, base="models/base")
    refused("models/base", metrics="models/base/a")
    Path("m").symlink_to("models")
    refused("m/base", base="models/base")
    Path("w").mkdir()
    os.chdir("w")
    for path in (".", "..", "", "x/..", here, "/"):
        refused(path)
    Path(".git").mkdir()
    refused(".git/out")
    refused(".git", CACHE)
    allowed("../models/new", base="../models/base")
    experiment = Path(".dvc/tmp/exps/tmp1")  # where `dvc exp run --temp` and --queue work
    experiment.mkdir(parents=True)
    os.chdir(experiment)
    allowed("models/base")
    refused(".dvc/x")


def test_two_outputs_are_two_places():
    for one, two in (("out", "out"), ("out", "out/m.json"), ("out", "x/../out"), ("m.json", "./m.json")):
        with pytest.raises(UsageError, match="give each a place of its own"):
            require_outputs({}, {"--out": (Path(one), FOLDER), "--metrics": (Path(two), METRICS)})


def test_a_place_that_cannot_be_is_refused_before_the_work():
    Path("file").write_text("x")
    refused("file/out")
    refused("file")
    refused("file", CACHE)
    Path("folder").mkdir()
    for kind in (METRICS, SEALED, ROWS("a"), TABLE("a")):
        refused("folder", kind)
    with pytest.raises(UsageError):
        require_outputs({}, {"--out": (Path("n" * 300), FOLDER)})


def test_a_file_gives_way_if_it_is_such_an_output():
    write_metrics(Path("m.json"), {"a": {"b": 1.5}, "c": 2})
    write_jsonl(Path("r.jsonl"), [{"task_id": "é", "passed": True}])
    Path("t.csv").write_text("step,loss,more\n1,2,3\n")
    Path("p.html").write_text(sealed("<p>page</p>"))
    Path("empty").touch()
    kinds = {"m.json": METRICS, "r.jsonl": ROWS("task_id", "passed"), "t.csv": TABLE("step", "loss"), "p.html": SEALED}
    for name, kind in kinds.items():
        allowed(name, kind)
        allowed("empty", kind)
        for other, another in kinds.items():
            if other != name:
                refused(other, kind)
                refused(name, another)
        Path("theirs").write_text("precious\n")
        refused("theirs", kind)
        Path("theirs").write_bytes(b"\xff\0")
        refused("theirs", kind)
    Path("p.html").write_text(Path("p.html").read_text().replace("page", "page, and what I think of it"))
    refused("p.html", SEALED)
    Path("m.json").write_text(json.dumps({"a": 1}))
    refused("m.json", METRICS)


def test_a_copy_for_which_there_is_no_room_names_the_file_that_was_not_written():
    for replace in (replace_file, replace_dir):
        with (
            pytest.raises(JobError, match=r"^new\.json: cannot be written \(No space left on device\)$"),
            replace(Path("out")),
        ):
            raise OSError(
                errno.ENOSPC, os.strerror(errno.ENOSPC), "old.json", None, "new.json"
            )  # as shutil's copies do


def test_a_folder_is_never_deleted_for_a_file():
    Path("m.json").mkdir()
    Path("m.json/thesis").touch()
    with pytest.raises(JobError, match="cannot be written"):
        write_metrics(Path("m.json"), {"a": 1})
    with pytest.raises(JobError), replace_file(Path("m.json")) as partial:
        partial.touch()
    assert Path("m.json/thesis").exists()


@pytest.mark.parametrize(
    "job", ["base", "tasks", "distill", "sft", "grade", "grpo", "merge", "sample", "evaluate", "compare", "gguf"]
)
def test_every_job_refuses_before_it_works(job):
    """Every output of every job, by its own command line."""
    import importlib

    from jobs.plumbing.cli import Output

    try:
        command = importlib.import_module(f"jobs.{job}.job").command
    except ModuleNotFoundError:
        command = importlib.import_module(f"jobs.{job}").command
    Path("home").mkdir()
    Path("home/thesis.txt").write_text("precious")
    Path("input").mkdir()
    given = ["--params", str(ROOT / "params.yaml")]
    for option in command.params:
        if getattr(option, "metavar", None) == "IN":
            given += [option.opts[0], "input"]
    if job == "evaluate":
        given = [*given[:2], "--model", "input", "--benchmarks-dir", "input"]
    # A cache is added to, never replaced.
    flags = [o.opts[0] for o in command.params if isinstance(o, Output) and o.kind is not CACHE]
    assert flags
    from click.testing import CliRunner

    for flag in flags:
        done = CliRunner().invoke(command, [*given, flag, "home"])
        assert done.exit_code == 2, done.output
        assert f"{flag}: home" in done.output
    assert Path("home/thesis.txt").read_text() == "precious"
    assert sorted(p.name for p in Path().iterdir()) == ["home", "input"]


@pytest.mark.parametrize(("job", "out"), [("sample", "data/samples"), ("evaluate", "data/evaluations")])
def test_default_outputs_that_hang_on_the_model_are_checked_too(job, out):
    from importlib import import_module

    from click.testing import CliRunner

    command = import_module(f"jobs.{job}").command
    Path(out, "input-cot").mkdir(parents=True)
    Path(out, "input-cot/thesis").touch()
    Path("input").mkdir()
    done = CliRunner().invoke(
        command, ["--params", str(ROOT / "params.yaml"), "--model", "input", "--benchmarks-dir", "input"]
    )
    assert done.exit_code == 2 and f"--out: {out}/input-cot" in done.output


def test_the_smoke_run_lays_out_over_nothing_but_its_own():
    from jobs.plumbing.workspace import require_own

    for path in (".", "..", "/"):
        with pytest.raises(UsageError):
            require_own(Path(path))
    Path("home").mkdir()
    require_own(Path("home"))
    require_own(Path("new"))
    Path("home/README.md").write_text("mine")
    with pytest.raises(UsageError, match="written over"):
        require_own(Path("home"))
    Path("home/.checkpoints").mkdir()
    Path("home/.checkpoints/smoke.json").write_text("[]")
    require_own(Path("home"))


def test_the_command_of_the_smoke_run_writes_over_nothing(tmp_path, monkeypatch):
    from jobs.smoke import command

    monkeypatch.chdir(Path(__file__).parents[2])
    home = tmp_path / "home"
    home.mkdir()
    (home / "README.md").write_text("mine")
    result = CliRunner().invoke(command, ["--out", str(home), "--prepare"])
    assert result.exit_code == 2, result.output
    assert "holds what no run laid out" in result.stderr
    assert {path.name: path.read_text() for path in home.iterdir()} == {"README.md": "mine"}
