"""Ranks of a job for tests, without torchrun: forked from a process that has imported torch and TRL, each in a second.

They differ from real ones in nothing that the job sees: torchrun's variables are in their environment.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.program import ROOT


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit code, negative for a signal, and what it wrote."""

    code: int | None
    stdout: str
    stderr: str


def run(folder: Path, job: str, *words, settings=(), ranks: int, patch: Callable | None = None, seconds: float = 60,
        **environ: str) -> list[Ended]:  # fmt: skip
    """Runs a job in `folder` as so many ranks. patch: a function of a test's module, called in each before the job is.

    One that has not ended after `seconds`, or 5 s after the first that failed, is killed, as torchrun would.
    """
    folder.mkdir(exist_ok=True)
    arguments = [job, "--params", str(ROOT / "params.yaml"), *map(str, words)]
    arguments += [word for setting in settings for word in ("--set", setting)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranks_preload"])
    port = str(free_port())
    started = [
        context.Process(target=rank, args=(number, ranks, port, folder, arguments, patch, environ))
        for number in range(ranks)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in started) and time.monotonic() < deadline:
        if any(process.exitcode for process in started):
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.05)
    for process in started:
        process.kill()
        process.join()
    texts = [[(folder / f"rank-{i}.{name}").read_text() for name in ("stdout", "stderr")] for i in range(ranks)]
    return [Ended(process.exitcode, *of_rank) for process, of_rank in zip(started, texts, strict=True)]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def rank(
    number: int, ranks: int, port: str, folder: Path, arguments: list[str], patch, environ: dict[str, str]
) -> None:
    os.chdir(folder)
    if ranks > 1:
        variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in variables.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= environ
    with open(f"rank-{number}.stdout", "w") as out, open(f"rank-{number}.stderr", "w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            import torch

            from jobs.__main__ import main

            torch.set_num_threads(1)
            if patch is not None:
                patch()
            sys.argv = ["jobs", *arguments]
            main(arguments, standalone_mode=True)
