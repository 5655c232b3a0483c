"""Run the whole pipeline at toy size: the very dvc.yaml of the real run, in .smoke/, on a CPU.

\b
    python -m jobs smoke

Lays the repository's files out in .smoke/, a git repository of its own, deep-merges data/smoke/params.yaml over
params.yaml, and runs `dvc repro` there. It is incremental, commits what it made, and ends with a table of metrics and
the path of the report: `cd .smoke && dvc metrics diff HEAD~1` compares two runs. Without Docker unless RUNTIME=docker;
then the stages of the `train` image run in the `cpu` image (TRAIN_IMAGE=cpu).
"""

import os
import time
from pathlib import Path

import click

from jobs.plumbing import workspace
from jobs.plumbing.cli import exit_codes

OVERLAY = Path("data/smoke/params.yaml")


@click.command(name="smoke", help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=".smoke", show_default=True, help="Where to run.")
@click.option("--prepare", is_flag=True, help="Lay the files out and stop.")
@click.option(
    "--jobs", "at_once", type=click.IntRange(min=1), help="Stages at once.  [default: 2 without containers, else 1]"
)
@click.argument("targets", nargs=-1)
def command(out: Path, prepare: bool, at_once: int | None, targets: tuple[str, ...]) -> None:
    with exit_codes():
        workspace.require_own(out)
        workspace.lay_out(out, [OVERLAY])
        if not prepare:
            began = time.time()
            runtime = os.environ.get("RUNTIME", "local")
            at_once = at_once or (2 if runtime == "local" else 1)
            workspace.reproduce(out, targets, at_once, RUNTIME=runtime, TRAIN_IMAGE="cpu")
            workspace.commit(out, "smoke run")
            workspace.report(out, began, "smoke run")
