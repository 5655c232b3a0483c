"""Collect the tasks and benchmarks, drop what overlaps, check each by its own reference solution, and split.

\b
    python -m jobs tasks --out data/tasks --metrics metrics/tasks.json

\b
Reads   HumanEval+ and MBPP+ through evalplus, MBPP from the Hub; or HumanEvalPlus.jsonl, MbppPlus.jsonl and mbpp.jsonl
        (.gz or not) from the folder --sources, where they are there. Checked by the hashes in params in either case.
        With tasks.toy: nothing, jobs/toy/world.py makes the tasks.
Writes  --out       distill.jsonl     MBPP outside MBPP+: what the teacher is asked
                    train.jsonl       MBPP+ less what is held out: what GRPO trains on
                    mbpp.jsonl        the benchmark of tasks.heldout MBPP+ tasks, drawn by tasks.seed (none: no file)
                    humaneval.jsonl   the benchmark HumanEval+
                    toy.jsonl         with tasks.toy, in place of both benchmarks
                    sizes.json        how many tasks each benchmark has: a metric over fewer is refused
                    left_out.jsonl    the tasks that are in no split, and why
                    contamination.jsonl   every run of tasks.ngrams words that a training task shares with a benchmark's
                    benchmarks.jsonl  all benchmarks' prompts and solutions, to check the teacher's answers by
        --metrics   tasks per split, how many were left out for which reason, and overlaps by split and n

A task is one JSON object a line, the same format for all sources:

\b
    task_id, prompt, entry_point   the name the tests call; MBPP's prompts show one assertion, as evalplus's do
    setup, tests                   code before the tests, and assertions as strings (MBPP, toy)
    check                          source of check(candidate) (HumanEval)
    base_input, plus_input, atol, contract   evalplus's inputs; what is expected of them comes from the reference
    reference                      a whole program that is right
    source, license
"""

import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.errors import UsageError
from jobs.common.files import replace_dir, write_json, write_jsonl, write_metrics
from jobs.plumbing.cli import job, writes
from jobs.plumbing.outputs import FOLDER, METRICS
from jobs.tasks import check, sources

if TYPE_CHECKING:
    from jobs.plumbing.params import Params
    from jobs.plumbing.params import Tasks as Settings

BENCHMARKS = "humaneval", "mbpp", "toy"
REASONS = "setup", "entry_point", "excluded", "contaminated"


def collect(settings: "Settings", folder: Path) -> dict[str, list[dict]]:
    """Task records by split, before any check."""
    plus = sources.evalplus_rows("MbppPlus", settings.mbpp_plus, folder)
    mbpp = {task["task_id"]: task for task in map(sources.mbpp_task, sources.mbpp_rows(settings.mbpp, folder))}
    known = {row["task_id"] for row in plus}
    if not known <= mbpp.keys() or settings.heldout >= len(plus):
        raise UsageError(f"tasks.heldout: {settings.heldout} of {len(plus)} MBPP+ tasks cannot be set aside")
    chosen = set(random.Random(f"heldout {settings.seed}").sample(sorted(known), settings.heldout))
    plus_tasks = [sources.mbpp_plus_task(row, settings.mbpp_plus.version) for row in plus]
    humaneval = sources.evalplus_rows("HumanEvalPlus", settings.humaneval_plus, folder)
    return {
        "distill": [task for task_id, task in mbpp.items() if task_id not in known],
        "train": [task for task in plus_tasks if task["task_id"] not in chosen],
        "mbpp": [task for task in plus_tasks if task["task_id"] in chosen],
        "humaneval": [sources.humaneval_task(row, settings.humaneval_plus.version) for row in humaneval],
    }


def toy_tasks(settings: "Settings") -> dict[str, list[dict]]:
    from jobs.toy import world

    assert settings.toy is not None
    splits = world.tasks(settings.seed, settings.toy.model_dump())
    return {"distill": splits["distill"], "train": splits["train"], "toy": splits["heldout"]}


def decontaminate(splits: dict[str, list[dict]], sizes: list[int]) -> tuple[dict[str, list[dict]], list[dict]]:
    """The splits without the training tasks that share a run of n words with a benchmark's, and a row for each overlap.

    Prompts and reference solutions are compared (jobs/common/contamination.py), for each n of `sizes`.
    """
    from jobs.common.contamination import overlaps

    def fields(benchmark: bool) -> dict[str, list[str]]:
        return {
            task["task_id"]: [task["prompt"], task["reference"]]
            for name, tasks in splits.items()
            if (name in BENCHMARKS) == benchmark
            for task in tasks
        }

    origin = {task["task_id"]: name for name, tasks in splits.items() for task in tasks}
    report = [
        {"task_id": found.text, "split": origin[found.text], "n": n, "benchmark": found.benchmark, "ngram": found.ngram}
        for n in sizes
        for found in overlaps(fields(False), fields(True), n)
    ]
    dropped = {row["task_id"] for row in report}
    return {name: [task for task in tasks if task["task_id"] not in dropped] for name, tasks in splits.items()}, report


