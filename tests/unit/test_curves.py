"""A curve is whole at any time while it grows; trackers are those that are installed, and ask no network."""

import csv
import importlib.util
import json
import multiprocessing
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.common.errors import UsageError
from jobs.plumbing import checkpoint
from jobs.plumbing.params import load
from jobs.training import curves, loop
from tests.program import ROOT

KEYS = (
    "TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SILENT",
    "TRACKIO_DIR",
)  # fmt: skip
COLUMNS = {"loss": "loss", "validation/greedy": "validation_greedy"}


def test_after_every_step_the_file_is_what_it_would_be_at_the_end(tmp_path):
    path, state = tmp_path / "plots/c.csv", SimpleNamespace(log_history=[])
    callback = curves.growing(COLUMNS, path)
    for step, entry in enumerate(({"loss": 2.0}, {"loss": 1.0, "validation/greedy": 0.25}), 1):
        state.log_history.append({"step": step} | entry)
        callback.on_log(None, state, None, logs=entry)
        found = path.read_bytes()
        curves.write_curve(state.log_history, COLUMNS, tmp_path / "whole.csv")
        assert found == (tmp_path / "whole.csv").read_bytes()
        assert found.endswith(b"\n")
    with open(path) as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "loss": "2.0", "validation_greedy": ""},
            {"step": "2", "loss": "1.0", "validation_greedy": "0.25"},
        ]
    callback.on_log(None, SimpleNamespace(log_history=[]), None, logs={"train_runtime": 3.0})
    assert path.read_bytes() == found, "a summary is no step"
    assert list(path.parent.iterdir()) == [path]


def test_a_resumed_run_has_the_steps_before_it(tmp_path):
    history = [{"step": n, "loss": float(n)} for n in (1, 2, 3)]
    curves.growing(COLUMNS, tmp_path / "c.csv").on_log(
        None, SimpleNamespace(log_history=history), None, logs={"loss": 3.0}
    )
    assert (tmp_path / "c.csv").read_text().splitlines()[1:] == ["1,1.0,", "2,2.0,", "3,3.0,"]


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="tracking: wandb is not installed"):
        curves.trackers(["wandb"], "sft")
    assert curves.trackers([], "sft")(SimpleNamespace(), False) == []


def test_trackers_write_below_reports_and_offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in KEYS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    curves.trackers(["tensorboard", "wandb"], "grpo")
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "reports/tracking/tensorboard/grpo")
    assert (tmp_path / "reports/tracking").is_dir()
    for value in ("[mlflow]", "[wandb, wandb]", "wandb"):
        with pytest.raises(UsageError, match="tracking"):
            load(ROOT / "params.yaml", [f"tracking={value}"])


def alone(name: str, monkeypatch, folder: Path) -> None:
    """In an empty folder, without a word of the environment to the tracker; skips where it is not installed."""
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(folder)
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "dvclive"])
def test_each_tracker_of_the_lock_writes_what_a_run_logs_as_it_goes(monkeypatch, tmp_path, name):
    """In a process of its own: trackio takes its folder as it is imported, which another test may have done here."""
    alone(name, monkeypatch, tmp_path)
    apart(track, name)
    assert {path.name for path in tmp_path.iterdir()} <= {"reports", "out"}, "a tracker writes beside its folder"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "dvc"])
