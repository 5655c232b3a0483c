"""Collect the tasks and benchmarks, drop what overlaps, check each by its own reference solution, and split.

\b
    python -m jobs tasks --out data/tasks --metrics metrics/tasks.json

\b
Reads   HumanEval+ and MBPP+ through evalplus, MBPP from the Hub; or HumanEvalPlus.jsonl, MbppPlus.jsonl and mbpp.jsonl
        (.gz or not) from the folder --sources, where they are there. Checked by the hashes in params in either case.
        --pairs     which references solve which benchmark's tasks, as overlap-pairs finds it
        the files of tasks.files: tasks of one's own, docs/tasks.md
        the files of tasks.sources: published data sets, from the Hub or the folder --sources
        With tasks.toy: jobs/toy/world.py makes the tasks, and nothing is read.
Writes  --out       distill.jsonl     MBPP outside MBPP+: what the teacher is asked
                    train.jsonl       MBPP+ less what is held out: what GRPO trains on; tasks.train_on_distill adds distill
                    mbpp.jsonl        the benchmark of tasks.heldout MBPP+ tasks, drawn by tasks.seed (none: no file)
                    humaneval.jsonl   the benchmark HumanEval+
                    toy.jsonl         with tasks.toy, in place of both benchmarks; toy_stdin.jsonl with tasks.toy_stdin
                    sizes.json        how many tasks each benchmark has: a metric over fewer is refused
                    left_out.jsonl    the tasks that are in no split, and why
                    contamination.jsonl   which training task overlaps with which benchmark task, by which rule
                    benchmarks.jsonl  all benchmarks' prompts, to check the teacher's answers by
                    README.md         the data card
        --metrics   tasks per split, how many were left out for which reason, and how many tasks each rule finds

A task is one JSON object a line, with the fields of `Task` in jobs/common/task.py, whatever the source.
"""

import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from jobs.common.errors import UsageError
from jobs.common.files import replace_dir, write_json, write_jsonl, write_metrics
from jobs.common.programs import is_program
from jobs.plumbing.cli import job, writes
from jobs.plumbing.outputs import FOLDER, METRICS
from jobs.tasks import datacard, overlap, pairs, run_references, sources, timeouts
from jobs.tasks import outside as published

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Overlap, Params
    from jobs.plumbing.params import Tasks as Settings

REASONS = (
    "setup",
    "entry_point",
    "excluded",
    "contaminated",
    "unusable",
    "too_long",
    "repeated",
    "packages",
    "unverified",
)


def collect(settings: "Settings", pools: "dict[str, list[Task]]") -> "dict[str, list[Task]]":
    """Tasks by split, of those by source, before any check."""
    plus = pools[sources.MBPP_PLUS]
    if settings.heldout >= len(plus):
        raise UsageError(f"tasks.heldout: {settings.heldout} of {len(plus)} MBPP+ tasks cannot be set aside")
    draw = random.Random(f"heldout {settings.seed}")
    chosen = set(draw.sample(sorted(task["task_id"] for task in plus), settings.heldout))
    train = [task for task in plus if task["task_id"] not in chosen]
    splits = {
        "distill": pools[sources.MBPP],
        "train": train if settings.plus_inputs else [without_plus(task) for task in train],
        "mbpp": [task for task in plus if task["task_id"] in chosen],
        "humaneval": pools[sources.HUMANEVAL_PLUS],
    }
    for file, name in zip(settings.files, pools, strict=False):  # one's own come first among the sources
        splits[file.split] = splits.get(file.split, []) + pools[name]
    homes = Counter(task["task_id"] for tasks in splits.values() for task in tasks)
    twice = [name for name, count in homes.items() if count > 1]
    if twice:
        raise UsageError(f"tasks.files: {twice[0]} is a task of two sources; give one's own tasks ids of their own")
    return splits


def without_plus(task: "Task") -> "Task":
    """The task by its benchmark's own inputs alone."""
    return cast("Task", {name: value for name, value in task.items() if name != "plus_input"})


