"""`python -m jobs JOB` as a process of its own, for tests."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(job: str, *words, settings=()) -> list[str]:
    """The command line of a job with the committed params, `settings` as section.key=value."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "jobs", job, "--params", str(ROOT / "params.yaml"), *sets, *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """This process's, with the repository's code to be found from any folder; one thread, as two make bytes differ."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def run(folder: Path, job: str, *words, settings=(), stdin: str = "", check: bool = False):
    """Runs a job in `folder` to its end: its return code, stdout and stderr."""
    return subprocess.run(
        command(job, *words, settings=settings),
        cwd=folder,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        check=check,
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
