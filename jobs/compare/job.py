"""Compare all evaluations: intervals, paired tests, in words what is established, and a report to look into.

\b
    python -m jobs compare --evaluations data/evaluations --curve plots/sft.csv --curve plots/grpo.csv \\
        --out reports/compare.html --metrics metrics/compare.json --plot plots/compare.csv
    python -m jobs compare --evaluations .smoke/data/evaluations --evaluations .smoke-2/data/evaluations \\
        --evaluations .smoke-3/data/evaluations --benchmarks-dir .smoke/data/tasks
    python -m jobs compare --runs 'bnpo=compared/bnpo-*' --runs 'dr_grpo=compared/dr_grpo-*'

\b
Reads   --evaluations     folders MODEL-MODE as `evaluate` writes them, of one run; given again, of another run, whose
                          models of the same names are the same methods from another seed
        --runs            a method's name, and the folders of `evaluate` that are its runs, each independent of the others'
        --benchmarks-dir  the tasks that they are about
        --curve           learning curves: a column `step` and columns of numbers
        --completions     what `grpo` logged of its completions; --tasks: the tasks that they answer
Writes  --out      the report: one HTML file that needs no network
        --metrics  by benchmark and mode: each model's pass rates with intervals, each pair's difference, interval and p
        --plot     pass@1 with its interval, a row a model, for `dvc plots`

Of one run, a difference is called established if the paired permutation test on the tasks' pass rates is below
1 - confidence, after Holm's correction for the number of differences in the report, and the difference's interval leaves
out 0. That holds for these weights. From three runs of a method on, interval and test are over seeds and tasks, and hold
for the method (docs/metrics.md). Two runs, or fewer than 6 tasks, establish nothing, and the report says so.
"""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.benchmarks import read_benchmarks, require_all
from jobs.common.errors import JobError, UsageError
from jobs.common.files import replace_file, sealed, sha256, write_metrics
from jobs.common.task import read_tasks
from jobs.compare.completions import completions as logged
from jobs.compare.curves import curves
from jobs.compare.entries import comparisons
from jobs.compare.load import Evaluation, check_alike, load, of_patterns
from jobs.compare.page import browsable, report
from jobs.compare.words import statements
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import METRICS, SEALED, TABLE

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Params

EVALUATIONS = Path("data/evaluations")


def run(
    params: "Params",
    evaluations: list[Evaluation],
    benchmarks: Path,
    curve_paths: list[Path],
    completions: Path | None,
    tasks_path: Path | None,
    out: Path,
    metrics_path: Path,
    plot: Path,
) -> dict:
    from jobs.plumbing.provenance import provenance

    settings = params.compare
    check_alike(evaluations)
    tasks = benchmarks_of(evaluations, benchmarks)
    drawn, gaps = curves(curve_paths)
    table = logged(completions, read_tasks(tasks_path) if tasks_path else [])
    entries = comparisons(evaluations, tasks, settings)
    said = statements(entries, evaluations, settings.confidence)
    for line in [*said, *gaps]:
        log.info(line)
    page = report(
        {
            "entries": entries,
            "statements": said,
            "curves": drawn,
            "gaps": gaps,
            "completions": table,
            "benchmarks": browsable(evaluations, tasks),
            "runs": sorted({str(e.folder.parent) for e in evaluations if e.run is not None}),
            "confidence": settings.confidence,
        }
    )
    with replace_file(out) as partial:
        partial.write_text(sealed(page), encoding="utf-8")
    write_plot(plot, entries)
    write_metrics(metrics_path, metrics_of(entries))
    provenance("compare" if out.stem == "compare" else f"compare-{out.stem}")
    return {"report": str(out), "statements": said}


def benchmarks_of(evaluations: list[Evaluation], folder: Path) -> "dict[str, list[Task]]":
    """The tasks by benchmark. Errors: JobError unless all evaluations are of all the tasks that lie in `folder`."""
    first = evaluations[0]
    tasks = read_benchmarks(folder, list(first.results))
    for name, recorded in first.settings["benchmarks"].items():
        if sha256(folder / f"{name}.jsonl") != recorded:
            raise JobError(f"{folder / name}.jsonl: is not the file that {first.folder} was evaluated on")
        require_all(f"{first.folder}/results-{name}.jsonl", tasks[name], first.results[name])
    return tasks


def write_plot(path: Path, entries: list[dict]) -> None:
    with replace_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["benchmark", "mode", "model", "evaluation", "pass@1", "low", "high"])
        for entry in entries:
            for model, values in entry["models"].items():
                name = f"{entry['view']} {entry['mode']} {model}"
                numbers = [round(values["pass@1"][key], 6) for key in ("mean", "low", "high")]
                table.writerow([entry["view"], entry["mode"], model, name, *numbers])


def metrics_of(entries: list[dict]) -> dict:
    """Numbers by benchmark and mode. Of several runs also how many, and the standard deviation of pass@1 between them."""
    metrics: dict = {}
    for entry in entries:
        models = {
            model: {
                name: {"number": value["number"], "sd": value["sd"]} if name == "runs" else value
                for name, value in values.items()
            }
            for model, values in entry["models"].items()
        }
        pairs = {
            f"{pair['new']}-{pair['old']}": {
                **pair["difference"],
                "p": pair["p"],
                "p_holm": pair["p_holm"],
                "established": int(pair["established"]),
                "greedy": pair["greedy"],
            }
            for pair in entry["pairs"]
        }
        metrics.setdefault(entry["view"], {})[entry["mode"]] = {**models, **pairs}
    return metrics


@job("compare")
@reads("--evaluations", None, f"Folder of a run's evaluations; repeatable.  [default: {EVALUATIONS}]", multiple=True)
@click.option("--runs", multiple=True, metavar="NAME=PATTERN", help="A method's evaluations, one a run; repeatable.")
@reads("--benchmarks-dir", "data/tasks", "Folder of the benchmarks.")
@reads("--curve", None, "A learning curve to show; repeatable.", multiple=True)
@reads("--completions", None, "GRPO's logged completions to show.")
@reads("--tasks", None, "The tasks that they answer.")
@writes("--out", "reports/compare.html", "The report.", SEALED)
@writes("--metrics", "metrics/compare.json", "Metrics.", METRICS)
@writes("--plot", "plots/compare.csv", "Pass rates for `dvc plots`.", TABLE("benchmark", "mode", "model", "evaluation"))
def command(
    params: "Params",
    evaluations: tuple[Path, ...],
    runs: tuple[str, ...],
    benchmarks_dir: Path,
    curve: tuple[Path, ...],
    completions: Path | None,
    tasks: Path | None,
    out: Path,
    metrics: Path,
    plot: Path,
) -> None:
    folders = list(evaluations) or ([] if runs else [EVALUATIONS])
    if not evaluations and not runs and not EVALUATIONS.exists():
        raise UsageError(f"--evaluations: {EVALUATIONS} does not exist")
    found = load(folders, of_patterns(runs))
    result = run(params, found, benchmarks_dir, list(curve), completions, tasks, out, metrics, plot)
    click.echo(json.dumps(result, indent=2, ensure_ascii=False))
