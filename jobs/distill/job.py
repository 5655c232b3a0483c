"""Ask a teacher for worked answers to the tasks and keep those that pass every check, until there are enough.

\b
    python -m jobs distill --tasks data/tasks/distill.jsonl --out data/distill --metrics metrics/distill.json

\b
Reads   --tasks       tasks (jobs/common/task.py); their order is shuffled by tasks.seed, each gives at most one example
        --benchmarks  prompts of which no answer may repeat tasks.overlap.words words in a row
        --responses   the response cache, data/responses: one file a request; it only grows
        --kept        a second one, which DVC does not know: what was paid for is there after any `dvc exp run`
Writes  --out         examples.jsonl, rejects.jsonl (with reasons), README.md (the data card)
        --metrics     requests, tokens, cost, acceptance by reason, lengths

Every answer is stored as it arrives, under the hash of its request: a killed run, or one whose budget ended, goes on
without asking again, and with a full cache the job is offline, needs no key and writes the same bytes. --responses is an
out of the stage with `persist: true`: DVC keeps it between runs, pushes and pulls it with the rest. But an experiment
begins with what its commit has there, in a copy of the project or in the project itself; so the stage names --kept too.

The result depends on the responses alone, not on their order of arrival. Candidates form one sequence: every task's
first answer, then the second ones of tasks that have no example yet, and so on. The result is the shortest beginning of
that sequence with enough valid answers; a request is sent only when it must belong to that beginning.

With distill.references the answers are the tasks' own references, with reasoning written by rule, and nobody is asked.
With distill.recorded the answers come from that file and nothing is asked. Each of its lines is a record of the cache,
{"key", "request", "response"}; jobs/distill/cache.py makes them:

\b
    request = cache.request(params.distill, task["prompt"], attempt=0)
    row = cache.record(request, cache.response(request, answer_format.render(reasoning, code)))

The key is read from the environment variable that distill.api_key_env names. Exit code 1 with the counts when the
budget (distill.max_requests, distill.max_total_tokens) or the attempts end before there are enough examples; the
rejected answers of such a run lie in --kept, or without it where --out would be (beside it, if an earlier result is there).
"""

import asyncio
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import replace_dir, rounded, write_jsonl, write_metrics
from jobs.common.task import read_tasks
from jobs.distill import cache, datacard, references
from jobs.distill.collect import Collection, Collector
from jobs.distill.examine import REASONS, Benchmarks, Candidate
from jobs.distill.teacher import Teacher
from jobs.extraction.worker import Extractor
from jobs.plumbing.cli import TRAINING_SANDBOX, job, log, reads, writes
from jobs.plumbing.outputs import CACHE, FOLDER, METRICS

if TYPE_CHECKING:
    from jobs.plumbing.params import Distill, Params

LONGEST_TEXT = 4000  # characters of a rejected answer in rejects.jsonl; the whole is in the cache


def run(
    params: "Params",
    tasks_path: Path,
    benchmarks_path: Path,
    responses_path: Path,
    kept: Path | None,
    out: Path,
    metrics_path: Path,
) -> dict:
    from jobs.plumbing.provenance import provenance
    from jobs.sandbox import Sandbox

    settings = references.settings(params.distill) if params.distill.references else params.distill
    tasks = read_tasks(tasks_path)
    if len(tasks) < settings.examples:
        raise UsageError(
            f"distill.examples: {settings.examples} wanted, but {tasks_path} has {len(tasks)} tasks, and "
            "each gives at most one example"
        )
    random.Random(f"distill {params.tasks.seed}").shuffle(tasks)
    collection = Collection(settings.similarity, Benchmarks.read(benchmarks_path, params.tasks.overlap.words))
    kept = cache.outside_experiments(kept) if kept else None
    responses = cache.Responses(responses_path, Path(settings.recorded) if settings.recorded else None, kept)
    teacher = references.References() if settings.references else Teacher(settings)
    try:
        with Sandbox.from_params(params.sandbox) as sandbox, Extractor() as extractor:
            asyncio.run(Collector(tasks, settings, collection, responses, teacher, sandbox, extractor).collect())
    except JobError as error:
        rejected = [reject(candidate) for candidate in collection.decided if candidate.reason]
        if not rejected:
            raise
        raise type(error)(f"{error}; the rejected answers are in {write_failed(rejected, out, kept)}") from None
    responses.settle(candidate.request for candidate in collection.decided)
    log.info("%s", collection.summary())

    metrics = rounded(metrics_of(collection, settings), str(metrics_path))
    examples = [example(candidate) for candidate in collection.accepted]
    with replace_dir(out) as folder:
        write_jsonl(folder / "examples.jsonl", examples)
        write_jsonl(folder / "rejects.jsonl", (reject(c) for c in collection.decided if c.reason))
        (folder / "README.md").write_text(datacard.card(examples, metrics, REASONS, settings), encoding="utf-8")
    write_metrics(metrics_path, metrics)
    provenance("distill", answered=teacher.answered, failed=teacher.failed)
    return metrics


