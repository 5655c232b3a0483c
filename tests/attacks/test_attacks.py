"""Hostile programs, one a file in programs/: none may pass a test, none may harm, and the next submission is judged
right.

Every program is run against the same task in three forms: assertions, a check function, and inputs with a
reference; those that would forge a verdict or harm the judge also against tests that use a result in all ways and
against inputs that are compared as sets. Its docstring says what it tries. What harm would look like is watched from
outside: files, processes, sockets, System V objects, and the verdict on a right program and on a wrong one directly
afterwards."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.sandbox import STATUSES, Sandbox

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))
# Answers that no program can guess; the last argument is one that a program may change.
ANSWERS = [(3, 471203), (4, 912047), ([1, 2], 130991)]
TESTS = [f"assert f({json.dumps(x)}) == {y}" for x, y in ANSWERS]
LOOKUP = "\n".join(f"    if x == {x!r}:\n        return {y}" for x, y in ANSWERS)
RIGHT = f"def f(x):\n{LOOKUP}\n"
WRONG = "def f(x):\n    return 0\n"
COMMON = {"task_id": "attacked", "prompt": "", "entry_point": "f", "setup": "", "reference": RIGHT}
CHECK = "def check(candidate):\n" + "".join(f"    {test.replace('f(', 'candidate(', 1)}\n" for test in TESTS)
FORMS = {
    "tests": {**COMMON, "tests": TESTS},
    "check": {**COMMON, "tests": [], "check": CHECK},
    "inputs": {**COMMON, "tests": [], "base_input": [[3]], "plus_input": [[4], [[1, 2]]], "atol": 0},
}
# Here f returns a list, of which the tests make all that can be made.
USES = [
    "assert all(y[0] > 99 for y in map(f, [3, 4]))",
    "assert sum(f(3)) == 471203",
    "assert list(f(4)) == [912047] and set(f(4)) == {912047} and sorted(f(4)) == [912047] and max(f(4)) == 912047",
    "y = f([1, 2]); assert f'{y}' == '[130991]' and y[0] == 130991 and len(y) == 1 and 130991 in y and y == [130991]",
    "assert list(map(f, [3, 4])) == [[471203], [912047]] and {y: 0 for x in [3] for y in f(x)} == {471203: 0}",
]
LISTED = f"def f(x):\n    def g(x):\n{LOOKUP.replace('    ', '        ')}\n    return [g(x)]\n"
HARD_FORMS = {
    "uses": {**COMMON, "reference": LISTED, "tests": USES},
    "sets": {**COMMON, "reference": LISTED.replace("f(x)", "Diff(x)"), "task_id": "Mbpp/769", "entry_point": "Diff",
             "tests": [], "base_input": [[3]], "plus_input": [[4], [[1, 2]]], "atol": 0},
}  # fmt: skip
CANARY, FOLDER, TASKS = (Path("/tmp/sandbox-attack-" + name) for name in ("canary", "folder", "tasks.jsonl"))
LISTENER = Path("/tmp/sandbox-attack-listener")
SECONDS = 1.0


def harm() -> set[str]:
    """What should not be there, or no longer be as it was."""
    places = (Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", "/run"))
    found = {str(path) for place in places for path in place.glob("sandbox-attack-harm*")}
    if not CANARY.is_file() or CANARY.read_text() != "whole" or not FOLDER.is_dir() or CANARY.stat().st_mtime < 10:
        found.add("the canary")
    with contextlib.suppress(OSError):
        for kind in ("shm", "msg", "sem"):
            lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
            found |= {f"System V {kind}" for line in lines if int(line.split()[0]) == 0x5EED}
    return found


def below(root: int) -> dict[int, int]:
    """Every process below `root`, and its parent."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    known = {root}
    while more := {pid for pid, parent in parents.items() if parent in known} - known:
        known |= more
    return {pid: parents[pid] for pid in known - {root}}


def servers_of(judge):
    return {pid for pid, parent in below(judge).items() if parent == judge}


