"""`python -m jobs JOB` as a process of its own, for tests."""

import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from tests import forked

ROOT = Path(__file__).parents[1]
LONGEST = 600  # seconds of a job


def command(job: str, *words, settings=()) -> list[str]:
    """The command line of a job with the committed params, `settings` as section.key=value."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "jobs", job, "--params", str(ROOT / "params.yaml"), *sets, *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """This process's, with the repository's code to be found from any folder; one thread, as two make bytes differ."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


AT_START = environment()


@cache
def server() -> forked.Server:
    return forked.Server(AT_START)


def run(folder: Path, job: str, *words, settings=(), stdin: str = "", check: bool = False, apart: bool = False):
    """Runs a job in `folder` to its end: its return code, stdout and stderr.

    A training job begins in a process that was forked with its libraries loaded (tests/forked.py), unless a test has
    changed the environment. apart: it does not, and has another seed of hashes.
    """
    line, around = command(job, *words, settings=settings), environment()
    if job in forked.JOBS and not apart and server().serves(around):
        done = server().run(line[3:], folder, around, stdin, LONGEST)
        if check:
            done.check_returncode()
        return done
    return subprocess.run(
        line, cwd=folder, env=around, input=stdin, capture_output=True, text=True, timeout=LONGEST, check=check
    )


def start(folder: Path, job: str, *words, settings=(), **environ: str) -> subprocess.Popen:
    """A job just started in `folder`."""
    return subprocess.Popen(
        command(job, *words, settings=settings),
        cwd=folder,
        env=environment(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_of_signal(process: subprocess.Popen, number: int, code: int) -> None:
    """A job that is sent a signal ends within three seconds, with that exit code and without a traceback."""
    process.send_signal(number)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 3
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
