"""Check a file of your own tasks, and print the line of params that takes it into the pipeline.

\b
    python -m jobs check-tasks my_tasks.jsonl --tokenizer models/base

\b
Reads   FILE         tasks, a JSON object a line; docs/tasks.md says what one holds
        --tokenizer  a model folder: each prompt, with its instructions, is to have at most grpo.max_prompt_length tokens
Prints  the number of tasks, and the entry for tasks.files

Every fault is listed, a line each with the task's id, and the exit code is 1 if there is any: ids that are not unique,
fields that are missing, tests that assert nothing, a reference that does not pass, and tests that pass for functions
that do nothing: what returns None passes them, and so does what returns something that no test can expect.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.errors import JobError
from jobs.common.files import sha256
from jobs.common.programs import is_program
from jobs.common.prompts import too_long
from jobs.common.task import Task, examined, named
from jobs.plumbing.cli import job, reads
from jobs.tasks import run_references

if TYPE_CHECKING:
    from jobs.plumbing.params import Params
    from jobs.sandbox import Sandbox

STUBS = ("return None", "return ('a value', 'that no test expects', 3.25)")


def stub(task: Task, body: str) -> str:
    """The answer that does nothing: a function, a method, or a program that writes what the body would return."""
    if is_program(task):
        return body.replace("return None", "pass").replace("return ", "print") + "\n"
    if task.get("method"):
        return f"class {task['entry_point']}:\n    def {task['method']}(*arguments, **named):\n        {body}\n"
    return f"def {task['entry_point']}(*arguments, **named):\n    {body}\n"


def written(path: Path) -> tuple[list[Task], list[str]]:
    """The tasks that can be judged by, and the faults of the others by line."""
    tasks = []
    faults = []
    for number, task, wrong in examined(path):
        if not wrong and not task.get("reference"):
            wrong = "has no reference, a whole program that passes its tests"
        if wrong:
            faults.append(f"line {number}{named(task)}: {wrong}")
        else:
            tasks.append(task)
    return tasks, faults


def parts(task: Task) -> list[tuple[str, Task]]:
    """What is to tell a right answer from a stub: each test by itself, or all inputs or asserts of a check together."""
    if task.get("base_input") or task.get("plus_input"):
        return [("its inputs", task)]
    if task.get("check"):
        return [("its check", task)]
    if task.get("stdin_tests"):
        return [(f"its test {i}", task | {"stdin_tests": [test]}) for i, test in enumerate(task["stdin_tests"], 1)]
    if task.get("calls"):
        return [(f"its test {i}", task | {"calls": [call]}) for i, call in enumerate(task["calls"], 1)]
    return [(f"its test {i}", task | {"tests": [test]}) for i, test in enumerate(task["tests"], 1)]


def idle(tasks: list[Task], sandbox: "Sandbox") -> list[str]:
    """The tests that functions which do nothing pass: none of these could earn less than a right answer."""
    stubbed = [(task, what, part) for task in tasks for what, part in parts(task)]
    passed = [
        [v.passed for v in sandbox.run([(part, stub(task, body)) for task, _, part in stubbed])] for body in STUBS
    ]
    return [
        f"{task['task_id']}: {what} passes for a function that does nothing"
        for (task, what, _), *results in zip(stubbed, *passed, strict=True)
        if all(results)
    ]


def faults_of(path: Path, params: "Params", tokenizer: Path | None) -> tuple[int, list[str]]:
    """How many tasks the file has that can be judged by, and every fault."""
    from jobs.sandbox import Sandbox

    rows, faults = written(path)
    faults += [
        f"{name}: its reference does not pass: {said}" for name, said in run_references.failures(rows, params.sandbox)
    ]
    with Sandbox.from_params(params.sandbox) as sandbox:
        faults += idle(rows, sandbox)
    if tokenizer is not None:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except Exception as error:
            raise JobError(
                f"{tokenizer}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:200]})"
            ) from None
        limit = params.grpo.max_prompt_length
        faults += [
            f"{name}: its prompt has {tokens} tokens, and grpo.max_prompt_length is {limit}"
            for name, tokens in too_long(loaded, rows, limit)
        ]
    return len(rows), faults


@job("grpo", "sandbox")
@click.argument("file", type=click.Path(path_type=Path))
@reads("--tokenizer", None, "Model folder, for the prompts' lengths.")
def command(params: "Params", file: Path, tokenizer: Path | None) -> None:
    count, faults = faults_of(file, params, tokenizer)
    for line in faults:
        click.echo(f"{file}: {line}", err=True)
    if faults or not count:
        raise JobError(f"{file}: {len(faults)} faults" if faults else f"{file}: has no tasks")
    entry = f"{{path: {file}, sha256: {sha256(file)}, split: train}}"
    click.echo(json.dumps({"tasks": count, "for tasks.files": entry}, indent=2))
