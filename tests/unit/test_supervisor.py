"""A job that is told to stop has stopped within 3 s, whatever it is doing, and leaves no process behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Each ends never, or long after the test.
STALLS = {
    "a call that holds the interpreter": "sum(range(10 ** 12))",
    "a text that takes the compiler hours": (
        "text = '0'\n"
        "for depth in range(14): text = 'try:\\n return 1\\nfinally:\\n ' + text.replace('\\n', '\\n ')\n"
        "compile('def f():\\n ' + text.replace('\\n', '\\n '), 'x', 'exec')"
    ),
    "a call without the interpreter that no signal wakes": (
        "import ctypes, threading\n"
        "libc = ctypes.CDLL(None)\n"
        "while True: libc.sleep(60)"
    ),
    "code that swallows every exception": (
        "import time\n"
        "while True:\n"
        "    try: time.sleep(60)\n"
        "    except BaseException: pass"
    ),
    "an end that never ends": "import time\ntry: time.sleep(60)\nfinally: time.sleep(60)",
    "a thread that is waited for": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)"
    ),
    "a program that it has started": "import subprocess; subprocess.run(['sleep', '60'])",
    "an event loop that waits": "import asyncio; asyncio.run(asyncio.sleep(60))",
}  # fmt: skip
LEAVES = "import subprocess, sys\nprint(subprocess.Popen(['sleep', '61'], start_new_session=True).pid, flush=True)\n"


def job(code: str, **options) -> subprocess.Popen:
    """`python -m jobs sft` where reading the params runs `code`, which has told that it begins, in its place."""
    script = (
        f"import os, runpy, sys\nimport jobs.plumbing.params\ncode = {code!r}\n"
        "def load(*arguments):\n    print(os.getpid(), flush=True)\n    exec(code, {'__name__': 'stalled'})\n"
        "    print('done', flush=True)\n    sys.exit(7)\n"
        "jobs.plumbing.params.load = load\nsys.argv = ['jobs', 'sft']\nrunpy.run_module('jobs', run_name='__main__')"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes | options)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_ends_within_three_seconds_of_a_signal(stall, number, code):
    process = job(LEAVES + STALLS[stall])
    pids = [int(process.stdout.readline()) for _ in range(2)]
    time.sleep(0.2)  # into the stall
    process.send_signal(number)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 3
    assert process.returncode == code, stderr
    assert all(map(gone, pids))
    assert not re.search("Traceback(?s:.*)asyncio.*CancelledError", stderr)


@pytest.mark.parametrize("stall", ["a call that holds the interpreter", "an event loop that waits"])
def test_a_signal_to_the_whole_group_and_one_to_the_job_alone_count_as_one(stall):
    for send in (
        lambda process, pid: os.killpg(process.pid, signal.SIGINT),
        lambda _, pid: os.kill(pid, signal.SIGINT),
    ):
        process = job(STALLS[stall], start_new_session=True)
        pid = int(process.stdout.readline())
        time.sleep(0.2)
        send(process, pid)
        began = time.monotonic()
        _, stderr = process.communicate(timeout=30)
        assert time.monotonic() - began < 3
        assert process.returncode == 130
        assert stderr.splitlines()[-1].startswith("killed: " if "call" in stall else "interrupted")


def test_what_ends_by_itself_in_time_is_let_end():
    process = job("import time\ntry: time.sleep(60)\nfinally:\n    time.sleep(1); print('cleaned', flush=True)")
    process.stdout.readline()
    time.sleep(0.2)
    for _ in range(3):  # an impatient user's further signals do not break the end that the first began
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (143, "cleaned\n", "")


def test_a_job_that_has_done_its_work_when_told_to_stop_says_so():
    process = job(
        "import os, signal, time\n"
        "try: os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)\n"
        "except SystemExit: os._exit(0)"
    )
    assert process.wait(30) == 0


@pytest.mark.parametrize("code", [0, 1, 2, 77])
def test_the_exit_code_is_the_jobs(code):
    assert job(f"import sys; sys.exit({code})").wait(30) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_job_that_dies_is_seen_to_die(number):
    assert job(f"import os; os.kill(os.getpid(), {int(number)})").wait(30) == -number


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_library_that_ends_the_job_is_told_of_in_a_line(number):
    running = job(
        f"import os, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nos.kill(os.getpid(), {int(number)})"
    )
    _, said = running.communicate(timeout=60)
    assert running.returncode == -number
    assert said.strip() == f"error: a library's own code ended the job ({number.name}); what it said is above"


def test_a_job_dies_with_its_supervisor():
    process = job(STALLS["a call that holds the interpreter"])
    pid = int(process.stdout.readline())
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert gone(pid)


def test_what_a_job_leaves_behind_is_ended_after_a_moment():
    """Also what left its group, and the children of what is left."""
    process = job("import subprocess\n"
                  "for _ in range(3):\n"
                  "    p = subprocess.Popen(['sh', '-c', 'sleep 62 & echo $!; trap \"\" TERM; wait; sleep 62'],\n"
                  "                         start_new_session=True)\n"
                  "import time; time.sleep(1)  # until all three have begun, on a busy machine too")  # fmt: skip
    process.stdout.readline()
    began = time.monotonic()
    lines = [line for line in process.stdout if line.strip().isdigit()]
    assert process.wait(30) == 7
    assert time.monotonic() - began < 3
    assert len(lines) == 3
    assert all(gone(int(line)) for line in lines)


def test_a_worker_that_the_job_stops_stops_no_job():
    process = job(
        "import multiprocessing, time\n"
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "worker.start(); time.sleep(0.2); worker.terminate(); worker.join(); time.sleep(2.5)"
    )
    assert process.wait(30) == 7
    assert process.stdout.read().endswith("done\n")


def test_a_signal_that_was_ignored_stays_so():
    process = job("import time; time.sleep(1)", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 7
