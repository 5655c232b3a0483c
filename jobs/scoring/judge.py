"""From samples to results: each sample's program, the sandbox's verdict on it, and the outcome in one word."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.extraction.worker import Extractor
from jobs.plumbing.cli import log, progress

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.sandbox import Sandbox, Verdict

FLAWS = ("no_tags", "truncated", "syntax_error", "wrong_entry_point", "timeout", "crashed", "unsupported", "failed")


def judged(submissions: "Sequence[tuple[Task, str]]", sandbox: "Sandbox", label: str) -> "list[Verdict]":
    """The verdict on every (task, whole program), in order. Equal programs of a task are run once."""
    keys = [(task["task_id"], program) for task, program in submissions]
    tasks = {task["task_id"]: task for task, _ in submissions}
    futures = {
        key: sandbox.submit(tasks[key[0]], key[1]) for key in progress(dict.fromkeys(keys), label=f"{label}: submitted")
    }
    verdicts = {key: futures[key].result() for key in progress(futures, label=f"{label}: scored")}
    return [verdicts[key] for key in keys]


def score(tasks: "list[Task]", samples: list[dict], mode: str, sandbox: "Sandbox") -> list[dict]:
    """A result for each sample, in order: its program, the sandbox's verdict, and the outcome in one word.

    mode: in which they were drawn; all but "plain" look for a program in solution tags alone.
    outcome: "passed", or the first that holds of FLAWS.
    Errors: JobError naming the sample whose task is unknown, or on which the sandbox itself failed; naming a task that
    cannot be judged exactly.
    """
    by_id = {task["task_id"]: task for task in tasks}
    unknown = [row["task_id"] for row in samples if row["task_id"] not in by_id]
    if unknown:
        raise JobError(f"a sample of {unknown[0]}, which is not among the tasks")
    with Extractor() as extractor:
        pairs = [(row, by_id[row["task_id"]]) for row in samples]
        extracted = extractor.extract_all(
            (
                row["text"],
                task["prompt"],
                task["entry_point"],
                "plain" if mode == "plain" else "cot",
                row["finish"] == "length",
            )
            for row, task in pairs
        )
    runnable = [i for i, extraction in enumerate(extracted) if extraction.solution]
    submissions = [(by_id[samples[i]["task_id"]], extracted[i].solution) for i in runnable]
    verdicts = dict(zip(runnable, judged(submissions, sandbox, "evaluate"), strict=True))
    return [result(row, extracted[i], verdicts.get(i)) for i, row in enumerate(samples)]


def result(row: dict, extraction, verdict: "Verdict | None") -> dict:
    if verdict is not None and verdict.status == "infrastructure_error":
        raise JobError(f"the sandbox failed on sample {row['sample']} of {row['task_id']}: {verdict.error}")
    if verdict is not None and verdict.status == "unsupported":
        if not verdict.tests_total:
            raise JobError(
                f"{row['task_id']} cannot be judged exactly, so it is no task of a benchmark: {verdict.error}"
            )
        where = f"sample {row['sample']} of {row['task_id']}"
        log.warning("%s cannot be judged exactly, and counts as failed: %s", where, verdict.error)
    passed = verdict is not None and verdict.passed
    fields = {"tests_passed": 0, "tests_total": 0, "base_passed": None, "plus_passed": None, "error": ""}
    if verdict is not None:
        fields = {name: getattr(verdict, name) for name in fields}
    return {
        "task_id": row["task_id"],
        "sample": row["sample"],
        "solution": extraction.solution,
        "rule": extraction.rule,
        "outcome": outcome(passed, row, extraction.flaw, verdict.status if verdict else None),
        "format": answer_format.parse(row["text"]) is not None,
        "passed": passed,
        **fields,
    }


def outcome(passed: bool, row: dict, flaw: str | None, status: str | None) -> str:
    if passed:
        return "passed"
    if flaw == "no_tags":
        return flaw
    if row["finish"] == "length":
        return "truncated"
    if flaw == "too_hard":  # the sandbox's word on it; it has no other fault that is known
        return {"invalid": "failed"}.get(str(status), str(status))
    return flaw or {"invalid": "wrong_entry_point"}.get(str(status), str(status))
