"""Stages side by side, by DVC itself, in pipelines of shell commands."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from jobs.common.errors import JobError
from jobs.plumbing import stages

ROOT = Path(__file__).parents[2]

# `meet` ends only once as many of its kind have begun: stages that run one after the other would wait for ever.
MEET = 'touch began-$1; for i in $(seq 300); do [ "$(ls began-* | wc -l)" -ge "$2" ] && exit; sleep 0.1; done; exit 1'
PIPELINE = """\
stages:
  left: {cmd: bash meet left 2 && echo left > left, outs: [left]}
  right: {cmd: bash meet right 2 && cat source > right, deps: [source], outs: [right]}
  both: {cmd: cat left right > both, deps: [left, right], outs: [both]}
  each:
    matrix: {word: [one, two]}
    cmd: (cat right; echo ${item.word}) > ${item.word}
    deps: [right]
    outs: ["${item.word}"]
"""


def dvc(folder, *words):
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    dvc(tmp_path, "init", "-q")
    (tmp_path / "meet").write_text(MEET)
    (tmp_path / "source").write_text("source\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    return tmp_path


def reproduce(folder, *targets, at_once=2):
    stages.reproduce(folder, targets, at_once, os.environ)


def test_what_does_not_depend_on_each_other_runs_at_the_same_time_and_dvc_finds_nothing_left(folder, capsys):
    reproduce(folder)
    assert (folder / "both").read_text() == "left\nsource\n"
    assert (folder / "one").read_text() == "source\none\n"
    assert "up to date" in dvc(folder, "repro")
    assert "left | Running stage 'left':" in capsys.readouterr().out
    assert stages.plan(folder, ()) == {}


def test_the_plan_is_what_changed_and_what_depends_on_it(folder):
    assert stages.plan(folder, ()) == {
        "left": set(), "right": set(), "both": {"left", "right"}, "each@one": {"right"}, "each@two": {"right"},
    }  # fmt: skip
    assert stages.plan(folder, ["each@two"]) == {"right": set(), "each@two": {"right"}}
    reproduce(folder)
    (folder / "source").write_text("another\n")
    assert stages.plan(folder, ()) == {
        "right": set(), "both": {"right"}, "each@one": {"right"}, "each@two": {"right"},
    }  # fmt: skip
    assert stages.plan(folder, ["left"]) == {}
    reproduce(folder)
    assert (folder / "two").read_text() == "another\ntwo\n"


def test_after_a_failure_nothing_is_begun_and_what_runs_ends(folder):
    text = PIPELINE.replace("bash meet left 2 && echo left > left", "bash meet left 2 && exit 3")
    text = text.replace("meet right 2 &&", "meet right 2 && sleep 2 &&")
    (folder / "dvc.yaml").write_text(text)
    with pytest.raises(JobError, match=r"left failed, see above"):
        reproduce(folder)
    assert (folder / "right").read_text() == "source\n"
    assert "right" not in stages.plan(folder, ()), "its result is DVC's already"
    assert not any((folder / name).exists() for name in ("both", "one", "two"))


def test_no_more_run_at_once_than_asked_and_the_longest_way_first(folder, monkeypatch):
    now, most, order, lock = set(), [], [], threading.Lock()

    def run(where: Path, name: str, environment):
        with lock:
            now.add(name)
            order.append(name)
            most.append(len(now))
        threading.Event().wait(0.05)
        with lock:
            now.remove(name)
        return 0

    monkeypatch.setattr(stages, "run", run)
    reproduce(folder, at_once=2)
    assert max(most) == 2 and len(order) == 5
    assert order[0] == "right", "three stages wait for it, and one for the other"
    most.clear()
    reproduce(folder, at_once=1)
    assert max(most) == 1


def test_the_lock_file_is_that_of_a_serial_run(folder, tmp_path_factory):
    serial = tmp_path_factory.mktemp("serial") / "folder"
    shutil.copytree(folder, serial)
    # One stage at a time, those of `meet` need each other no more.
    (serial / "dvc.yaml").write_text(PIPELINE.replace(" 2 &&", " 1 &&"))
    (folder / "dvc.yaml").write_text(PIPELINE.replace(" 2 &&", " 1 &&"))
    dvc(serial, "repro")
    reproduce(folder, at_once=3)
    assert yaml.safe_load((folder / "dvc.lock").read_text()) == yaml.safe_load((serial / "dvc.lock").read_text())


# A launcher that needs a moment to end what it has started, and says so.
SLOW_TO_END = 'trap "sleep 3; echo ended > ended-$1; exit 1" INT TERM; touch began-$1; while :; do sleep 0.1; done'


@pytest.mark.parametrize("at_once", ["1", "2"])
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_told_to_stop_it_waits_until_its_stages_have_ended_what_they_started(folder, at_once, sent, status):
    (folder / "slow").write_text(SLOW_TO_END)
    (folder / "dvc.yaml").write_text("stages:\n  left: {cmd: bash slow left}\n  right: {cmd: bash slow right}\n")
    words = [sys.executable, "-m", "jobs", "repro", "--jobs", at_once]
    process = subprocess.Popen(words, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(folder.glob("began-*"))) < int(at_once) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == status, output
    assert len(list(folder.glob("ended-*"))) == int(at_once), output
