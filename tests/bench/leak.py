"""Whether the sandbox leaks: memory, descriptors, processes, shared memory before and after many submissions.

    python tests/bench/leak.py [--submissions 100000] [--workers 2]

Right, wrong, hanging, crashing and invalid programs by turns (a hanging one in 500). Prints a JSON object every tenth of
the way; exit code 1 if at the end anything has grown but the memory by less than a tenth, or if a verdict was wrong.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.sandbox import Sandbox

TASK = {
    "task_id": "leak",
    "prompt": "",
    "entry_point": "f",
    "setup": "",
    "tests": ["assert f(1) == [1, 2]", "assert f(2) == [2, 3]"],
    "reference": "",
}
PROGRAMS = {
    "passed": "def f(x):\n    return [x, x + 1]\n",
    "failed": "def f(x):\n    return [x] * 1000\n",
    "crashed": "import os\ndef f(x):\n    os._exit(3)\n",
    "invalid": "def f(x:\n",
}
HANGING = "def f(x):\n    while True:\n        pass\n"


def family(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(p for child in children for p in family(int(child)))]
    return []


def state(done: int) -> dict[str, float]:
    """Of this process and all below it."""
    memory = descriptors = 0
    processes = family(os.getpid())
    for pid in processes:
        with contextlib.suppress(OSError, IndexError):
            memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    return {
        "submissions": done,
        "memory_mib": round(memory / 2**20, 1),
        "descriptors": descriptors,
        "processes": len(processes),
        "shared_memory": len(os.listdir("/dev/shm")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    statuses = list(PROGRAMS)
    wrong, states = 0, []
    with Sandbox(options.workers, timeout=0.5) as sandbox:
        sandbox.run([(TASK, PROGRAMS["passed"])] * 200)
        began = time.monotonic()
        for tenth in range(11):
            time.sleep(0.5)  # the children made ready ahead are there
            states.append(state(tenth * options.submissions // 10))
            print(json.dumps(states[-1] | {"seconds": round(time.monotonic() - began, 1)}), flush=True)
            if tenth == 10:
                break
            expected = [
                "timeout" if i % 500 == 499 else statuses[i % len(statuses)] for i in range(options.submissions // 10)
            ]
            verdicts = sandbox.run([(TASK, PROGRAMS.get(status, HANGING)) for status in expected])
            wrong += sum(verdict.status != status for verdict, status in zip(verdicts, expected, strict=True))
    first, last = states[1], states[-1]  # after a tenth, caches are full
    grown = [k for k in ("descriptors", "processes", "shared_memory") if last[k] > first[k]]
    if last["memory_mib"] > 1.1 * first["memory_mib"]:
        grown.append("memory_mib")
    print(json.dumps({"grown": grown, "wrong": wrong}))
    return int(bool(grown or wrong))


if __name__ == "__main__":
    sys.exit(main())
