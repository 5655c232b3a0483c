"""Ask a teacher for worked answers to the tasks and keep those that pass every check, until there are enough.

\b
    python -m jobs distill --tasks data/tasks/distill.jsonl --out data/distill --metrics metrics/distill.json

\b
Reads   --tasks       task records; their order is shuffled by tasks.seed, each gives at most one example
        --benchmarks  what no answer may repeat, by runs of the longest of tasks.ngrams
        --responses   the response cache, data/responses: one file a request; it only grows
Writes  --out         examples.jsonl, rejects.jsonl (with reasons), README.md (the data card)
        --metrics     requests, tokens, cost, acceptance by reason, lengths

Every response is stored as it arrives, under the hash of its request: a killed run, or one whose budget ended, goes on
without asking again, and with a full cache the job is offline, needs no key and writes the same bytes. The cache is an
out of the stage with `persist: true`: DVC keeps it between runs, pushes and pulls it with the rest.

The result depends on the responses alone, not on their order of arrival. Candidates form one sequence: every task's
first answer, then the second ones of tasks that have no example yet, and so on. The result is the shortest beginning of
that sequence with enough valid answers; a request is sent only when it must belong to that beginning.

With distill.recorded the answers come from that file and nothing is asked. Each of its lines is a record of the cache,
{"key", "request", "response"}; jobs/distill/teacher.py makes them:

\b
    asked = teacher.request(params.distill, task["prompt"], attempt=0)
    row = teacher.record(asked, teacher.response(asked, answer_format.render(reasoning, code)))

The key is read from the environment variable that distill.api_key_env names. Exit code 1 with the counts when the
budget (distill.max_requests, distill.max_total_tokens) or the attempts end before there are enough examples.
"""

import asyncio
import json
import random
import re
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.contamination import ngrams
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, replace_dir, rounded, write_jsonl, write_metrics
from jobs.common.records import read_tasks
from jobs.distill import datacard, teacher
from jobs.plumbing.cli import job, log, progress, reads, writes
from jobs.plumbing.outputs import CACHE, FOLDER, METRICS

if TYPE_CHECKING:
    from jobs.plumbing.params import Distill, Params
    from jobs.sandbox import Sandbox

# Why an answer is not kept, in the order of the checks.
REASONS = {
    "too_large": f"the response is larger than {teacher.LARGEST >> 20} MiB",
    "malformed": "the response is no chat completion, try after try",
    "refused": "the endpoint refuses the request",
    "model": "another model answered than the one asked for",
    "truncated": "the answer was cut at max_tokens, or ended for another reason than its own end",
    "tags": "the tag format is not obeyed",
    "length": "reasoning or code is outside the bounds",
    "syntax": "the code does not parse",
    "entry_point": "the code does not define the function that the tests call",
    "failed": "a test fails, or the code raises",
    "timeout": "the tests take too long",
    "crashed": "the process running the code dies",
    "invalid": "the sandbox refuses the code",
    "contaminated": "reasoning or code share a run of words with a benchmark's prompt or solution",
    "near_duplicate": "prompt and code are nearly those of an earlier example",
}
LONGEST_TEXT = 4000  # characters of a rejected answer in rejects.jsonl; the whole is in the cache
WORDS = re.compile(r"\w+|[^\w\s]")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


@dataclass
class Candidate:
    """One answer, asked for or to be: its place in the sequence and what became of it."""

    task: dict
    attempt: int
    request: dict
    reply: teacher.Reply | None = None
    answer: answer_format.Answer | None = None
    reason: str = ""  # of the rejection
    detail: str = ""

    @property
    def cost(self) -> int:
        return self.reply.tokens_in + self.reply.tokens_out if self.reply else sum(teacher.reservation(self.request))


@dataclass
class Benchmarks:
    """The runs of n words in the benchmarks, by which answers that repeat them are told."""

    n: int
    runs: dict[tuple[str, ...], str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, sizes: list[int]) -> "Benchmarks":
        """By the longest n alone: code is full of the shorter runs (`for i in range(len(a)): for j in`)."""
        n = max(sizes, default=0)
        return cls(
            n,
            {
                run: task["task_id"]
                for task in read_jsonl(path)
                for text in (task["prompt"], task["reference"])
                for run in ngrams(text, n)
            }
            if n
            else {},
        )

    def shared(self, answer: answer_format.Answer) -> str:
        """The first run that the answer shares, with its benchmark task, or ""."""
        return next(
            (
                f"{self.runs[run]}: {' '.join(run)}"
                for text in (answer.reasoning, answer.code)
                for run in (ngrams(text, self.n) if self.runs else ())
                if run in self.runs
            ),
            "",
        )


