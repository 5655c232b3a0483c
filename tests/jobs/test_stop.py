"""`evaluate` and `score` end within 3 s of a signal, whatever the texts that they are given are made for."""

import json
import signal
import time
from pathlib import Path

import pytest

from jobs.common.files import write_json, write_jsonl
from tests import program

TASK = {
    "task_id": "T/1",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "setup": "",
    "reference": "def f(x):\n    return x\n",
    "tests": ["assert f(1) == 1"],
}


def nested(depth: int) -> str:
    """Python copies each `finally` for every way out of its `try`."""
    lines = ["def f(x):"]
    for level in range(depth):
        lines += [
            f"{' ' * (2 * level + 1)}try:",
            f"{' ' * (2 * level + 2)}return x",
            f"{' ' * (2 * level + 1)}finally:",
        ]
    return "\n".join([*lines, f"{' ' * (2 * depth + 1)}pass"]) + "\n"


STALLS = {
    "compiled for hours": nested(14),
    "an endless loop": "def f(x):\n    while True: pass\n",
    "a power": "def f(x):\n    return 9 ** 9 ** 9 ** 9\n",
    "deaf": "import signal, time\nfor n in (2, 15): signal.signal(n, lambda *a: None)\n"
            "def f(x):\n    while True: time.sleep(1)\n",
    "keys of one hash": "def f(x):\n    return {i * (2**61 - 1): 0 for i in range(200000)}\n",
}  # fmt: skip


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_evaluate_stops_while_it_judges(tmp_path, stall, number, code):
    write_jsonl(tmp_path / "tasks/toy.jsonl", [TASK])
    rows = [
        {"task_id": "T/1", "sample": i, "text": f"{STALLS[stall]}# {i}\n", "finish": "stop", "tokens": 9}
        for i in range(40)
    ]
    write_jsonl(tmp_path / "samples/samples-toy.jsonl", rows)
    write_json(tmp_path / "samples/settings.json", {"mode": "plain", "sampled": {"n": 39, "temperature": 1.0}})
    process = program.start(
        tmp_path, "evaluate", "--samples", "samples", "--benchmark", "toy", "--benchmarks-dir", "tasks", "--out", "out",
        "--mode", "plain", settings=["sandbox.require=[]", "sandbox.workers=2", "sandbox.timeout=30.0"],
        TMPDIR=str(tmp_path),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("sandbox-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.5)  # into the first of the texts
    assert process.poll() is None, process.stderr.read()
    program.ends_of_signal(process, number, code)
    assert sorted(path.name for path in tmp_path.iterdir() if "sandbox" not in path.name) == ["samples", "tasks"]
    assert not working_in(tmp_path)


def test_score_stops_while_it_judges(tmp_path):
    write_jsonl(tmp_path / "tasks.jsonl", [TASK])
    write_jsonl(
        tmp_path / "samples.jsonl",
        [{"task_id": "T/1", "solution": f"{code}# {i}"} for code in STALLS.values() for i in range(9)],
    )
    process = program.start(
        tmp_path, "score", "--tasks", "tasks.jsonl", "--samples", "samples.jsonl", "--out", "out.jsonl",
        settings=["sandbox.require=[]", "sandbox.workers=2", "sandbox.timeout=30.0"], TMPDIR=str(tmp_path),
    )  # fmt: skip
    time.sleep(3)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 3
    assert process.returncode == 143, stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert not working_in(tmp_path)


def working_in(folder: Path) -> list[list[str]]:
    """The processes that name the folder, as those of the sandbox do, or work in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if str(folder) in json.dumps(words) or (entry / "cwd").resolve().is_relative_to(folder):
                found.append(words)
        except OSError:
            continue
    return found
