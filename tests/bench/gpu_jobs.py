"""Running a job for a bench on a GPU: its log, its wall seconds, and the cards' peak memory."""

import csv
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

REPO = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}
SECONDS = 420  # that a job may take


def run_logged(words: list, log: Path, folder: Path | None = None, environment: dict[str, str] | None = None) -> None:
    """Runs a Python command in `folder`, with this repository's code, and its output in `log`; environment: what is added
    to this process's own."""
    with open(log, "w") as file:
        subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=SECONDS,
            env=ENVIRONMENT | (environment or {}),
        )


class Memory(threading.Thread):
    """The memory in use of each card that a job may have, at its highest, in GiB.

    environment: the job's, whose CUDA_VISIBLE_DEVICES says which those are; without it all. `peak` is in its order, so
    that the first one is the job's own where it takes one.
    """

    QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.used", "--format=csv,noheader,nounits")

    def __init__(self, environment: Mapping[str, str] = ENVIRONMENT) -> None:
        super().__init__(daemon=True)
        self.visible = environment.get("CUDA_VISIBLE_DEVICES")
        self.peak: list[float] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.sample()

    def sample(self) -> None:
        try:
            done = subprocess.run(self.QUERY, capture_output=True, text=True)
        except FileNotFoundError:  # no card
            return
        used = used_of(done.stdout, self.visible)
        self.peak = [max(pair) for pair in zip(used, self.peak or used, strict=True)]


def used_of(said: str, visible: str | None) -> list[float]:
    """GiB in use of the cards that `visible` names by number or by the beginning of a UUID, in its order.

    said: by nvidia-smi, a line a card with its number, UUID and MiB in use. As to CUDA, a name that is no card's, and what
    stands behind it, is none.
    """
    cards = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.strip()]
    if visible is None:
        return [round(int(mib) / 1024, 1) for _, _, mib in cards]
    used = []
    for name in map(str.strip, visible.split(",")):
        found = [
            mib for index, uuid, mib in cards if name == index or (name.startswith("GPU-") and uuid.startswith(name))
        ]
        if len(found) != 1:
            break
        used.append(round(int(found[0]) / 1024, 1))
    return used


def job(
    words: list[str],
    folder: Path,
    log: Path,
    program: tuple = ("-m", "jobs"),
    environment: dict[str, str] | None = None,
) -> dict:
    """Runs one job in `folder`; returns its wall seconds and the peak memory of the first card that it may have."""
    folder.mkdir(parents=True, exist_ok=True)
    memory = Memory(ENVIRONMENT | (environment or {}))
    memory.start()
    began = time.perf_counter()
    run_logged([*program, *words], log, folder, environment)
    memory.stopped.set()
    return {"seconds": round(time.perf_counter() - began, 1), "peak_gib": memory.peak[0] if memory.peak else 0.0}


class Hog:
    """Takes the card's memory but for `free` GiB, from a process of its own."""

    PROGRAM = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
free, total = torch.cuda.mem_get_info()
print((total - free) / 2**30, flush=True)
sys.stdin.read()
"""

    def __init__(self, free: float, card: str | None = None) -> None:
        command = [sys.executable, "-c", self.PROGRAM, str(free)]
        seen = {} if card is None else {"CUDA_VISIBLE_DEVICES": card}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | seen
        )
        self.gib = float(self.process.stdout.readline())

    def release(self) -> float:
        """Gives the memory back; returns how much of the card was held, in GiB."""
        self.process.communicate()
        return self.gib


def drawn(text: str) -> float:
    """A reward from a text's hash, from 0 to 1: a model with random weights earns none."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def draw_rewards() -> None:
    """From now on every answer earns what is `drawn` from it, whatever its verdict."""
    from jobs.grpo.rewards import Score, Scorer

    Scorer.score = lambda self, text, verdict: Score(*[drawn(text)] * 3, verdict)  # type: ignore[assignment,method-assign]


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
