"""What a measurement of the sandbox's benches takes: wall time, and CPU time with that of all child processes."""

import contextlib
import json
import os
import time
from pathlib import Path


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process, of those it has reaped, and of all below it."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ticks = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return ticks + sum(tree_cpu(int(child)) for child in children)
    return 0.0


def measure(name: str, count: int, work) -> dict:
    """Runs `work` and prints what it took; `work` returns how many of `count` passed."""
    cpu, start = tree_cpu(os.getpid()), time.monotonic()
    passed = work()
    seconds, cpu = time.monotonic() - start, tree_cpu(os.getpid()) - cpu
    result = {
        "what": name,
        "submissions": count,
        "passed": passed,
        "per_second": round(count / seconds, 1),
        "cpu_ms": round(1000 * cpu / count, 2),
    }
    print(json.dumps(result), flush=True)
    return result
