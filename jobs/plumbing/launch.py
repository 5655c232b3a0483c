"""Several ranks of one job: which of them this process is, and how a command starts them.

A rank is a process of a training run, with a card of its own where there are cards. `sft.processes` and `grpo.processes`
say how many there are, because the result hangs on that; where they run is environment. The command that finds no RANK
there runs itself once a rank, by PyTorch's torchrun, and ends as they do. One that finds RANK and WORLD_SIZE, from
somebody's own torchrun, is a rank.

On several machines the command is given once on each, over one and the same folder, with NODES, NODE_RANK, MASTER_ADDR and
MASTER_PORT in its environment (docs/scaling.md).
"""

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from jobs.common.errors import JobError, UsageError, one_line
from jobs.common.files import process_folder

LOOPBACK = "127.0.0.1"
TIMEOUT = 600  # seconds that a rank or a machine waits for the others, unless RANKS_TIMEOUT says otherwise
STOPPED = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}  # exit codes of a job that was told to


@dataclass(frozen=True)
class Machines:
    """How many machines take part, which of them this is, and where the first one listens."""

    count: int = 1
    number: int = 0
    address: str = LOOPBACK
    port: int = 0  # one that is free


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    return int(os.environ["RANK"]) if is_rank() else 0


def ranks() -> int:
    """How many there are, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


def ranks_here() -> int:
    """How many there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_rank() else 1


def rank_here() -> int:
    """This process's number among those of this machine, and that of its card."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_rank() else 0


def workers(wanted: int) -> int:
    """A rank's part of this machine's sandbox workers. wanted: `sandbox.workers`, 0 for as many as there are cores."""
    return max(1, (wanted or len(os.sched_getaffinity(0))) // ranks_here())


def timeout() -> float:
    """Seconds. Errors: UsageError naming the variable."""
    given = os.environ.get("RANKS_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise UsageError(f"RANKS_TIMEOUT is {given!r}; it must be seconds, above 0 and less than a day")
    return seconds


def works(key: str, processes: int) -> bool:
    """Whether this process does the job's work itself; if not, `start` is to be called.

    key: the param that says `processes`. Errors: UsageError where this process is one of another number of ranks.
    """
    if is_rank() and ranks() != processes:
        raise UsageError(f"{key} is {processes}, and this process was started as one of {ranks()} (WORLD_SIZE)")
    return is_rank() or processes == 1


def on_ranks(key: str, processes: int, check: Callable[[], object], work: Callable[[], dict | None]) -> None:
    """Does `work` on every rank, and prints what the first one's gives as JSON.

    key: the param that says `processes`. check: raises what is wrong with the inputs; called before ranks are started, so
    that it is said once, and not by every one of them. work: gives None on any rank but the first.
    Errors: those of check, work, `works` and `start`.
    """
    if not works(key, processes):
        check()
        start(key, processes)
        return
    with contextlib.redirect_stdout(sys.stderr):  # where trackers and engines talk; the result stands alone
        result = work()
    if result is not None:
        click.echo(json.dumps(result))


def machines(key: str, processes: int) -> Machines:
    """What the environment says of machines. Errors: UsageError naming the variable."""
    count = number_in("NODES") if os.environ.get("NODES") else 1
    if count == 1:
        return Machines()
    if count < 1 or processes % count:
        raise UsageError(f"{key} is {processes}, which NODES ({count}) machines cannot share evenly")
    for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UsageError(f"NODES is {count}, and {name} is not set: see docs/scaling.md")
    number = number_in("NODE_RANK")
    if not 0 <= number < count:
        raise UsageError(f"NODE_RANK is {number}; with NODES {count} it is 0 to {count - 1}")
    return Machines(count, number, os.environ["MASTER_ADDR"], number_in("MASTER_PORT"))


def number_in(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UsageError(f"{name} is {os.environ[name]!r}, not a whole number") from None


def start(key: str, processes: int) -> None:
    """Runs this very command once a rank, returns when all have ended well, and otherwise ends as the first of them.

    Errors: UsageError where this machine has fewer cards than ranks; JobError naming a rank that was killed, and where the
    machines do not meet. A rank that failed has said why.
    """
    found, seconds = machines(key, processes), timeout()
    here = processes // found.count
    import_quietly()
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available() and torch.cuda.device_count() < here:
        raise UsageError(f"{key}: {here} processes on a machine that shows {torch.cuda.device_count()} GPUs")
    alone = found.count == 1
    if alone:  # no name is looked up and nothing else is asked: a container has no network but this
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    notes = process_folder(Path(tempfile.gettempdir()), "ranks")
    config = LaunchConfig(
        min_nodes=found.count,
        max_nodes=found.count,
        nproc_per_node=here,
        run_id="jobs",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint=f"{found.address}:{found.port}",
        rdzv_configs={} if alone else {"rank": found.number, "timeout": math.ceil(seconds)},
        local_addr=LOOPBACK if alone else None,
        max_restarts=0,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(notes)),  # what ranks print goes where this command's own goes
    )
    logging.disable(logging.CRITICAL)  # torchrun's own log tells of each process what one line says below
    try:
        elastic_launch(config, sys.executable)("-m", "jobs", *sys.argv[1:])
    except SignalException as error:
        for stop in STOPPED.values():  # the ranks have been told; a further one would only break this off
            signal.signal(stop, signal.SIG_IGN)
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        end_as(number, failure.exitcode)
    except torch.distributed.DistError as error:
        raise JobError(not_met(found, seconds, error)) from None
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(notes, ignore_errors=True)


def import_quietly() -> None:
    """Imports torch so that this process's sockets, unlike the ranks', print no trace of C++ for each of their tries."""
    level = os.environ.get("TORCH_CPP_LOG_LEVEL")
    os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # which is read once
    import torch  # noqa: F401

    if level is None:
        del os.environ["TORCH_CPP_LOG_LEVEL"]
    else:
        os.environ["TORCH_CPP_LOG_LEVEL"] = level


def not_met(found: Machines, seconds: float, error: Exception) -> str:
    """What went wrong where this machine's torchrun has no connection to the others, or no longer."""
    if found.number == 0 and "EADDRINUSE" in str(error):
        return f"MASTER_PORT {found.port} is in use on this machine: another run has it, or set another on all machines"
    where = f"MASTER_ADDR {found.address}, MASTER_PORT {found.port}"
    if found.number:
        said = f"machine {found.number} has no connection to the first one ({where}), which it waits {seconds:g} s for"
    else:
        said = f"of {found.count} machines not all came to this one within {seconds:g} s, or one is gone ({where})"
    return f"{said}: {one_line(error)}"


def end_as(number: int, code: int) -> NoReturn:
    """Ends with the exit code of rank `number`; a negative one is the signal that killed it, as in subprocess."""
    signalled = -code if code < 0 else STOPPED.get(code)
    if signalled is None:
        raise SystemExit(code)
    raise JobError(f"rank {number} was ended by {signal.Signals(signalled).name}, so the others were stopped")
