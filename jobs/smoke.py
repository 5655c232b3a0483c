"""Run the whole pipeline at toy size: the very dvc.yaml of the real run, in .smoke/, on a CPU.

\b
    python -m jobs smoke
    python -m jobs smoke --seeds 3

Lays the repository's files out in .smoke/, a git repository of its own, deep-merges data/smoke/params.yaml and then
data/smoke/measured.yaml over params.yaml, and runs `dvc repro` there. It is incremental, commits what it made, and ends
with a table of metrics and the path of the report: `cd .smoke && dvc metrics diff HEAD~1` compares two runs. Without Docker
unless RUNTIME=docker; then the stages of the `train` image run in the `cpu` image (TRAIN_IMAGE=cpu).

Then a second, short run in .smoke-stdin, by data/smoke/params.yaml and stdin.yaml: the same toy with answers that are whole
programs, from its base, which is the first run's and trained further, to the evaluation of GRPO.

With --seeds N the run is made with N - 1 further training seeds as well, in .smoke-2 and so on. Each begins with what the
first has made, so that base model, tasks and teacher's answers stay, and only what hangs on `seed` runs again. `compare`
then says what holds over seeds, in reports/seeds.html of the first.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import click

from jobs.plumbing import workspace
from jobs.plumbing.cli import exit_codes

SMALL = Path("data/smoke/params.yaml")
OVERLAYS = [SMALL, Path("data/smoke/measured.yaml")]  # each laid over those before it
STDIN = Path("data/smoke/stdin.yaml")  # laid over SMALL, for the twin
TWIN = "evaluate@grpo-cot"  # how far the twin goes
START = Path(".cache/base")  # in the twin's folder: the first run's base, which its own is made of
AROUND = {"RUNTIME": os.environ.get("RUNTIME", "local"), "TRAIN_IMAGE": "cpu"}


@click.command(name="smoke", help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=".smoke", show_default=True, help="Where to run.")
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs, each with its own seed."
)
@click.option("--stdin/--no-stdin", default=True, show_default=True, help="Whether the twin's run follows.")
@click.option("--prepare", is_flag=True, help="Lay the files out and stop.")
@click.option(
    "--jobs", "at_once", type=click.IntRange(min=1), help="Stages at once.  [default: 2 without containers, else 1]"
)
@click.argument("targets", nargs=-1)
def command(out: Path, seeds: int, stdin: bool, prepare: bool, at_once: int | None, targets: tuple[str, ...]) -> None:
    with exit_codes():
        folders = [out, *(out.with_name(f"{out.name}-{number}") for number in range(2, seeds + 1))]
        second = out.with_name(f"{out.name}-stdin")
        for folder in (*folders, second):
            workspace.require_own(folder)
        workspace.lay_out(out, OVERLAYS)
        if not prepare:
            began = time.time()
            at_once = at_once or (2 if AROUND["RUNTIME"] == "local" else 1)
            workspace.reproduce(out, targets, at_once, **AROUND)
            workspace.commit(out, "smoke run")
            if stdin and not targets:  # targets are of the first run alone
                twin(out, second, at_once)
            workspace.report(out, began, "smoke run")
            for number, folder in enumerate(folders[1:], 1):
                further(out, folder, number, at_once)
            if seeds > 1:
                over_seeds(folders)


def twin(first: Path, out: Path, at_once: int) -> None:
    """The run whose answers are whole programs, from the first run's base on; says what it learned."""
    from jobs.common.files import read_json, sha256

    began = time.time()
    base = first / "models/base"
    digest = sha256(base)
    workspace.lay_out(out, [SMALL, STDIN], [f"base.folder={{path: {START}, sha256: {digest}}}"])
    if not (out / START).exists() or sha256(out / START) != digest:
        shutil.rmtree(out / START, ignore_errors=True)
        shutil.copytree(base, out / START)
    workspace.reproduce(out, (TWIN,), at_once, **AROUND)
    workspace.commit(out, "smoke run of whole programs")
    trained, evaluated = read_json(out / "metrics/grpo.json"), read_json(out / "metrics/evaluate-grpo-cot.json")
    rates = [trained[part]["all_tests_passed"] for part in ("first", "last")]
    click.echo(
        f"\nwhole programs: solved while training {rates[0]:.3f} -> {rates[1]:.3f}, on held-out tasks "
        f"pass@1 {evaluated['toy_stdin']['sampled']['pass@1']:.3f}; {time.time() - began:.0f} s, in {out}"
    )


def further(first: Path, out: Path, number: int, at_once: int) -> None:
    """The same run with the seed `number` higher, up to its evaluations, from what the first run made."""
    from jobs.plumbing.yaml12 import read_yaml

    began = time.time()
    if not (out / "dvc.lock").exists():
        workspace.lay_out(out, OVERLAYS)
        workspace.inherit(first, out)
    seed = read_yaml(first / "params.yaml")["seed"] + number
    workspace.lay_out(out, OVERLAYS, [f"seed={seed}"])
    workspace.reproduce(out, ("evaluate",), at_once, **AROUND)
    workspace.commit(out, f"smoke run with seed {seed}")
    click.echo(f"seed {seed} done in {time.time() - began:.0f} s, in {out}")


def over_seeds(folders: list[Path]) -> None:
    """`compare` over the runs' evaluations. It writes beside the first run's own report, in reports/."""
    places = [os.path.relpath(folder, folders[0]) for folder in folders]
    words = [word for place in places for word in ("--evaluations", os.path.join(place, "data/evaluations"))]
    words += [word for place in places for word in ("--curve", os.path.join(place, "plots/grpo.csv"))]
    made = {"--out": "html", "--metrics": "json", "--plot": "csv"}
    words += [word for flag, end in made.items() for word in (flag, f"reports/seeds.{end}")]
    said = workspace.run(sys.executable, "-m", "jobs", "compare", *words, cwd=folders[0], capture=True)
    for line in json.loads(said)["statements"]:
        click.echo(f"\n{line}")
    click.echo(f"\nthe report over {len(folders)} seeds: {(folders[0] / 'reports/seeds.html').resolve()}")