def test_the_command_that_shows_what_a_tracker_wrote_begins(name):
    """All four of docs/grpo.md: a package of the lock's may lack what its command alone imports."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def apart(function, *arguments) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join(240)
    assert process.exitcode == 0


def track(name: str) -> None:
    """A trainer of transformers' on one number: three steps logged, and what lies below reports/tracking after each."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, labels=None):
            return {"loss": ((x * self.weight) ** 2).mean()}

    seen = []

    def written() -> int:
        return sum(path.stat().st_size for path in Path("reports/tracking").rglob("*") if path.is_file())

    class Size(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(written())

    args = TrainingArguments("out", max_steps=3, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True)
    trainer = Trainer(One(), args, train_dataset=[{"x": torch.ones(1)}] * 8)
    for callback in (*curves.trackers([name], "sft")(args, False), Size()):
        trainer.add_callback(callback)
    trainer.train()
    if name == "wandb":  # which writes in another process, and here does not end with this one
        sys.modules["wandb"].finish()
    deadline = time.monotonic() + 30  # trackio writes in a thread, when it comes to it
    while written() <= seen[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert written() > seen[0]


def steps(name: str, numbers: list[int], resumed: bool) -> None:
    """A run in ./out that logs these steps by a tracker's callback."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    args, control = TrainingArguments("out", report_to="none", use_cpu=True), TrainerControl()
    [kind] = curves.trackers([name], "sft")(args, resumed)
    callback, state = kind(), TrainerState(is_world_process_zero=True)
    callback.on_train_begin(args, state, control)
    for state.global_step in numbers:
        callback.on_log(args, state, control, logs={"loss": 1 / state.global_step})
    sys.modules[name].finish()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_to_a_tracker_a_resumed_run_is_the_run_before_and_one_that_begins_anew_another(monkeypatch, tmp_path, name):
    alone(name, monkeypatch, tmp_path)
    apart(steps, name, [1, 2, 3], False)
    first = Path("out/run-name").read_text()
    apart(steps, name, [3, 4], True)
    assert Path("out/run-name").read_text() == first
    apart(steps, name, [1], False)
    other = Path("out/run-name").read_text()
    assert re.fullmatch(r"sft-[0-9a-f]{8}", other) and other != first
    if name == "wandb":  # it sends the parts of one run id to one run
        names = sorted(path.name for path in Path("reports/tracking/wandb").glob("offline-run-*"))
        assert [re.sub(r"offline-run-\d+_\d+-", "", found) for found in names] == [first, first, other]
        return
    [file] = Path("reports/tracking/trackio").glob("*.db")
    assert file.stem == "sft", "the project is the job, as W&B's is"
    rows = sqlite3.connect(file).execute("select run_id, run_name, metrics from metrics order by id").fetchall()
    logged = [(run, json.loads(metrics)["train/global_step"]) for _, run, metrics in rows]
    assert logged == [(first, 1), (first, 2), (first, 3), (first, 3), (first, 4), (other, 1)]
    assert len({row[0] for row in rows}) == 2


def test_trackers_are_told_whether_the_run_goes_on_at_a_checkpoint(tmp_path):
    import torch
    from transformers import TrainerState

    trainer = SimpleNamespace(
        args=SimpleNamespace(optim="adamw_torch"), model=torch.nn.Linear(1, 1), state=TrainerState(), _save_checkpoint=None,
        remove_callback=lambda kind: None, add_callback=lambda callback: None, train=lambda resume_from_checkpoint: None,
    )  # fmt: skip
    told = []

    def trackers(args, resumed: bool) -> list:
        told.append((args is trainer.args, resumed))
        return []

    loop.train(trainer, tmp_path, 1, None, trackers)
    (tmp_path / "checkpoint-1").mkdir()
    TrainerState(global_step=1, max_steps=2).save_to_json(str(tmp_path / "checkpoint-1/trainer_state.json"))
    checkpoint.seal(tmp_path / "checkpoint-1")
    loop.train(trainer, tmp_path, 1, None, trackers)
    assert told == [(True, False), (True, True)]


def test_dvclive_has_the_trainers_steps_and_in_a_resumed_run_the_earlier_ones(tmp_path, monkeypatch):
    pytest.importorskip("dvclive")
    from transformers import TrainerControl, TrainerState, TrainingArguments

    monkeypatch.chdir(tmp_path)
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    state, control = TrainerState(log_history=history, global_step=2), TrainerControl()
    args = TrainingArguments("out", report_to="none", use_cpu=True)
    [callback] = curves.trackers(["dvclive"], "sft")(args, True)
    callback.on_train_begin(args, state, control)
    state.global_step = 3
    callback.on_log(args, state, control, logs={"loss": 1.0})
    with open("reports/tracking/dvclive/sft/plots/metrics/loss.tsv") as file:
        assert [(row["step"], float(row["loss"])) for row in csv.DictReader(file, delimiter="\t")] == [
            ("1", 3.0), ("2", 2.0), ("3", 1.0)
        ]  # fmt: skip


@pytest.mark.parametrize(("steps", "ratio", "fine"), [(1, 0.1, False), (1, 0.0, True), (2, 0.1, True), (2, 1.0, True)])
def test_a_schedule_that_never_leaves_zero_is_refused(steps, ratio, fine):
    """Held against transformers' own schedule."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup = -(-steps * ratio // 1)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=int(warmup), num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert any(rates) is fine
    settings = load(ROOT / "params.yaml", [f"sft.warmup_ratio={ratio}"]).sft
    if fine:
        loop.require_learning("sft", settings, steps)
    else:
        with pytest.raises(UsageError, match=r"sft\.warmup_ratio: the only step"):
            loop.require_learning("sft", settings, steps)
