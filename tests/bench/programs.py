"""Whole programs in the sandbox beside LiveCodeBench's way of running them, in one run.

    python tests/bench/programs.py --runner FOLDER [--workers 2] [--submissions 60]

FOLDER holds LiveCodeBench's own package (`livecodebench/evaluation/`, as the package nvidia-livecodebench unpacks). It
starts a multiprocessing.Manager and a process a submission, and runs all tests of it inside that process, without any
isolation and with the expected outputs beside the program. The sandbox forks a process a test. Prints submissions per
second for 1, 5 and 20 tests, and how many passed; and the milliseconds that a bare fork a test takes, of an interpreter
that holds what the sandbox's server holds, without isolation or judge: what no fork a test can be faster than.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.sandbox import Sandbox
from jobs.sandbox.child import COMMON

PROGRAM = """
import sys
from collections import defaultdict


def solve(words):
    counts = defaultdict(int)
    for word in words:
        counts[word] += 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def main():
    words = sys.stdin.read().split()[1:]
    for word, count in solve(words):
        print(word, count)


if __name__ == "__main__":
    main()
"""


BARE = """
import ctypes, gc, io, os, sys, time
import {modules}
code = compile({program!r}, "main", "exec")
fork = ctypes.PyDLL(None).fork
gc.collect()
gc.freeze()
began = time.perf_counter()
for _ in range(200):
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        sys.stdin, sys.stdout = io.StringIO({given!r}), io.StringIO()
        exec(code, {{"__name__": "__main__"}})
        os.write(writer, sys.stdout.getvalue().encode())
        os._exit(0)
    os.close(writer)
    os.read(reader, 1 << 16)
    os.waitpid(child, 0)
    os.close(reader)
print((time.perf_counter() - began) / 200 * 1000)
"""


def bare() -> float:
    """Milliseconds of a fork, a run of the program and its end, one after another."""
    code = BARE.format(program=PROGRAM, given=tests(1)[0]["input"], modules=", ".join(COMMON))
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=True)
    return round(float(done.stdout), 2)


def tests(count: int) -> list[dict]:
    made = []
    for number in range(count):
        words = [f"w{(7 * i + number) % 11}" for i in range(50)]
        counts = {word: words.count(word) for word in words}
        lines = [f"{word} {n}" for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        made.append({"input": f"{len(words)}\n{' '.join(words)}\n", "output": "\n".join(lines) + "\n"})
    return made


def ours(sandbox: Sandbox, made: list[dict], submissions: int) -> tuple[float, int]:
    task = {"task_id": f"bench {len(made)}", "prompt": "", "entry_point": "", "stdin_tests": made}
    sandbox.run([(task, PROGRAM)] * 8)
    began = time.monotonic()
    verdicts = sandbox.run([(task, f"{PROGRAM}# {i}\n") for i in range(submissions)])
    return time.monotonic() - began, sum(verdict.passed for verdict in verdicts)


def theirs(check, workers: int, made: list[dict], submissions: int) -> tuple[float, int]:
    columns = {"inputs": [test["input"] for test in made], "outputs": [test["output"] for test in made]}
    sample = {"input_output": json.dumps(columns)}
    began = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        found = list(
            pool.map(lambda i: check(sample, f"{PROGRAM}# {i}\n", timeout=6, debug=False)[0], range(submissions))
        )
    return time.monotonic() - began, sum(all(result is True for result in results) for results in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runner", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--submissions", type=int, default=60)
    options = parser.parse_args()
    sys.path.insert(0, str(options.runner))
    from livecodebench.evaluation.compute_code_generation_metrics import check_correctness

    print(json.dumps({"bare_fork_ms_a_test": bare()}), flush=True)
    with Sandbox(options.workers) as sandbox:
        for count in (1, 5, 20):
            made = tests(count)
            mine, passed = ours(sandbox, made, options.submissions)
            other, passed_there = theirs(check_correctness, options.workers, made, options.submissions)
            print(
                json.dumps(
                    {
                        "tests": count,
                        "sandbox_per_second": round(options.submissions / mine, 1),
                        "livecodebench_per_second": round(options.submissions / other, 1),
                        "ratio": round(other / mine, 2),
                        "passed": [passed, passed_there],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
