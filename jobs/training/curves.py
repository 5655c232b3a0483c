"""Curves of a run, whole at any time: a file that grows with every step, and the trackers that transformers knows."""

import csv
import importlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, UsageError, one_line
from jobs.common.files import replace_file

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

ROOM = Path("reports/tracking")  # where trackers write, by name and job; no result hangs on it
RUN_NAME = "run-name"  # a file beside a run's checkpoints
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "dvclive": ("dvclive",),
}


def write_curve(history: list[dict], columns: dict[str, str], path: Path) -> list[dict]:
    """Writes the trainer's log as a CSV: `step` and `columns` (log key -> column name). Returns its rows."""
    by_step: dict[int, dict] = {}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:  # an evaluation is logged by itself, after its step
            found = {name: round(entry[k], 6) for k, name in columns.items() if entry.get(k) is not None}
            by_step.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    rows = list(by_step.values())
    with replace_file(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *columns.values()], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def growing(columns: dict[str, str], path: Path) -> "TrainerCallback":
    """A callback that writes the curve anew after every step: who reads it finds whole lines, and a resumed run all."""
    from transformers import TrainerCallback

    class Growing(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_) -> None:
            if {"loss", "eval_loss"} & set(logs or {}):
                write_curve(state.log_history, columns, path)

    return Growing()


def callbacks(
    names: Sequence[str], job: str, args: "TrainingArguments", resumed: bool
) -> "list[TrainerCallback | type[TrainerCallback]]":
    """transformers' own callbacks for these trackers, to be added to a trainer once `trackers` has set them.

    args: the trainer's, which get the names of project and run. resumed: whether the run goes on at a checkpoint of
    args.output_dir.
    Errors: JobError where DVCLive finds a git repository without a commit, which it cannot name.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if {"wandb", "trackio"} & set(names):
        args.project = job  # trackio's; W&B has it from WANDB_PROJECT
        args.run_name = run_name(job, Path(str(args.output_dir)), resumed)  # trackio goes on with the run of that name
        os.environ.setdefault("WANDB_RUN_ID", args.run_name)
        os.environ.setdefault("WANDB_RESUME", "allow")
    found: list = [INTEGRATION_TO_CALLBACK[name] for name in names if name != "dvclive"]
    if "dvclive" in names:
        # Not by a statement: a run's resume key holds what its code imports, and no tracker changes what is trained.
        dvclive: Any = importlib.import_module("dvclive")
        folder = ROOM.absolute() / "dvclive" / job  # by itself it writes beside the params, and commits
        try:
            live = dvclive.Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
        except Exception as error:  # of git's and DVC's many types
            raise JobError(f"tracking: dvclive cannot begin ({one_line(error)})") from error
        found.append(numbered(INTEGRATION_TO_CALLBACK["dvclive"])(live=live))
    return found


def run_name(job: str, checkpoints: Path, resumed: bool) -> str:
    """A name that no other run has, kept beside the checkpoints for a resumed run to go on with."""
    file = checkpoints / RUN_NAME
    if not (resumed and file.is_file()):
        with replace_file(file) as new:
            new.write_text(f"{job}-{secrets.token_hex(4)}", encoding="utf-8")
    return file.read_text(encoding="utf-8")


def numbered(kind: Any) -> Any:
    """DVCLive's callback with the trainer's own steps. By itself it counts from 0 in every process, and its log begins
    anew with it; so a resumed run tells it again what was logged before."""

    class Numbered(kind):
        def on_train_begin(self, args, state, control, **options) -> None:
            super().on_train_begin(args, state, control, **options)
            for row in state.log_history:
                self.live.step = row["step"]
                super().on_log(args, state, control, logs={k: v for k, v in row.items() if k != "step"})

        def on_log(self, args, state, control, logs=None, **options) -> None:
            self.live.step = state.global_step
            super().on_log(args, state, control, logs=logs, **options)

    return Numbered


def trackers(names: Sequence[str], job: str) -> "Callable[[], list]":
    """What gives the `callbacks` of these trackers, each set to write below ROOM and to ask no network.

    Errors: UsageError naming a tracker whose package is not installed.
    """
    for name in names:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise UsageError(
                f"tracking: {name} is not installed here; name it in docker/images/train.in and run make lock, "
                "or install it where no container is used"
            )
    folder = ROOM.absolute()
    settings: dict[str, dict[str, object]] = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": folder / "tensorboard" / job},
        # Silent: what it says at the process's end would stand behind the job's result.
        "wandb": {"WANDB_DIR": folder, "WANDB_MODE": "offline", "WANDB_PROJECT": job, "WANDB_SILENT": "true"},
        "trackio": {"TRACKIO_DIR": folder / "trackio"},
    }
    for name in names:  # others' settings would make packages that are only imported talk
        for key, value in settings.get(name, {}).items():
            os.environ.setdefault(key, str(value))
    if names:
        folder.mkdir(parents=True, exist_ok=True)
    return partial(callbacks, names, job)
