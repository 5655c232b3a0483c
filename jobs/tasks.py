"""Collect the tasks and benchmarks, check each by its own reference solution, drop what overlaps, and split.

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

import ast
import contextlib
import hashlib
import json
import math
import random
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, replace_dir, sha256, write_jsonl, write_metrics
from jobs.plumbing.cli import job, log, writes

if TYPE_CHECKING:
    from jobs.plumbing.params import Params
    from jobs.plumbing.params import Tasks as Settings
    from jobs.sandbox import Sandbox

MBPP_FIELDS = "text", "code", "task_id", "test_setup_code", "test_list", "challenge_test_list"
BENCHMARKS = "humaneval", "mbpp", "toy"
REASONS = "setup", "entry_point", "reference", "slow", "contaminated"
ROOM = 0.4  # of the time limit: a training task whose reference takes more leaves too little for other right answers


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


def collect(settings: "Settings", sources: Path) -> dict[str, list[dict]]:
    """Task records by split, before any check."""
    plus = evalplus_rows("MbppPlus", settings.mbpp_plus, sources)
    mbpp = {task["task_id"]: task for task in map(mbpp_task, mbpp_rows(settings.mbpp, sources))}
    known = {row["task_id"] for row in plus}
    if not known <= mbpp.keys() or settings.heldout >= len(plus):
        raise UsageError(f"tasks.heldout: {settings.heldout} of {len(plus)} MBPP+ tasks cannot be set aside")
    chosen = set(random.Random(f"heldout {settings.seed}").sample(sorted(known), settings.heldout))
    plus_tasks = [mbpp_plus_task(row, settings.mbpp_plus.version) for row in plus]
    humaneval = evalplus_rows("HumanEvalPlus", settings.humaneval_plus, sources)
    return {
        "distill": [task for task_id, task in mbpp.items() if task_id not in known],
        "train": [task for task in plus_tasks if task["task_id"] not in chosen],
        "mbpp": [task for task in plus_tasks if task["task_id"] in chosen],
        "humaneval": [humaneval_task(row, settings.humaneval_plus.version) for row in humaneval],
    }


def toy_tasks(settings: "Settings") -> dict[str, list[dict]]:
    from jobs.toy import world

    assert settings.toy is not None
    splits = world.tasks(settings.seed, settings.toy.model_dump())
    return {"distill": splits["distill"], "train": splits["train"], "toy": splits["heldout"]}


def check(split: str, tasks: list[dict], sandbox: "Sandbox") -> tuple[list[dict], list[dict]]:
    """The tasks that their own reference passes, and the ones left out, with the reason.

    Training tasks whose reference takes over ROOM of the sandbox's timeout are left out as well.
    """
    timeout = sandbox.config["timeout"]
    limit = math.inf if split in BENCHMARKS else ROOM * timeout
    left_out, whole, kept = [], [], []
    for task in tasks:
        if task["setup"] and split == "distill":  # it builds on classes that the prompt does not show
            left_out.append(without(task, split, "setup", "its tests need more than the prompt tells"))
        elif not task["entry_point"]:
            left_out.append(without(task, split, "entry_point", "its tests do not call one function of its own"))
        else:
            whole.append(task)
    for task, verdict in zip(whole, sandbox.run([(task, task["reference"]) for task in whole]), strict=True):
        # A reference that fails on evalplus's inputs leaves no expected values: the sandbox blames the task by its id.
        if verdict.status == "infrastructure_error" and not verdict.error.startswith(task["task_id"]):
            raise JobError(f"the sandbox failed on {task['task_id']}: {verdict.error}")
        slow = verdict.passed and verdict.seconds > limit
        if slow:  # once more, with the machine to itself
            slow = sandbox.run([(task, task["reference"])])[0].seconds > limit
        if slow:
            left_out.append(without(task, split, "slow", f"its reference takes over {ROOM:.0%} of {timeout:g} s"))
        elif verdict.passed:
            kept.append(task)
        else:
            left_out.append(without(task, split, "reference", verdict.status))
            log.warning(
                "%s (%s) is left out: its reference solution does not pass (%s)",
                task["task_id"],
                split,
                verdict.error or verdict.status,
            )
    return kept, left_out


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


def without(task: dict, split: str, reason: str, detail: str) -> dict:
    return {"task_id": task["task_id"], "split": split, "reason": reason, "detail": detail}


def run(params: "Params", sources: Path, out: Path, metrics_path: Path) -> dict:
    from jobs.plumbing.checkpoint import provenance
    from jobs.sandbox import Sandbox

    settings = params.tasks
    splits = toy_tasks(settings) if settings.toy else collect(settings, sources)
    overlap: list[dict] = []
    if not settings.toy:  # toy tasks are of one phrasing; their splits are disjoint by construction
        splits, overlap = decontaminate(splits, settings.ngrams)
    shared = {row["task_id"]: row for row in overlap}  # of several overlaps, one with the longest run
    left_out = [
        without(row, row["split"], "contaminated", f"{row['n']} words of {row['benchmark']}") for row in shared.values()
    ]
    for names in ([name for name in splits if name in BENCHMARKS], [name for name in splits if name not in BENCHMARKS]):
        # Each split under the limits it is used with: evalplus's for benchmarks, the training ones for the others.
        with Sandbox.from_params(params.sandbox, benchmark=names[0] in BENCHMARKS) as sandbox:
            for name in names:
                splits[name], without_name = check(name, splits[name], sandbox)
                left_out += without_name
    with replace_dir(out) as folder:
        for split, tasks in splits.items():
            if tasks:
                write_jsonl(folder / f"{split}.jsonl", tasks)
        write_jsonl(folder / "left_out.jsonl", left_out)
        write_jsonl(folder / "contamination.jsonl", overlap)
        write_jsonl(
            folder / "benchmarks.jsonl",
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
        "tasks": {split: len(tasks) for split, tasks in splits.items()},
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
    type=click.Path(path_type=Path),
    default="data/sources",
    show_default=True,
    help="Folder of files that stand in for the downloads.",
)
@writes("--out", "data/tasks", "Folder of the splits.")
@writes("--metrics", "metrics/tasks.json", "Metrics.")
def command(params: "Params", sources: Path, out: Path, metrics: Path) -> None:
    click.echo(json.dumps(run(params, sources, out, metrics)))
