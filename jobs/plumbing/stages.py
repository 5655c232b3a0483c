"""Stages that do not depend on each other, side by side.

`dvc repro` runs one stage at a time; several of them may run in one folder at once, each waiting for DVC's lock where
another holds it. So here every stage that is to run is a `dvc repro --single-item` of its own, begun when what it depends
on is done.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from jobs.common.errors import JobError


def reproduce(folder: Path, targets: Sequence[str], at_once: int, environment: Mapping[str, str]) -> None:
    """Runs what has changed of the pipeline in `folder`, or of what `targets` need, `at_once` stages at a time.

    After a stage has failed none is begun, and those that run go on to their end. Where this process is told to stop, they
    are told as well, and are waited for. Errors: JobError naming the stages that failed.
    """
    todo = plan(folder, targets)
    weight = {name: len(dependants(todo, name)) for name in todo}  # the longer way to the end goes first
    done: set[str] = set()
    failed: list[str] = []
    running: dict[Future[int], str] = {}
    with ThreadPoolExecutor(at_once) as pool, interrupting():
        while True:
            ready = sorted((n for n, needs in todo.items() if needs <= done), key=lambda n: -weight[n])
            for name in ready[: at_once - len(running)] if not failed else ():
                del todo[name]
                running[pool.submit(run, folder, name, environment)] = name
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if future.result():
                    failed.append(name)
                else:
                    done.add(name)
    if failed:
        raise JobError(f"{folder}: {' and '.join(failed)} failed, see above")


def plan(folder: Path, targets: Sequence[str]) -> dict[str, set[str]]:
    """The stages that have changed or depend on one that has, each with those of them that it depends on itself.

    targets: stages as `dvc repro` takes them; what they do not need is left out. None: all of the pipeline.
    """
    from dvc.repo import Repo

    with contextlib.chdir(folder), Repo() as repo:  # DVC takes targets as they are named in the working folder
        graph = repo.index.graph
        wanted = set() if targets else set(graph)
        rest = [stage for target in targets for stage in repo.stage.collect(target)]
        while rest:
            stage = rest.pop()
            if stage not in wanted:
                wanted.add(stage)
                rest += graph.successors(stage)
        changed = repo.status(targets=[stage.addressing for stage in wanted])
        todo = {stage for stage in wanted if stage.addressing in changed}
        rest = list(todo)
        while rest:
            new = wanted.intersection(graph.predecessors(rest.pop())) - todo
            todo |= new
            rest += new
        return {stage.name: {needed.name for needed in graph.successors(stage) if needed in todo} for stage in todo}


def dependants(todo: Mapping[str, set[str]], name: str) -> set[str]:
    """The stages of the plan that wait for `name`, at whatever remove."""
    found: set[str] = set()
    rest = [name]
    while rest:
        one = rest.pop()
        new = {other for other, needs in todo.items() if one in needs} - found
        found |= new
        rest += new
    return found


processes: set[subprocess.Popen] = set()  # the stages that run


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Passes what stops this process on to its stages, as Ctrl-C: DVC then waits for the command that it has started."""
    try:
        yield
    except BaseException:
        for process in list(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        raise


def run(folder: Path, name: str, environment: Mapping[str, str]) -> int:
    """The exit code of `dvc repro` of one stage, each line of whose output is printed behind the stage's name."""
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
    with subprocess.Popen(
        words,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        processes.add(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                sys.stdout.write(f"{name} | {line}")
                sys.stdout.flush()
    processes.discard(process)
    return process.returncode
