"""Whether `jobs tasks` makes the same bytes on a loaded machine, on the real data.

    python tests/bench/tasks_load.py --sources data/sources

Runs the job alone, beside four busy loops, and pinned to one core that those loops share, and prints what each took and
the digest of what it wrote. Exit code 1 unless all three are the same.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.files import sha256

ROOT = Path(__file__).resolve().parents[2]
LOOP = "while True: pass"


def once(folder: Path, sources: Path, loops: int, pinned: bool) -> dict:
    """One run's seconds and digests, beside `loops` busy loops on the same cores."""
    cores = {min(os.sched_getaffinity(0))} if pinned else os.sched_getaffinity(0)

    def bind() -> None:
        os.sched_setaffinity(0, cores)

    others = [subprocess.Popen([sys.executable, "-c", LOOP], preexec_fn=bind) for _ in range(loops)]
    words = ["--params", str(ROOT / "params.yaml"), "--sources", str(sources.resolve())]
    words += ["--pairs", str(ROOT / "data/overlap/pairs.jsonl")]
    start = time.monotonic()
    try:
        subprocess.run(
            [sys.executable, "-m", "jobs", "tasks", *words, "--out", "tasks", "--metrics", "metrics.json"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            preexec_fn=bind,
            check=True,
        )
    finally:
        for process in others:
            process.kill()
            process.wait()
    return {
        "busy_loops": loops,
        "cores": len(cores),
        "seconds": round(time.monotonic() - start),
        "tasks": sha256(folder / "tasks"),
        "metrics": sha256(folder / "metrics.json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=Path("data/sources"))
    sources = parser.parse_args().sources
    rows = []
    for loops, pinned in ((0, False), (4, False), (4, True)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(once(Path(folder), sources, loops, pinned))
        print(json.dumps(rows[-1]), flush=True)
    sys.exit(len({(row["tasks"], row["metrics"]) for row in rows}) != 1)


if __name__ == "__main__":
    main()
