"""Milliseconds of a gradient's all-reduce, for adapters of two sizes: a rank of a case of tests/bench/scaling.py.

    RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python tests/bench/allreduce.py

The first rank prints a line of JSON: by adapter its gradient's MB, and the median of ten turns after five.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.limited import Case

ADAPTERS = {"23.6M": 23_592_960, "66.1M": 66_060_288}  # four and seven projections of Qwen3-4B at rank 32


def reduced(case: Case, enter: list[list[str]], port: int, **around: str) -> dict:
    """This script as two ranks, each behind the words that put it on its machine."""
    words = [sys.executable, Path(__file__).resolve()]
    logs, started = [case.log(f"allreduce-{i}") for i in (0, 1)], []
    for i, log in enumerate(logs):
        own = {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
        started.append(case.start([*enter[i], *words], log, **own | around))
    for process, log in zip(started, logs, strict=True):
        case.wait(process, log)
    return json.loads(next(line for line in logs[0].read_text().splitlines() if line.startswith("{")))


def main() -> None:
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    found = {}
    for name, weights in ADAPTERS.items():
        gradient = torch.zeros(weights, device=device)
        times = []
        for _ in range(15):
            torch.distributed.barrier()
            began = time.perf_counter()
            torch.distributed.all_reduce(gradient)
            if cuda:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
        found[name] = {"mb": round(weights * 4 / 1e6), "ms": round(statistics.median(times[5:]), 3)}
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
