"""The bench beside evalplus: what it makes of a process's log, and of one that does not end."""

import argparse
import os
import select
from pathlib import Path

from tests.bench import evaluation_peers as bench


def test_what_evalplus_said_is_found_behind_a_progress_bar() -> None:
    said = '{"to_metrics": 61.5, "phases": {"load": 20.25}, "tokens": 40, "samples": 4}'
    log = f"Initializing a decoder model: x ...\n 99%|#9| 3/4 [00:01]\rPEER {said}\nNo samples had finished\n"
    assert bench.parsed(log) == {"to_metrics": 61.5, "phases": {"load": 20.25}, "tokens": 40, "samples": 4}


def test_a_log_without_seconds_is_a_failure() -> None:
    assert "failed" in bench.parsed("humaneval (base tests)\npass@1:\t0.000\n")


def test_a_process_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    program = f"import os, time\nend = os.open({str(pipe)!r}, os.O_WRONLY)\nif not os.fork(): os.write(end, b'child')\n"
    case = bench.fresh("slow", argparse.Namespace(out=tmp_path, limit=5.0))
    found = bench.process(["-c", program + "time.sleep(600)"], case)
    assert found["failed"].startswith("the case's time was over")
    assert select.select([reader], [], [], 60)[0] and os.read(reader, 100) == b"child"
    assert select.select([reader], [], [], 60)[0] and os.read(reader, 100) == b"", "its child still holds the pipe"
    os.close(reader)


def test_a_process_that_fails_says_its_code_and_the_end_of_its_log(tmp_path: Path) -> None:
    case = bench.fresh("broken", argparse.Namespace(out=tmp_path, limit=60.0))
    (case.folder / "left").touch()
    found = bench.process(["-c", "import sys; sys.exit('no card here')"], case)
    assert "exit code 1: " in found["failed"] and "no card here" in found["failed"]
    assert not list(bench.fresh("broken", argparse.Namespace(out=tmp_path, limit=60.0)).folder.iterdir())


def test_parts_are_timed_and_tokens_counted() -> None:
    class Output:
        def __init__(self, tokens: int) -> None:
            self.outputs = [argparse.Namespace(token_ids=[0] * tokens)]

    clock = bench.Clock()
    generate = clock.counting(clock.around("generate", lambda lengths: [Output(n) for n in lengths]))
    generate([3, 4])
    generate([5])
    assert (clock.samples, clock.tokens) == (3, 12) and clock.seconds["generate"] > 0
