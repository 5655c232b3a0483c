"""Where tasks come from: one small function a source, each from a pinned file to tasks (jobs/common/task.py).

A source's file is checked by its hash in params before anything of it is used.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from jobs.common import official
from jobs.common.errors import JobError
from jobs.common.files import read_jsonl, sha256
from jobs.common.task import Task, read_tasks

if TYPE_CHECKING:
    from jobs.plumbing.params import OwnTasks
    from jobs.plumbing.params import Tasks as Settings

HUMANEVAL_PLUS, MBPP_PLUS, MBPP = "HumanEval+", "MBPP+", "MBPP"  # names of sources
TRAINING = "train", "distill"  # splits that are no benchmark
MBPP_FIELDS = "text", "code", "task_id", "test_setup_code", "test_list", "challenge_test_list"
folder_option = click.option(
    "--sources",
    "folder",
    type=click.Path(path_type=Path),
    default="data/sources",
    show_default=True,
    help="Folder of files that stand in for the downloads.",
)


def pools(settings: "Settings", folder: Path) -> dict[str, list[Task]]:
    """Tasks by source, each source's tasks in its own order. MBPP's are those that MBPP+ does not have.

    folder: where files that stand in for the downloads are looked for.
    Errors: JobError when a source cannot be fetched or is another than the pinned one.
    """
    plus = evalplus_rows("MbppPlus", settings.mbpp_plus, folder)
    known = {row["task_id"] for row in plus}
    mbpp = tasks_of(mbpp_rows(settings.mbpp, folder))
    humaneval = evalplus_rows("HumanEvalPlus", settings.humaneval_plus, folder)
    own = {f"file {number} ({file.split})": own_tasks(file) for number, file in enumerate(settings.files, 1)}
    return own | {
        HUMANEVAL_PLUS: tasks_of(humaneval, settings.humaneval_plus.version),
        MBPP_PLUS: tasks_of(plus, settings.mbpp_plus.version),
        MBPP: [task for task in mbpp if task["task_id"] not in known],
    }


def roles(settings: "Settings", pools: dict[str, list[Task]]) -> tuple[dict[str, list[Task]], dict[str, list[Task]]]:
    """The sources that tasks are trained on and asked from, and those that benchmarks are drawn from; MBPP+ is both."""
    own = list(zip(settings.files, list(pools)[: len(settings.files)], strict=True))
    training = [name for file, name in own if file.split in TRAINING] + [MBPP_PLUS, MBPP]
    benchmarks = [name for file, name in own if file.split not in TRAINING] + [HUMANEVAL_PLUS, MBPP_PLUS]
    return {name: pools[name] for name in training}, {name: pools[name] for name in benchmarks}


def tasks_of(rows: list[dict], version: str = "") -> list[Task]:
    """The tasks of the rows of a pinned file, each of which may still be dropped (jobs/tasks/job.py)."""
    return [cast("Task", official.task_of(row, version)) for row in rows]


def own_tasks(file: "OwnTasks") -> list[Task]:
    """The tasks of a file of one's own, with the fields that may be missing filled in.

    Errors: JobError naming the file, and the line where there is one, if it is another than the pinned one, or a task
    cannot be judged by or has no reference.
    """
    path = Path(file.path)
    rows = read_tasks(path)
    digest = sha256(path)
    if digest != file.sha256:
        raise JobError(f"{path}: has the sha256 {digest}, not the one in tasks.files; if you changed it, change that")
    for row in rows:
        if not row.get("reference"):
            raise JobError(f"{path}: {row['task_id']} has no reference, a whole program that passes its tests")
    missing: Task = {"setup": "", "tests": [], "source": path.name, "license": "unknown"}  # type: ignore[typeddict-item]
    return [missing | row for row in rows]


def local(sources: Path, name: str) -> Path | None:
    """The file that stands in for a download, if it is there."""
    return next((path for path in (sources / name, sources / f"{name}.gz") if path.is_file()), None)


def evalplus_rows(name: str, settings: Any, sources: Path) -> list[dict]:
    """The rows of HumanEvalPlus or MbppPlus, as raw JSON: evalplus's own loaders turn them into Python objects.

    Errors: JobError when the file cannot be fetched, or is another than the pinned one.
    """
    path = local(sources, f"{name}.jsonl")
    if path is None:
        from evalplus.data import humaneval, mbpp, utils

        override = {"HumanEvalPlus": humaneval.HUMANEVAL_OVERRIDE_PATH, "MbppPlus": mbpp.MBPP_OVERRIDE_PATH}[name]
        url, cached = utils.get_dataset_metadata(name, settings.version, mini=False)
        if not override:
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    utils.make_cache(url, cached)
            except OSError as error:
                raise JobError(f"{url}: cannot be fetched ({error}); a copy in {sources} would be used") from None
        path = Path(override or cached)
    rows = read_jsonl(path)
    digest = sha256_unpacked(path)
    if digest != settings.sha256:
        raise JobError(f"{path}: has the sha256 {digest}, not that of {name} {settings.version} in params; remove it")
    return rows


def sha256_unpacked(path: Path) -> str:
    import gzip

    if path.suffix != ".gz":
        return sha256(path)
    with gzip.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def mbpp_rows(settings: Any, sources: Path) -> list[dict]:
    """The 974 rows of MBPP by task id. Errors: JobError when they cannot be fetched, or are not the pinned ones."""
    path = local(sources, "mbpp.jsonl")
    if path is not None:
        where, rows = str(path), read_jsonl(path)
    else:
        import httpx
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        where = f"{settings.repo} at {settings.revision}"
        try:
            splits = load_dataset(settings.repo, "full", revision=settings.revision)
        except (DatasetsError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise JobError(f"{where}: cannot be fetched ({reason}); a copy in {sources} would be used") from None
        rows = [dict(row) for split in splits.values() for row in split]
    try:
        rows = sorted(({name: row[name] for name in MBPP_FIELDS} for row in rows), key=lambda row: row["task_id"])
    except (KeyError, TypeError):
        raise JobError(f"{where}: its rows do not have MBPP's fields") from None
    digest = hashlib.sha256("".join(json.dumps(row) + "\n" for row in rows).encode()).hexdigest()
    if digest != settings.sha256:
        raise JobError(f"{where}: its rows have the sha256 {digest}, not the one in params")
    return rows
