"""watch: curves and answers of a run that goes on, printed once and paged through in a real terminal."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.common.files import write_jsonl
from jobs.watch import View, command, sparkline, visible
from tests import program
from tests.program import ROOT

ANSWERS = [
    {"step": 1, "task_id": "T/1", "completion": "first\x1b[31m answer", "status": "failed", "correctness": 0.25},
    {"step": 2, "task_id": "T/2", "completion": "second answer\nline two", "status": "passed", "correctness": 1.0},
    {"step": 2, "task_id": "T/2", "completion": "third answer", "status": "failed", "correctness": 0.0},
    {"step": 2, "task_id": "T/3", "completion": "fourth answer", "status": "no answer", "correctness": 0.0},
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder as a run of three steps leaves it while it goes on."""
    monkeypatch.chdir(tmp_path)
    Path("plots").mkdir()
    Path("plots/grpo.csv").write_text("step,reward,kl\n1,0.1,\n2,0.3,\n3,0.2,0.5\n")
    folder = Path(".checkpoints/grpo/0123")
    for step in (1, 2):
        write_jsonl(folder / f"completions-{step:06d}.jsonl", [row for row in ANSWERS if row["step"] == step])
    return tmp_path


def test_one_picture_without_a_terminal(run):
    done = CliRunner().invoke(command, ["--once"])
    assert done.exit_code == 0, done.output
    for text in ("step 3", "reward", "0.2", "kl", "0.5", "answer 1 of 4 (all): step 2, T/2, passed", "line two"):
        assert text in done.output, text
    assert "\x1b" not in done.output


def test_before_the_first_step_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["--once"])
    assert "plots/grpo.csv" in done.output and "not there yet" in done.output
    assert "no answers logged yet" in done.output
    Path("odd.csv").write_text("step,loss\n")
    assert "no step yet" in CliRunner().invoke(command, ["--once", "--curve", "odd.csv"]).output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n", "has no column `step`"),
        (b"step,loss\n1,high\n", "line 2: `loss` is 'high', which is no number"),
        (b"step,loss\n1,2,3\n", "line 2 has 3 cells, and the header 2"),
        (b"step,loss\n1,\xff\n", "cannot be read as a CSV file"),
    ],
)
def test_what_is_no_curve_is_one_line_that_names_it(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    Path("odd.csv").write_bytes(content)
    done = CliRunner().invoke(command, ["--once", "--curve", "odd.csv"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert f"error: odd.csv: {said}" in done.output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 2 is not valid JSON"),
        ('{"step": "1", "task_id": "T/1", "completion": "x"}', "line 2 has no `step`"),
        ('{"step": 1, "task_id": "T/1", "answer": "x"}', "line 2 has no `completion`"),
    ],
)
def test_what_are_no_logged_answers_is_one_line_that_names_them(run, line, said):
    write_jsonl(Path("own.jsonl"), ANSWERS[:1])
    with open("own.jsonl", "a") as file:
        file.write(line + "\n")
    done = CliRunner().invoke(command, ["--once", "--completions", "own.jsonl"])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert f"error: own.jsonl: {said}" in done.output


def test_a_run_that_diverges_is_shown_with_what_it_has_come_to(run):
    Path("plots/grpo.csv").write_text("step,loss,kl\n1,0.5,nan\n2,1e999,nan\n3,0.25,\n4,nan,nan\n")
    done = CliRunner().invoke(command, ["--once"])
    assert done.exit_code == 0, done.output
    shown = {
        words[1]: words[2:4] for words in map(str.split, done.output.splitlines()) if words[1:2] in (["loss"], ["kl"])
    }
    assert shown == {"loss": ["nan", "█×▁×"], "kl": ["nan", "×××"]}


def test_answers_that_are_named_and_else_those_of_the_latest_run_are_shown(run):
    write_jsonl(Path("own.jsonl"), [ANSWERS[0] | {"completion": "mine"}])
    assert shown(View(Path("plots/grpo.csv"), Path("own.jsonl"))) == "mine"
    earlier = Path(".checkpoints/grpo/4567/completions-000009.jsonl")
    write_jsonl(earlier, [ANSWERS[0] | {"completion": "earlier", "step": 9}])
    os.utime(earlier, (1, 1))
    assert [row["completion"] for row in View(Path("plots/grpo.csv"), None).answers()] == [
        row["completion"] for row in (*ANSWERS[1:], ANSWERS[0])
    ]


def shown(view):
    rows = view.answers()
    return rows[view.at % len(rows)]["completion"].split()[0]


def test_pages_tasks_and_filters(run):
    view = View(Path("plots/grpo.csv"), None)
    seen = [shown(view)]
    for key in ("n", "n", "p", "t", "t", "f", "f", "n", "f", "p", "x", ""):
        view.press(key)
        seen.append(shown(view))
    assert seen == ["second", "third", "fourth", "third", "fourth", "first\x1b[31m", "second",
                    "third", "fourth", "second", "first\x1b[31m", "first\x1b[31m", "first\x1b[31m"]  # fmt: skip


def test_answers_of_a_run_that_has_ended_come_from_its_output(run):
    shutil.rmtree(".checkpoints")
    write_jsonl(Path("data/grpo/completions.jsonl"), ANSWERS[:1])
    assert "answer 1 of 1" in CliRunner().invoke(command, ["--once"]).output


def test_what_a_terminal_would_act_on_is_an_escape():
    assert visible("a\x1b[2Jb\tc\nd\r\x9b\u202e") == "a\\x1b[2Jb\\tc\nd\\r\\x9b\\u202e"


def test_a_curve_lies_between_its_least_and_its_greatest():
    assert sparkline([0, 1]) == "▁█"
    assert sparkline([2, 2, 2]) == "▁▁▁"
    assert sparkline(list(range(8))) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([0.0] * 1000)) == 40


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_in_a_terminal_keys_page_and_the_picture_follows_the_run(run):
    server = ("tmux", "-L", f"watch-{uuid.uuid4().hex[:8]}")

    def tmux(*words):
        return subprocess.run([*server, *words], capture_output=True, text=True, check=True).stdout

    def until(text):
        deadline = time.monotonic() + 60
        while text not in (screen := tmux("capture-pane", "-p", "-t", "w")):
            assert time.monotonic() < deadline, screen
            time.sleep(0.1)
        return screen

    line = f"PYTHONPATH={ROOT} {sys.executable} -m jobs watch; echo left with $?; sleep 60"
    subprocess.run(
        [*server, "new-session", "-d", "-s", "w", "-x", "100", "-y", "40", line], env=program.environment(), check=True
    )
    try:
        assert "second answer" in until("answer 1 of 4 (all)")
        tmux("send-keys", "-t", "w", "n")
        assert "third answer" in until("answer 2 of 4 (all)")
        tmux("send-keys", "-t", "w", "f")
        until("answer 1 of 1 (passed)")
        with open("plots/grpo.csv", "a") as file:
            file.write("4,0.9,0.5\n")
        assert "0.9" in until("step 4")
        tmux("send-keys", "-t", "w", "q")
        until("left with 0")
    finally:
        tmux("kill-server")