def write_failed(rejected: list[dict], out: Path, kept: Path | None) -> Path:
    """Writes what a failed run rejected, and returns where: beside what is kept, else where `out` would be.

    An earlier run's examples stay as they are.
    """
    if kept:
        place = kept / "rejects.jsonl"
        write_jsonl(place, rejected)
        return place
    folder = out.with_name(f"{out.name}-failed") if (out / "examples.jsonl").exists() else out
    with replace_dir(folder) as partial:
        write_jsonl(partial / "rejects.jsonl", rejected)
    return folder / "rejects.jsonl"


def example(candidate: Candidate) -> dict:
    """A line of examples.jsonl. SFT reads `prompt` and `answer`; the rest says where they come from."""
    reply, answer, task = candidate.reply, candidate.answer, candidate.task
    assert reply is not None
    assert answer is not None
    return {
        "task_id": task["task_id"],
        "prompt": task["prompt"],
        "answer": answer_format.render(answer.reasoning, answer.code),
        "reasoning": answer.reasoning,
        "code": answer.code,
        "thinking": reply.thinking,
        "teacher": reply.model,
        "attempt": candidate.attempt,
        "request": cache.request_key(candidate.request),
        "source": task["source"],
        "license": task["license"],
    }


def reject(candidate: Candidate) -> dict:
    reply = candidate.reply
    assert reply is not None
    return {
        "task_id": candidate.task["task_id"],
        "attempt": candidate.attempt,
        "reason": candidate.reason,
        "detail": candidate.detail,
        "teacher": reply.model[:100],
        "characters": len(reply.text),
        "text": reply.text[:LONGEST_TEXT],
        "request": cache.request_key(candidate.request),
    }


def metrics_of(collection: Collection, settings: "Distill") -> dict:
    """Numbers of the answers that decided the result; the same in a live run and in a replay."""
    requests = len(collection.decided)
    tokens_in, tokens_out = collection.tokens()
    answers = [candidate.answer for candidate in collection.accepted if candidate.answer]
    return {
        "examples": len(answers),
        "requests": requests,
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost_usd": collection.dollars(settings),
        "acceptance": len(answers) / requests,
        "rejected": {reason: count / requests for reason, count in collection.counts().items()},
        "reasoning_characters": spread([len(answer.reasoning) for answer in answers]),
        "code_characters": spread([len(answer.code) for answer in answers]),
    }


def spread(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "median": ordered[len(ordered) // 2],
        "max": ordered[-1],
        "mean": sum(ordered) / len(ordered),
    }


@job(
    "distill",
    "tasks.overlap.words",
    "tasks.seed",
    *TRAINING_SANDBOX,
)
@reads("--tasks", "data/tasks/distill.jsonl", "Tasks to ask about.")
@reads("--benchmarks", "data/tasks/benchmarks.jsonl", "Prompts that no answer may repeat.")
@writes("--responses", "data/responses", "The response cache; read, and added to.", CACHE)
@writes("--kept", None, "Where answers are kept as well, out of DVC's reach; read, and added to.", CACHE)
@writes("--out", "data/distill", "Folder of examples.jsonl, rejects.jsonl and README.md.", FOLDER)
@writes("--metrics", "metrics/distill.json", "Metrics.", METRICS)
def command(
    params: "Params", tasks: Path, benchmarks: Path, responses: Path, kept: Path | None, out: Path, metrics: Path
) -> None:
    click.echo(json.dumps(run(params, tasks, benchmarks, responses, kept, out, metrics)))