def settled(judge):
    """Whether the processes below a judge come to be its servers and a child each; a verdict waits for no end."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if len(below(judge)) == 2 * len(servers_of(judge)):
            return True
        time.sleep(0.02)
    return False


class Listener:
    """Whatever reaches a socket on this machine."""

    def __init__(self) -> None:
        LISTENER.unlink(missing_ok=True)
        self.sockets = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 47123)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 47123)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(LISTENER)),
            (socket.AF_UNIX, socket.SOCK_DGRAM, "\0sandbox-attack-listener"),
        ):
            opened = socket.socket(family, kind)
            opened.bind(address)
            if kind == socket.SOCK_STREAM:
                opened.listen()
            opened.setblocking(False)
            self.sockets.append(opened)
        LISTENER.chmod(0o777)

    def reached(self) -> set[str]:
        names = set()
        for opened in self.sockets:
            with contextlib.suppress(BlockingIOError):
                if opened.type == socket.SOCK_STREAM:
                    opened.accept()[0].close()
                else:
                    opened.recv(100)
                names.add(f"a socket {opened.family.name} {opened.type.name}")
        return names

    def close(self) -> None:
        for opened in self.sockets:
            opened.close()
        LISTENER.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def world():
    """Things to steal and to harm, all readable (and the canary writable) by everyone."""
    CANARY.write_text("whole")
    CANARY.chmod(0o666)
    FOLDER.mkdir(exist_ok=True)
    FOLDER.chmod(0o777)
    TASKS.write_text("\n".join(TESTS))
    TASKS.chmod(0o644)
    os.environ["SANDBOX_SECRET"] = "471203"
    listener = Listener()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    yield listener, bystander
    bystander.kill()
    bystander.wait()
    listener.close()
    del os.environ["SANDBOX_SECRET"]
    for path in (CANARY, TASKS):
        path.unlink(missing_ok=True)
    FOLDER.rmdir()


@pytest.fixture(scope="module")
def sandbox(world):
    with Sandbox(workers=1, timeout=SECONDS, memory_mib=512) as sandbox:
        sandbox.run([(task, task["reference"]) for task in (FORMS | HARD_FORMS).values()])
        yield sandbox


def attack(sandbox: Sandbox, world: tuple, code: str, forms: dict[str, dict] = FORMS) -> list[str]:
    """What the program achieved, [] if nothing."""
    listener, bystander = world
    before = harm()
    achieved = []
    for form, task in forms.items():
        start = time.monotonic()
        verdict = sandbox.run([(task, code + ("\nDiff = f\n" if form == "sets" else ""))])[0]
        if verdict.passed or verdict.tests_passed or verdict.base_passed or verdict.plus_passed:
            achieved.append(f"{form}: {verdict}")
        if verdict.status not in STATUSES[:-1] or len(verdict.error) > 200 or not verdict.error.isprintable():
            achieved.append(f"{form}: {verdict}")
        if time.monotonic() - start > 20:
            achieved.append(f"{form}: held the judge for {time.monotonic() - start:.0f} s")
        answers = [(task, task["reference"]), (task, WRONG.replace("f(x)", f"{task['entry_point']}(x)"))]
        after = sandbox.run(answers)
        if any(v.status == "timeout" for v in after):  # a busy machine; harm that stays would time out again
            time.sleep(1)
            after = sandbox.run(answers)
        if [v.status for v in after] != ["passed", "failed"]:
            achieved.append(f"{form}: the next: {after}")
    achieved += sorted(harm() - before) + sorted(listener.reached())
    if bystander.poll() is not None:
        achieved.append("the bystander died")
    return achieved


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_attack(sandbox, world, path):
    hard = HARD_FORMS if path.stem.startswith(("judge_", "forge_")) else {}
    assert attack(sandbox, world, path.read_text(), FORMS | hard) == []


def test_nothing_is_left(world):
    seen = set()
    with Sandbox(workers=1, timeout=SECONDS) as sandbox:
        judge = sandbox.judges[0].process.pid
        for name in ("harm_daemon", "harm_subprocess", "exhaust_fork_bomb", "hang_ignored_signals", "exhaust_threads"):
            sandbox.run([(FORMS["tests"], (Path(__file__).parent / "programs" / f"{name}.py").read_text())])
            found = below(judge)
            seen |= {judge, *found}
            servers = [pid for pid, parent in found.items() if parent == judge]
            assert len(found) <= 2 * len(servers)  # each with the one child that is in use or made ready
            assert len(servers) <= 3
        scratch = Path(sandbox.scratch)
        assert list(scratch.iterdir()) == []
    assert not scratch.exists()
    deadline = time.monotonic() + 5
    while (left := {pid for pid in seen if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    time.sleep(3.5)  # a daemon would have written by now
    assert not {item for item in harm() if "daemon" in item}


def test_a_killed_server_or_judge_is_replaced_and_gives_no_verdict_of_its_own(world):
    with Sandbox(workers=1, timeout=SECONDS) as sandbox:
        assert sandbox.run([(FORMS["tests"], RIGHT)])[0].passed
        judge = sandbox.judges[0].process.pid
        (server,) = [pid for pid, parent in below(judge).items() if parent == judge]
        for pid in (server, judge):
            os.kill(pid, signal.SIGKILL)
            verdicts = sandbox.run([(FORMS["tests"], RIGHT), (FORMS["tests"], WRONG)])
            assert [verdict.status for verdict in verdicts] == ["passed", "failed"]