def is_benchmark(split: str) -> bool:
    return split not in sources.TRAINING


def toy_tasks(settings: "Settings") -> "dict[str, list[Task]]":
    from jobs.toy import world

    assert settings.toy is not None
    splits = world.tasks(settings.seed, settings.toy.model_dump(), whole=settings.toy_stdin)
    benchmark = "toy_stdin" if settings.toy_stdin else "toy"
    return {"distill": splits["distill"], "train": splits["train"], benchmark: splits["heldout"]}


def decontaminate(
    splits: "dict[str, list[Task]]", known: list[pairs.Pair], settings: "Overlap"
) -> "tuple[dict[str, list[Task]], list[dict], list[dict]]":
    """The splits without the training tasks that overlap with a benchmark's; why each went; and every overlap.

    known: the pairs of ids in which a training task's reference solves a benchmark task.
    """
    benchmarks = [task for name in splits if is_benchmark(name) for task in splits[name]]
    kept: dict[str, list[Task]] = {}
    left_out: list[dict] = []
    report: list[dict] = []
    training = [task for name in splits if not is_benchmark(name) for task in splits[name]]
    found: dict[str, list[dict]] = {}
    for row in overlap.find(training, benchmarks, known, settings):
        found.setdefault(row["task_id"], []).append(row)
    for name, tasks in splits.items():
        hit = [task for task in tasks if task["task_id"] in found and not is_benchmark(name)]
        gone = {task["task_id"] for task in hit}
        kept[name] = [task for task in tasks if task["task_id"] not in gone]
        for task in hit:
            rows = found[task["task_id"]]
            report += [{"task_id": row["task_id"], "split": name} | row for row in rows]
            rules = {row["rule"]: row for row in rows}  # one of each rule
            why = "; ".join(f"{row['rule']} {row['benchmark']} {row['detail']}".strip() for row in rules.values())
            left_out.append(without(task, name, "contaminated", why))
    return kept, left_out, report


def drop(splits: "dict[str, list[Task]]", settings: "Settings") -> "tuple[dict[str, list[Task]], list[dict]]":
    """The splits without the training tasks that cannot be used or are on the list tasks.exclude, and why each went.

    What is dropped hangs on the data and the params alone, never on how fast a machine is. A benchmark keeps all its tasks.
    Errors: UsageError for an id of the list that no source has, or that is of a benchmark that is never trained on.
    """
    excluded = {row.id: row.reason for row in settings.exclude}
    homes = {task["task_id"]: split for split, tasks in splits.items() for task in tasks}
    for name in excluded:
        if name not in homes:
            raise UsageError(f"tasks.exclude: no source has a task {name}")
        if is_benchmark(homes[name]) and homes[name] != "mbpp":  # which MBPP+ tasks are held out hangs on the seed
            raise UsageError(f"tasks.exclude: {name} is of the benchmark {homes[name]}, which keeps all its tasks")
    kept: dict[str, list[Task]] = {}
    left_out = []
    for split, tasks in splits.items():
        kept[split] = []
        for task in tasks:
            reason, detail = unusable(task, split)
            if not reason and not is_benchmark(split) and task["task_id"] in excluded:
                reason, detail = "excluded", excluded[task["task_id"]]
            if reason:
                left_out.append(without(task, split, reason, detail))
            else:
                kept[split].append(task)
    return kept, left_out


def unusable(task: "Task", split: str) -> tuple[str, str]:
    """The reason and detail why a training task cannot be used, as far as its text shows it, or two empty strings."""
    if split == "distill" and task["setup"]:  # it builds on classes that the prompt does not show
        return "setup", "its tests need more than the prompt tells"
    if not is_benchmark(split) and task.get("unittests"):
        return "unusable", "its tests run in the answer's own process, so that no reward can hang on them"
    if not is_benchmark(split) and not task["entry_point"] and not is_program(task):
        return "entry_point", "its tests do not call one function of its own"
    return "", ""