def drop(splits: dict[str, list[dict]], settings: "Settings") -> tuple[dict[str, list[dict]], list[dict]]:
    """The splits without the training tasks that cannot be used or are on the list tasks.exclude, and why each went.

    What is dropped hangs on the data and the params alone, never on how fast a machine is. A benchmark keeps all its tasks.
    Errors: UsageError for an id of the list that no source has, or that is of a benchmark that is never trained on.
    """
    excluded = {row.id: row.reason for row in settings.exclude}
    homes = {task["task_id"]: split for split, tasks in splits.items() for task in tasks}
    for name in excluded:
        if name not in homes:
            raise UsageError(f"tasks.exclude: no source has a task {name}")
        if homes[name] == "humaneval":
            raise UsageError(f"tasks.exclude: {name} is of the benchmark humaneval, which keeps all its tasks")
    kept: dict[str, list[dict]] = {}
    left_out = []
    for split, tasks in splits.items():
        kept[split] = []
        for task in tasks:
            reason, detail = unusable(task, split)
            if not reason and split not in BENCHMARKS and task["task_id"] in excluded:
                reason, detail = "excluded", excluded[task["task_id"]]
            if reason:
                left_out.append(without(task, split, reason, detail))
            else:
                kept[split].append(task)
    return kept, left_out


def unusable(task: dict, split: str) -> tuple[str, str]:
    """The reason and detail why a training task cannot be used, as far as its text shows it, or two empty strings."""
    if split == "distill" and task["setup"]:  # it builds on classes that the prompt does not show
        return "setup", "its tests need more than the prompt tells"
    if split not in BENCHMARKS and not task["entry_point"]:
        return "entry_point", "its tests do not call one function of its own"
    return "", ""


def without(task: dict, split: str, reason: str, detail: str) -> dict:
    return {"task_id": task["task_id"], "split": split, "reason": reason, "detail": detail}


def run(params: "Params", folder: Path, out: Path, metrics_path: Path) -> dict:
    from jobs.plumbing.checkpoint import provenance

    settings = params.tasks
    left_out: list[dict] = []
    overlap: list[dict] = []
    if settings.toy:
        splits = toy_tasks(settings)
    else:  # toy tasks are of one phrasing; their splits are disjoint by construction
        splits, left_out = drop(collect(settings, folder), settings)
        splits, overlap = decontaminate(splits, settings.ngrams)
    shared = {row["task_id"]: row for row in overlap}  # of several overlaps, one with the longest run
    left_out += [
        without(row, row["split"], "contaminated", f"{row['n']} words of {row['benchmark']}") for row in shared.values()
    ]
    check.references(splits, BENCHMARKS, params.sandbox)
    sizes = {split: len(tasks) for split, tasks in splits.items()}
    with replace_dir(out) as unfinished:
        for split, tasks in splits.items():
            if tasks:
                write_jsonl(unfinished / f"{split}.jsonl", tasks)
        write_json(
            unfinished / "sizes.json", {name: size for name, size in sizes.items() if name in BENCHMARKS and size}
        )
        write_jsonl(unfinished / "left_out.jsonl", left_out)
        write_jsonl(unfinished / "contamination.jsonl", overlap)
        write_jsonl(
            unfinished / "benchmarks.jsonl",
            ()
            if settings.toy
            else (
                {name: task[name] for name in ("task_id", "prompt", "reference")}
                for split in BENCHMARKS
                for task in splits.get(split, ())
            ),
        )
    reasons = Counter(row["reason"] for row in left_out)
    metrics = {
        "tasks": sizes,
        "left_out": {reason: reasons[reason] for reason in REASONS},
        "contaminated": {
            split: {
                str(n): len({row["task_id"] for row in overlap if (row["split"], row["n"]) == (split, n)})
                for n in settings.ngrams
            }
            for split in ("distill", "train")
        },
    }
    write_metrics(metrics_path, metrics)
    provenance("tasks")
    return metrics


@job("tasks", "sandbox")
@click.option(
    "--sources",
    "folder",
    type=click.Path(path_type=Path),
    default="data/sources",
    show_default=True,
    help="Folder of files that stand in for the downloads.",
)
@writes("--out", "data/tasks", "Folder of the splits.", FOLDER)
@writes("--metrics", "metrics/tasks.json", "Metrics.", METRICS)
def command(params: "Params", folder: Path, out: Path, metrics: Path) -> None:
    click.echo(json.dumps(run(params, folder, out, metrics)))
