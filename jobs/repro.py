"""Run what has changed of the pipeline in this folder, as `dvc repro` does, several stages at once.

\b
    python -m jobs repro --jobs 4
    python -m jobs repro --jobs 4 evaluate compare

Stages run side by side where none depends on another; each that needs a GPU gets one of its own, and waits until one is
free (docker/run). With CLUSTER=slurm each is a job of its own. What is run, and what DVC records of it, is as without
--jobs. In containers unless RUNTIME=local.
"""

from pathlib import Path

import click

from jobs.plumbing import workspace
from jobs.plumbing.cli import exit_codes


@click.command(name="repro", help=__doc__)
@click.option(
    "--jobs", "at_once", type=click.IntRange(min=1), default=1, show_default=True, help="Stages at once, at most."
)
@click.argument("targets", nargs=-1, metavar="[STAGE]...")
def command(at_once: int, targets: tuple[str, ...]) -> None:
    with exit_codes():
        workspace.reproduce(Path(), targets, at_once)