@dataclass
class Collection:
    """What the beginning of the sequence, as far as it is decided, has come to."""

    similarity: float
    benchmarks: Benchmarks
    accepted: list[Candidate] = field(default_factory=list)
    decided: list[Candidate] = field(default_factory=list)
    grams: list[set[tuple[str, ...]]] = field(default_factory=list)
    in_a_row: int = 0

    def decide(self, candidate: Candidate) -> None:
        """Takes the sequence's next candidate, whose own checks are done, and compares it with what is there."""
        if not candidate.reason:
            assert candidate.answer is not None
            grams = shingles(candidate)
            twin = next(
                (
                    earlier.task["task_id"]
                    for earlier, other in zip(self.accepted, self.grams, strict=True)
                    if len(grams & other) >= self.similarity * len(grams | other)
                ),
                "",
            )
            if shared := self.benchmarks.shared(candidate.answer):
                candidate.reason, candidate.detail = "contaminated", shared
            elif twin:
                candidate.reason, candidate.detail = "near_duplicate", twin
            else:
                self.accepted.append(candidate)
                self.grams.append(grams)
        self.decided.append(candidate)
        self.in_a_row = self.in_a_row + 1 if candidate.reason else 0

    def counts(self) -> dict[str, int]:
        found = Counter(candidate.reason for candidate in self.decided)
        return {reason: found[reason] for reason in REASONS}

    def tokens(self) -> tuple[int, int]:
        replies = [candidate.reply for candidate in self.decided if candidate.reply]
        return sum(reply.tokens_in for reply in replies), sum(reply.tokens_out for reply in replies)

    def dollars(self, settings: "Distill") -> float:
        tokens_in, tokens_out = self.tokens()
        return (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6

    def summary(self) -> str:
        rejected = ", ".join(f"{reason} {count}" for reason, count in self.counts().items() if count)
        return f"{len(self.accepted)} examples from {len(self.decided)} answers; rejected: {rejected or 'none'}"


def shingles(candidate: Candidate) -> set[tuple[str, ...]]:
    """The word 3-grams of prompt and code, the function's name left out of account."""
    assert candidate.answer is not None
    entry_point = candidate.task["entry_point"]
    words = [
        "_" if word == entry_point else word
        for word in WORDS.findall(candidate.task["prompt"] + "\n" + candidate.answer.code)
    ]
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def sequence(tasks: list[dict], settings: "Distill") -> Iterator[Candidate]:
    for attempt in range(settings.attempts):
        for task in tasks:
            yield Candidate(task, attempt, teacher.request(settings, task["prompt"], attempt))


def examine(candidate: Candidate, settings: "Distill") -> tuple[str, str]:
    """The reason and detail of a rejection by what can be seen without running the code, or two empty strings."""
    reply, task = candidate.reply, candidate.task
    assert reply is not None
    if reply.error:
        return reply.error, ""
    if reply.model != settings.model and not reply.model.startswith(settings.model + "-"):  # -2026-01-31: a snapshot
        return "model", reply.model[:100]
    if reply.finish != "stop":
        return "truncated", reply.finish[:100]
    answer = candidate.answer = answer_format.parse(reply.text)
    if answer is None:
        return "tags", ""
    for name, text, (least, most) in (
        ("reasoning", answer.reasoning, settings.reasoning_characters),
        ("code", answer.code, settings.code_characters),
    ):
        if not least <= len(text) <= most:
            return "length", f"{name} of {len(text)} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the code's strings
            if not answer_format.defines(answer.code, task["entry_point"]):
                return "entry_point", ""
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return "syntax", teacher.one_line(error)
    return "", ""


async def try_out(
    candidate: Candidate, settings: "Distill", responses: teacher.Responses, asked: teacher.Teacher, sandbox: "Sandbox"
) -> None:
    """Gets the candidate's response, from the cache or the teacher, and checks it by itself."""
    response = responses.get(candidate.request)
    if response is None:
        if responses.recorded:
            raise JobError(
                f"{responses.recorded}: has no response for {candidate.task['task_id']}, attempt "
                f"{candidate.attempt}, as params have it asked; record it anew"
            )
        response = await asked.ask(candidate.request)
        responses.put(candidate.request, response)
    candidate.reply = teacher.read(candidate.request, response)
    reason, detail = examine(candidate, settings)
    if not reason:
        assert candidate.answer is not None
        verdict = await asyncio.wrap_future(sandbox.submit(candidate.task, candidate.answer.code))
        if verdict.status == "infrastructure_error":
            raise JobError(f"the sandbox failed on {candidate.task['task_id']}: {verdict.error}")
        if not verdict.passed:
            reason, detail = verdict.status, ADDRESS.sub("0x...", verdict.error)
    candidate.reason, candidate.detail = reason, detail


async def collect(
    tasks: list[dict],
    settings: "Distill",
    benchmarks: Benchmarks,
    responses: teacher.Responses,
    asked: teacher.Teacher,
    sandbox: "Sandbox",
) -> Collection:
    """Works through the sequence until there are enough examples.

    Errors: JobError with the counts when the budget, the attempts or the patience end first.
    """
    collection = Collection(settings.similarity, benchmarks)
    upcoming = sequence(tasks, settings)
    waiting: Candidate | None = None
    done: set[str] = set()  # tasks with an example, which are passed over from then on
    undecided: deque[Candidate] = deque()
    running: dict[asyncio.Task, Candidate] = {}
    spent = 0

    def affordable(candidate: Candidate) -> bool:
        reserved = sum(other.cost for other in running.values())
        return (
            len(collection.decided) + len(undecided) + asked.failed < settings.max_requests
            and spent + reserved + candidate.cost <= settings.max_total_tokens
        )

    with progress(total=settings.examples, label="distill") as bar:
        try:
            while True:
                working = set(map(id, running.values()))
                while undecided and id(undecided[0]) not in working:
                    candidate = undecided.popleft()
                    collection.decide(candidate)
                    if not candidate.reason:
                        done.add(candidate.task["task_id"])
                        bar.update()
                    if collection.in_a_row >= settings.patience:
                        raise JobError(f"{collection.in_a_row} rejections in a row; {collection.summary()}")
                bar.set_postfix_str(
                    f"{len(collection.decided)} answers, ${collection.dollars(settings):.2f}", refresh=False
                )
                if len(collection.accepted) == settings.examples:
                    return collection

                # No request beyond what is needed if all that is under way turns out right: so never one too many.
                hoped_for = len(collection.accepted) + sum(not candidate.reason for candidate in undecided)
                open_tasks = {candidate.task["task_id"] for candidate in undecided}
                while len(running) < settings.concurrency and hoped_for < settings.examples:
                    waiting = waiting or next(upcoming, None)
                    if waiting is not None and waiting.task["task_id"] in done:
                        waiting = None
                        continue
                    if waiting is None or waiting.task["task_id"] in open_tasks or not affordable(waiting):
                        break
                    undecided.append(waiting)
                    open_tasks.add(waiting.task["task_id"])
                    running[asyncio.create_task(try_out(waiting, settings, responses, asked, sandbox))] = waiting
                    waiting, hoped_for = None, hoped_for + 1
                if not running:
                    end = "the budget ended" if waiting else f"every task was asked {settings.attempts} times"
                    raise JobError(
                        f"{end} before there were {settings.examples} examples; {collection.summary()}; "
                        "the responses are kept for the next try"
                    )
                finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()
                    spent += running.pop(task).cost
        except JobError:
            asked.closing = True  # what is under way is paid for: let it arrive, and be kept
            await asyncio.gather(*running, return_exceptions=True)
            raise
        finally:
            await asked.close()


def run(
    params: "Params", tasks_path: Path, benchmarks_path: Path, responses_path: Path, out: Path, metrics_path: Path
) -> dict:
    from jobs.plumbing.checkpoint import provenance
    from jobs.sandbox import Sandbox

    settings = params.distill
    tasks = read_tasks(tasks_path)
    if len(tasks) < settings.examples:
        raise UsageError(
            f"distill.examples: {settings.examples} wanted, but {tasks_path} has {len(tasks)} tasks, and "
            "each gives at most one example"
        )
    random.Random(f"distill {params.tasks.seed}").shuffle(tasks)
    benchmarks = Benchmarks.read(benchmarks_path, params.tasks.ngrams)
    responses = teacher.Responses(responses_path, Path(settings.recorded) if settings.recorded else None)
    asked = teacher.Teacher(settings)
    with Sandbox.from_params(params.sandbox) as sandbox:
        collection = asyncio.run(collect(tasks, settings, benchmarks, responses, asked, sandbox))
    log.info("%s", collection.summary())

    metrics = rounded(metrics_of(collection, settings), str(metrics_path))
    examples = [example(candidate) for candidate in collection.accepted]
    with replace_dir(out) as folder:
        write_jsonl(folder / "examples.jsonl", examples)
        write_jsonl(folder / "rejects.jsonl", (reject(c) for c in collection.decided if c.reason))
        (folder / "README.md").write_text(datacard.card(examples, metrics, REASONS, settings), encoding="utf-8")
    write_metrics(metrics_path, metrics)
    provenance("distill", answered=asked.answered, failed=asked.failed)
    return metrics


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
        "request": teacher.request_key(candidate.request),
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
        "request": teacher.request_key(candidate.request),
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
    "tasks.ngrams",
    "tasks.seed",
    "sandbox.memory_mib",
    "sandbox.require",
    "sandbox.timeout",
    "sandbox.workers",
)
@reads("--tasks", "data/tasks/distill.jsonl", "Tasks to ask about.")
@reads("--benchmarks", "data/tasks/benchmarks.jsonl", "Prompts and solutions that no answer may repeat.")
@writes("--responses", "data/responses", "The response cache; read, and added to.", CACHE)
@writes("--out", "data/distill", "Folder of examples.jsonl, rejects.jsonl and README.md.", FOLDER)
@writes("--metrics", "metrics/distill.json", "Metrics.", METRICS)
def command(params: "Params", tasks: Path, benchmarks: Path, responses: Path, out: Path, metrics: Path) -> None:
    click.echo(json.dumps(run(params, tasks, benchmarks, responses, out, metrics)))
