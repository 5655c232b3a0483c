"""Set tasks aside for validation, and grade the others: how often the SFT model solves each.

\b
    python -m jobs grade --base models/base --adapter models/adapters/sft --tasks data/tasks/train.jsonl \\
        --out data/graded.jsonl --validation data/validation.jsonl

\b
Reads   --base, --adapter   the model folder and the SFT adapter
        --tasks             tasks (jobs/tasks/job.py), in a file NAME.jsonl
Writes  --validation   grade.validation of the tasks, drawn by tasks.seed: GRPO measures itself by them, and does not train
                    on them. They are training tasks, none of a benchmark.
        --out       the other tasks, each with
                    pass_rate   the share of its drawn samples that pass all its tests, in [0, 1]
                    graded      how many samples that is
        --metrics   how many tasks are never solved, always, and in between

The answers are drawn as GRPO draws them (grpo.temperature, top_p, max_completion_length) by evaluate.engine in
evaluate.dtype, and judged under the limits of a reward. grpo.difficulty chooses by the rates. With grade.samples 0, as
in params.yaml, nothing is drawn, no model is loaded, and the tasks are written as they are.

A killed run goes on where it stopped: finished calls wait in .checkpoints.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import write_jsonl, write_metrics
from jobs.common.task import Task, read_tasks
from jobs.plumbing.cli import TRAINING_SANDBOX, job, log, reads, writes
from jobs.plumbing.outputs import METRICS, ROWS

if TYPE_CHECKING:
    from jobs.plumbing.params import Evaluate, Params

DRAWN_AS = tuple(f"grpo.{key}" for key in ("max_completion_length", "temperature", "top_p"))
DRAWN_BY = tuple(
    f"evaluate.{key}" for key in ("batch_invariant", "batch_size", "dtype", "engine", "gpu_memory", "kv_cache_gib")
)


@job("grade", *DRAWN_AS, *DRAWN_BY, *TRAINING_SANDBOX, "seed", "tasks.seed")
@reads("--base", "models/base", "The model folder.")
@reads("--adapter", "models/adapters/sft", "The adapter that GRPO continues.")
@reads("--tasks", "data/tasks/train.jsonl", "The tasks.")
@writes("--out", "data/graded.jsonl", "The tasks with their pass rates.", ROWS("task_id", "prompt", "entry_point"))
@writes("--validation", "data/validation.jsonl", "The tasks set aside.", ROWS("task_id", "prompt", "entry_point"))
@writes("--metrics", "metrics/grade.json", "Metrics.", METRICS)
def command(
    params: "Params", base: Path, adapter: Path, tasks: Path, out: Path, validation: Path, metrics: Path
) -> None:
    click.echo(json.dumps(run(params, base, adapter, tasks, out, validation, metrics)))


def run(params: "Params", base: Path, adapter: Path, tasks: Path, out: Path, validation: Path, metrics: Path) -> dict:
    from jobs.plumbing.provenance import provenance

    if tasks.suffix != ".jsonl":
        raise UsageError(f"--tasks: {tasks} is to be a file NAME.jsonl")
    count = params.grade.samples
    rows, aside = split(read_tasks(tasks), params.grade.validation, params.tasks.seed, tasks)
    result: dict = {"samples": count, "tasks": len(rows), "validation": len(aside)}
    forget: Callable[[], None] | None = None
    if count:
        rates, forget = pass_rates(params, base, adapter, rows, tasks)
        for row in rows:
            row.update({"pass_rate": rates[row["task_id"]], "graded": count})
        result |= summary(list(rates.values()))
        log.info("grade: of %(tasks)d tasks %(never)d are never solved, %(always)d always", result)
    write_jsonl(out, rows)
    write_jsonl(validation, aside)
    write_metrics(metrics, result)
    provenance("grade")
    if forget is not None:
        forget()
    return result


def split(rows: list[Task], count: int, seed: int, where: Path) -> tuple[list[Task], list[Task]]:
    """The tasks to train on and `count` others, both in their order. Errors: UsageError where none would be left."""
    if count >= len(rows):
        raise UsageError(f"grade.validation: {count} of the {len(rows)} tasks of {where} cannot be set aside")
    draw = random.Random(f"validation {seed}")
    aside = set(draw.sample(sorted(row["task_id"] for row in rows), count))
    return [row for row in rows if row["task_id"] not in aside], [row for row in rows if row["task_id"] in aside]


def pass_rates(
    params: "Params", base: Path, adapter: Path, rows: list[Task], tasks: Path
) -> tuple[dict[str, float], Callable[[], None]]:
    """The share of drawn samples of each task that pass, by task id; and what forgets the samples kept on disk."""
    from jobs.sampling.benchmark import draw
    from jobs.sandbox import Sandbox
    from jobs.scoring.judge import judged

    settings = params.model_copy(update={"evaluate": sampling(params)})
    with Sandbox.from_params(params.sandbox) as sandbox:
        drawn = draw(settings, base, adapter, "cot", {tasks.stem: rows}, tasks.parent, "grade", greedy=False)
        by_id = {row["task_id"]: row for row in rows}
        answers = [(row["task_id"], answer_format.parse(row["text"])) for row in drawn.samples[tasks.stem]]
        submissions = [(by_id[task_id], answer.code) for task_id, answer in answers if answer]
        verdicts = iter(judged(submissions, sandbox, "grade"))
    passed: dict[str, list[bool]] = {row["task_id"]: [] for row in rows}
    for task_id, answer in answers:
        verdict = next(verdicts) if answer else None
        if verdict is not None and verdict.status == "infrastructure_error":
            raise JobError(f"grade: the sandbox failed on an answer to {task_id}: {verdict.error}")
        passed[task_id].append(verdict is not None and verdict.passed)
    return {task_id: mean(found) for task_id, found in passed.items()}, drawn.forget


def sampling(params: "Params") -> "Evaluate":
    """How `evaluate` would have to draw to draw as GRPO does."""
    from jobs.plumbing.params import Sampled

    grpo = params.grpo
    drawn = Sampled(n=params.grade.samples, temperature=grpo.temperature, top_p=grpo.top_p)
    changes = {"seed": params.seed, "max_tokens": grpo.max_completion_length, "sampled": drawn}
    return params.evaluate.model_copy(update=changes)


def summary(rates: list[float]) -> dict:
    never, always = sum(rate == 0 for rate in rates), sum(rate == 1 for rate in rates)
    between = len(rates) - never - always
    return {"never": never, "always": always, "between": between, "pass_rate": mean(rates)}
