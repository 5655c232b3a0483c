"""Run the whole pipeline with recipes laid over params.yaml, in a folder of its own.

\b
    python -m jobs run recipes/small.yaml
    python -m jobs run recipes/small.yaml --set seed=1 --out .runs/small-1
    python -m jobs run recipes/small.yaml --target merge

A recipe is a YAML file with the params that differ; of several each is laid over those before it. The repository's files
are laid out in .runs/NAME/, a git repository of its own with its own DVC state, and `dvc repro` runs there: params.yaml
here stays as it is, and runs of several recipes lie side by side. data/sources is linked into it. A run is incremental,
commits what it made, and ends with a table of metrics and the path of the report. In containers unless RUNTIME=local.
"""

import time
from pathlib import Path

import click

from jobs.plumbing import workspace
from jobs.plumbing.cli import exit_codes


@click.command(name="run", help=__doc__)
@click.argument("recipes", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RECIPE...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to run.  [default: .runs/ and the first recipe's name]"
)
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Another value; repeatable.")
@click.option(
    "--target", "targets", multiple=True, metavar="STAGE", help="A stage to end with, as `dvc repro` takes it."
)
@click.option(
    "--jobs",
    "at_once",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Stages at once, where none depends on another; they share the machine's memory and GPU.",
)
@click.option("--prepare", is_flag=True, help="Lay the files out and stop.")
def command(
    recipes: tuple[Path, ...],
    out: Path | None,
    assignments: tuple[str, ...],
    targets: tuple[str, ...],
    at_once: int,
    prepare: bool,
) -> None:
    out = out or Path(".runs") / recipes[0].stem
    with exit_codes():
        workspace.require_own(out)
        workspace.lay_out(out, recipes, assignments)
        if not prepare:
            began = time.time()
            workspace.reproduce(out, targets, at_once)
            workspace.commit(out, f"run of {', '.join(recipe.name for recipe in recipes)}")
            workspace.report(out, began, f"run of {recipes[0].name}")