def without(task: "Task", split: str, reason: str, detail: str) -> dict:
    return {"task_id": task["task_id"], "split": split, "reason": reason, "detail": detail}


def run(params: "Params", folder: Path, pairs_path: Path, out: Path, metrics_path: Path) -> dict:
    from jobs.plumbing.provenance import provenance

    settings = params.tasks
    left_out: list[dict] = []
    report: list[dict] = []
    if settings.toy and (settings.files or settings.sources):
        raise UsageError("tasks.files and tasks.sources: cannot be used together with tasks.toy")
    outside: dict[str, list[Task]] = {}
    if settings.toy:
        splits = toy_tasks(settings)
    else:  # toy tasks are of one phrasing; their splits are disjoint by construction
        pools = sources.pools(settings, folder)
        splits, left_out = drop(collect(settings, pools), settings)
        outside, unused = published.collect(settings, folder, params.sandbox)
        left_out += unused
        for name, tasks in outside.items():
            splits[name] = splits.get(name, []) + tasks
        known = pairs.of(pairs_path, *sources.roles(settings, pools))
        splits, overlapping, report = decontaminate(splits, known, settings.overlap)
        left_out += overlapping
    seen = {id(task) for tasks in outside.values() for task in tasks}  # a benchmark's have no reference, others passed
    own = {name: [task for task in tasks if id(task) not in seen] for name, tasks in splits.items()}
    run_references.require_passing(own, [name for name in splits if is_benchmark(name)], params.sandbox)
    training = {name: tasks for name, tasks in splits.items() if not is_benchmark(name)}
    splits |= timeouts.fixed(training, settings.timeout, params.sandbox)
    if settings.train_on_distill:
        splits["train"] = [*splits["train"], *splits["distill"]]
    metrics = metrics_of(splits, left_out, report)
    with replace_dir(out) as unfinished:
        for split, tasks in splits.items():
            if tasks:
                write_jsonl(unfinished / f"{split}.jsonl", tasks)
        write_json(
            unfinished / "sizes.json",
            {name: len(tasks) for name, tasks in splits.items() if is_benchmark(name) and tasks},
        )
        write_jsonl(unfinished / "left_out.jsonl", left_out)
        write_jsonl(unfinished / "contamination.jsonl", report)
        write_jsonl(
            unfinished / "benchmarks.jsonl",
            ()
            if settings.toy
            else (
                {name: task[name] for name in ("task_id", "prompt")}
                for split in filter(is_benchmark, splits)
                for task in splits[split]
            ),
        )
        (unfinished / "README.md").write_text(datacard.card(splits, metrics, settings), encoding="utf-8")
    write_metrics(metrics_path, metrics)
    provenance("tasks")
    return metrics


def metrics_of(splits: "dict[str, list[Task]]", left_out: list[dict], report: list[dict]) -> dict:
    """Numbers of tasks: by split, by reason of those left out, and of those that overlap by split and rule."""
    reasons = Counter(row["reason"] for row in left_out)

    def found(split: str, rules: tuple[str, ...]) -> int:
        return len({row["task_id"] for row in report if row["split"] == split and row["rule"] in rules})

    return {
        "tasks": {split: len(tasks) for split, tasks in splits.items()},
        "left_out": {reason: reasons[reason] for reason in REASONS},
        "contaminated": {
            split: {rule: found(split, (rule,)) for rule in overlap.RULES} | {"any": found(split, overlap.RULES)}
            for split in splits
            if not is_benchmark(split)
        },
    }


@job("tasks", "sandbox")
@sources.folder_option
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    default="data/overlap/pairs.jsonl",
    show_default=True,
    help="What overlap-pairs found; not read with tasks.toy.",
)
@writes("--out", "data/tasks", "Folder of the splits.", FOLDER)
@writes("--metrics", "metrics/tasks.json", "Metrics.", METRICS)
def command(params: "Params", folder: Path, pairs: Path, out: Path, metrics: Path) -> None:
    click.echo(json.dumps(run(params, folder, pairs, out, metrics)))
