"""Sample a model on the benchmarks: one greedy answer and n drawn ones a task, for `evaluate` to score.

\b
    python -m jobs sample --model models/grpo --mode cot --out data/samples/grpo-cot
    python -m jobs sample --model models/grpo --repair data/evaluations/grpo-cot

\b
Reads   --model           a model folder, or a GGUF file; with --adapter, a PEFT adapter that is not merged
        --benchmarks-dir  the tasks of benchmark NAME in NAME.jsonl
        --repair          an evaluation of the model with reasoning, in the place of --mode
Writes  --out       samples-NAME.jsonl   task_id, sample (0: greedy; 1 to n: drawn), text, tokens, finish
                    settings.json        what was asked for, and of which files

\b
Modes   plain   the model continues the task's prompt, up to the stop strings
        cot     the chat prompt with reasoning and solution in tags (jobs/common/answer_format.py)
        repair  the answers of --repair, and in the place of each that failed a second one, asked for with the failing
                test's input and the error (jobs/common/feedback.py)

A killed run goes on where it stopped: finished calls wait in .checkpoints.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.benchmarks import read_benchmarks
from jobs.common.errors import UsageError
from jobs.common.files import replace_dir
from jobs.plumbing.cli import job, reads, writes
from jobs.plumbing.outputs import FOLDER

if TYPE_CHECKING:
    from jobs.plumbing.params import Params
    from jobs.sampling.benchmark import Drawn


def run(
    params: "Params",
    model: Path,
    adapter: Path | None,
    mode: str,
    names: list[str],
    folder: Path,
    out: Path,
    repair: Path | None = None,
) -> dict:
    from jobs.plumbing.provenance import provenance

    samples = (
        drawn(params, model, adapter, mode, names, folder, out.name)
        if repair is None
        else repaired(params, model, adapter, repair, names, folder, out.name)
    )
    with replace_dir(out) as unfinished:
        samples.write(unfinished)
    samples.forget()
    provenance(
        f"sample-{out.name}",
        seconds_by_phase={phase: round(seconds, 2) for phase, seconds in samples.seconds.items()},
        tokens=samples.tokens,
    )
    return {
        "out": str(out),
        "samples": {name: len(rows) for name, rows in samples.samples.items()},
        "tokens": samples.tokens,
    }


def drawn(
    params: "Params", model: Path, adapter: Path | None, mode: str, names: list[str], folder: Path, name: str
) -> "Drawn":
    """The samples, not written yet: what `evaluate --model` scores. name: of the run, for checkpoints and messages."""
    from jobs.sampling.benchmark import draw

    return draw(params, model, adapter, mode, read_benchmarks(folder, names), folder, name)


def repaired(
    params: "Params", model: Path, adapter: Path | None, first: Path, names: list[str], folder: Path, name: str
) -> "Drawn":
    from jobs.sampling.repair import draw

    return draw(params, model, adapter, first, read_benchmarks(folder, names), folder, name)


def place(model: Path, adapter: Path | None, mode: str | None, repair: Path | None, **_: object) -> Path:
    """Where the samples go unless --out says otherwise. Errors: UsageError."""
    if repair and mode:
        raise UsageError("give either --mode or --repair")
    return Path("data/samples") / f"{(adapter or model).stem}-{'repair' if repair else mode or 'cot'}"


@job("evaluate")
@reads("--model", None, "A model folder or GGUF file.", required=True)
@reads("--adapter", None, "A PEFT adapter on top of --model.")
@click.option("--mode", type=click.Choice(["plain", "cot"]), help="How to ask.  [default: cot]")
@reads("--repair", None, "An evaluation whose failed answers are to be repaired.")
@click.option("--benchmark", "names", multiple=True, metavar="NAME", help="Instead of evaluate.benchmarks; repeatable.")
@reads("--benchmarks-dir", "data/tasks", "Folder of the benchmarks.")
@writes("--out", None, "Folder of samples.  [default: data/samples/MODEL-MODE]", FOLDER, place)
def command(
    params: "Params",
    model: Path,
    adapter: Path | None,
    mode: str | None,
    repair: Path | None,
    names: tuple[str, ...],
    benchmarks_dir: Path,
    out: Path,
) -> None:
    chosen = list(names) or params.evaluate.benchmarks
    click.echo(json.dumps(run(params, model, adapter, mode or "cot", chosen, benchmarks_dir, out, repair), indent=2))
