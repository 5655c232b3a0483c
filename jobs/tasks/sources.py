"""Where tasks come from: one small function a source, each from a pinned file to task records or raw rows.

A source's file is checked by its hash in params before anything of it is used. Records have the format that
jobs/tasks/job.py describes, whatever the source.
"""

import ast
import contextlib
import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.common.errors import JobError
from jobs.common.files import read_jsonl, sha256
from jobs.common.records import read_tasks

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


def pools(settings: "Settings", folder: Path) -> dict[str, list[dict]]:
    """Task records by source, each source's tasks in its own order. MBPP's are those that MBPP+ does not have.

    folder: where files that stand in for the downloads are looked for.
    Errors: JobError when a source cannot be fetched or is another than the pinned one.
    """
    plus = evalplus_rows("MbppPlus", settings.mbpp_plus, folder)
    known = {row["task_id"] for row in plus}
    mbpp = [mbpp_task(row) for row in mbpp_rows(settings.mbpp, folder)]
    humaneval = evalplus_rows("HumanEvalPlus", settings.humaneval_plus, folder)
    own = {f"file {number} ({file.split})": own_tasks(file) for number, file in enumerate(settings.files, 1)}
    return own | {
        HUMANEVAL_PLUS: [humaneval_task(row, settings.humaneval_plus.version) for row in humaneval],
        MBPP_PLUS: [mbpp_plus_task(row, settings.mbpp_plus.version) for row in plus],
        MBPP: [task for task in mbpp if task["task_id"] not in known],
    }


def roles(settings: "Settings", pools: dict[str, list[dict]]) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """The sources that tasks are trained on and asked from, and those that benchmarks are drawn from; MBPP+ is both."""
    own = list(zip(settings.files, list(pools)[: len(settings.files)], strict=True))
    training = [name for file, name in own if file.split in TRAINING] + [MBPP_PLUS, MBPP]
    benchmarks = [name for file, name in own if file.split not in TRAINING] + [HUMANEVAL_PLUS, MBPP_PLUS]
    return {name: pools[name] for name in training}, {name: pools[name] for name in benchmarks}


def own_tasks(file: "OwnTasks") -> list[dict]:
    """The records of a file of one's own, with the fields that may be missing filled in.

    Errors: JobError naming the file, and the line where there is one, if it is another than the pinned one, or a record
    is none or has no reference.
    """
    path = Path(file.path)
    rows = read_tasks(path)
    digest = sha256(path)
    if digest != file.sha256:
        raise JobError(f"{path}: has the sha256 {digest}, not the one in tasks.files; if you changed it, change that")
    for row in rows:
        if not row.get("reference"):
            raise JobError(f"{path}: {row['task_id']} has no reference, a whole program that passes its tests")
    return [{"setup": "", "tests": [], "source": path.name, "license": "unknown"} | row for row in rows]


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
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        where = f"{settings.repo} at {settings.revision}"
        try:
            splits = load_dataset(settings.repo, "full", revision=settings.revision)
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
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


def humaneval_task(row: dict, version: str) -> dict:
    return {
        "task_id": row["task_id"],
        "prompt": row["prompt"],
        "entry_point": row["entry_point"],
        "setup": "",
        "tests": [],
        "check": row["test"],
        **inputs(row),
        "reference": row["prompt"] + row["canonical_solution"],
        "source": f"HumanEval+ {version}",
        "license": "MIT, Apache-2.0",
    }


def mbpp_plus_task(row: dict, version: str) -> dict:
    """Its tests are evalplus's corrected assertions: MBPP's own at times name another function or expect otherwise."""
    lines: dict[bool, list[str]] = {False: [], True: []}
    for node in ast.parse(row["assertion"]).body:
        lines[isinstance(node, ast.Assert)].append(ast.get_source_segment(row["assertion"], node) or "")
    return {
        "task_id": row["task_id"],
        "prompt": row["prompt"],
        "entry_point": row["entry_point"],
        "setup": "\n".join(lines[False]),
        "tests": lines[True],
        **inputs(row),
        "reference": row["prompt"] + row["canonical_solution"],
        "source": f"MBPP+ {version}",
        "license": "CC-BY-4.0, Apache-2.0",
    }


def inputs(row: dict) -> dict:
    return {name: row[name] for name in ("base_input", "plus_input", "atol", "contract")}


def mbpp_task(row: dict) -> dict:
    """The record of an MBPP row; its entry point is "" where the tests do not agree on one."""
    code = row["code"].replace("\r\n", "\n").rstrip() + "\n"
    tests = [test.replace("\r\n", "\n").strip() for test in row["test_list"]]
    return {
        "task_id": f"Mbpp/{row['task_id']}",
        "prompt": f'"""\n{row["text"].strip()}\n{tests[0]}\n"""\n',
        "entry_point": entry_point(code, tests),
        "setup": row["test_setup_code"].replace("\r\n", "\n"),
        "tests": tests,
        "reference": code,
        "source": "MBPP",
        "license": "CC-BY-4.0",
    }


def entry_point(code: str, tests: list[str]) -> str:
    """The outermost function of `code` that all `tests` call, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in regular expressions
            names = {node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            called = [
                [
                    node.func.id
                    for node in ast.walk(ast.parse(test))
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
                ]
                for test in tests
            ]
    except SyntaxError:
        return ""
    common = [name for name in called[0] if all(name in others for others in called)] if called else []
    return common[0] if common else ""
