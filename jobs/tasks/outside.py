"""Tasks of published data sets, tasks.sources: a file pinned by revision and hash, a format, and limits.

What is left out hangs on the data and the params alone: rows of which no task can be made, statements that are too long,
tasks that want packages which the sandbox does not have, and training tasks none of whose solutions passes its tests in the
sandbox. So does a benchmark's task where its format says so (SKIPS): some of BigCodeBench's want files and a network.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jobs.common.errors import JobError, UsageError
from jobs.common.files import numbered_jsonl, sha256
from jobs.common.task import fault
from jobs.plumbing.cli import log
from jobs.tasks import formats, run_references
from jobs.tasks.sources import TRAINING

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Sandbox as Limits
    from jobs.plumbing.params import Tasks as Settings
    from jobs.plumbing.params import TaskSource

SOLUTIONS = 5  # of a row that are tried as its reference
TESTS = ("stdin_tests", "calls", "tests")


def collect(settings: "Settings", folder: Path, limits: "Limits") -> "tuple[dict[str, list[Task]], list[dict]]":
    """The tasks of all sources by split, and a row for each that is left out: task_id, split, reason, detail.

    folder: where files that stand in for the downloads are looked for. limits: the params of the sandbox.
    Errors: JobError when a file cannot be fetched, or is another than the pinned one.
    """
    splits: dict[str, list[Task]] = {}
    left_out: list[dict] = []
    for number, source in enumerate(settings.sources, 1):
        training = source.split in TRAINING
        tasks, gone = chosen(source, f"{source.name}/", rows_of(source, folder), settings.seed, limits.packages)
        if training or formats.skips(source.format):
            tasks, failed = verified(tasks, limits, scored=not training)
            gone += failed
        left_out += [
            {"task_id": name, "split": source.split, "reason": why, "detail": said} for name, why, said in gone
        ]
        log.info("tasks.sources %d (%s): %d tasks, %d left out", number, source.name, len(tasks), len(gone))
        splits.setdefault(source.split, []).extend(cast("list[Task]", [task for task, _ in tasks]))
    names = [task["task_id"] for tasks in splits.values() for task in tasks]
    if len(set(names)) < len(names):
        raise UsageError("tasks.sources: two have the same name and tasks of the same ids; give each a name of its own")
    return splits, left_out


Rows = list[tuple[dict, list[str]]]  # a task and what may be its reference
Gone = list[tuple[str, str, str]]  # id, reason, detail


def chosen(
    source: "TaskSource", prefix: str, rows: Iterator[dict], seed: int, packages: Sequence[str] = ()
) -> tuple[Rows, Gone]:
    """The tasks of a source's rows that are within its limits, in their order. packages: what the sandbox has."""
    module = formats.module(source.format)
    found: Rows = []
    gone: Gone = []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        name = f"{prefix}{number}"
        try:
            task, solutions = module.convert(row)
        except ValueError as error:
            gone.append((name, "unusable", str(error)))
            continue
        name = task["task_id"] = prefix + str(task.pop("name", number))
        if lacking := sorted({*task.pop("libraries", ())} - {*packages} - sys.stdlib_module_names):
            gone.append((name, "packages", f"needs {', '.join(lacking)}"))
            continue
        if (source.since and task.get("date", "") < source.since) or (
            source.until and task.get("date", "9") > source.until
        ):
            continue  # outside of the window that was asked for: no loss
        if source.difficulty and task.get("difficulty") not in source.difficulty:
            continue
        task |= {"setup": task.get("setup", ""), "tests": task.get("tests", [])}
        task |= {"source": source.name, "license": module.LICENSE}
        if source.statement and len(task["prompt"]) > source.statement:
            gone.append((name, "too_long", f"its prompt has {len(task['prompt'])} characters"))
            continue
        if wrong := fault(task):
            gone.append((name, "unusable", wrong))
            continue
        words = " ".join(task["prompt"].split())
        if words in seen and source.split in TRAINING:  # SYNTHETIC-1 has a row for every answer to a problem
            gone.append((name, "repeated", "an earlier row of its source has the same prompt"))
            continue
        seen.add(words)
        keep_largest(task, source.tests)
        found.append((task, solutions))
    if source.most and len(found) > source.most:
        drawn = set(random.Random(f"{source.name} {seed}").sample(range(len(found)), source.most))
        found = [pair for i, pair in enumerate(found) if i in drawn]
    return found, gone


def keep_largest(task: dict, most: int) -> None:
    """Keeps the tests with the largest inputs, in their order; of equal ones the earlier."""
    for name in TESTS:
        tests = task.get(name) or []
        if most and len(tests) > most:
            order = sorted(range(len(tests)), key=lambda i: (-size(tests[i]), i))[:most]
            task[name] = [tests[i] for i in sorted(order)]


def size(test: Any) -> int:
    if isinstance(test, str):
        return len(test)
    return len(test["input"]) if "input" in test else len(repr(test["arguments"]))


def verified(tasks: Rows, limits: "Limits", scored: bool = False) -> tuple[Rows, Gone]:
    """The tasks with the first of their solutions that passes all tests, in the sandbox, as reference.

    scored: they are a benchmark's, and judged as its samples are.
    """
    waiting = [(task, solutions[:SOLUTIONS]) for task, solutions in tasks]
    passed: dict[str, str] = {}
    said = {task["task_id"]: "has no solution" for task, _ in tasks}
    for turn in range(SOLUTIONS):
        tried = [
            cast("Task", task | {"reference": solutions[turn]})
            for task, solutions in waiting
            if turn < len(solutions) and task["task_id"] not in passed
        ]
        for task, verdict in zip(tried, run_references.judged(tried, limits, scored), strict=True):
            if verdict.passed:
                passed[task["task_id"]] = task["reference"]
            else:
                said[task["task_id"]] = f"{verdict.status}, {verdict.error}"
    kept: Rows = [(task | {"reference": passed[task["task_id"]]}, []) for task, _ in tasks if task["task_id"] in passed]
    return kept, [(name, "unverified", why) for name, why in said.items() if name not in passed]


def rows_of(source: "TaskSource", folder: Path) -> Iterator[dict]:
    """The rows of a source's file. Errors: JobError if it cannot be had, or is another than the pinned one."""
    path = found(source, folder)
    digest = sha256(path)
    if digest != source.sha256:
        raise JobError(f"{path}: has the sha256 {digest}, not the one of {source.name} in tasks.sources")
    if path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            for batch in parquet.ParquetFile(path).iter_batches(256):
                yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise JobError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:200]})") from None
        return
    for _, row in numbered_jsonl(path):
        yield row


def found(source: "TaskSource", folder: Path) -> Path:
    """The file itself, one in `folder` that stands in for the download, or the download."""
    for path in (folder / source.name / source.file, folder / Path(source.file).name, Path(source.file)):
        if path.is_file():
            return path
    if source.repo is None:
        raise JobError(f"{source.file}: of {source.name} in tasks.sources, does not exist")
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source.repo, source.file, repo_type="dataset", revision=source.revision))
    except (httpx.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:  # a broken connection is httpx's
        reason = " ".join(str(error).split())[:300]
        raise JobError(
            f"{source.repo}: {source.file} cannot be fetched ({reason}); a copy in {folder} would be used"
        ) from None
