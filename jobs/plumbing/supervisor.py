"""The process that a job runs under: a job that is told to stop has stopped within 3 s, whatever it is doing.

CPython runs a signal's handler between two instructions of the main thread. A job within one long call (compiling a text,
matching a regular expression, an operation of torch) hears of nothing until that returns, and where the call holds the
interpreter no thread of the job's can help either. So the command forks at its start. The job goes on in the child. The
parent does nothing but pass signals on, wait, and end what has not ended by itself.

The exit code is 128 + the signal's number (130, 143, 129) however the job came to its end. Nothing that the job has started
stays behind: orphans become the parent's children, and are killed. That holds for the ranks of a run too (launch.py): each
is supervised by itself, below the command that started it.

A command that starts the stages of a pipeline has longer, since docker/run needs up to 20 s to see a container, or a
cluster's job, ended: whoever kills that leaves it behind.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jobs.plumbing.launch import is_rank

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
GRACE = 2.0  # seconds that a job has to end by itself once it is told to
ORPHANS = 0.4  # seconds that what a job leaves behind has to end by itself
OF_STAGES = 30.0  # in the place of both, for a command that starts stages
GIVE_UP = 1.0  # seconds after which a process that cannot even be killed is no longer waited for
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
libc = ctypes.CDLL(None)


def supervise(stages: bool = False) -> None:
    """Forks, and returns in the child, which is the job. The parent never returns, and ends as the job does.

    To be called first of all, from the main thread, before there are others. A signal that was ignored (SIGINT is, in a
    job that a shell started in the background) stays so. stages: the command starts a pipeline's stages.
    """
    ours, theirs = os.pipe(), os.pipe()
    for end in (*ours, *theirs):
        os.set_blocking(end, False)
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if is_rank():  # which nobody waits for once the command that started it has been killed
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    parent, job = os.getpid(), os.fork()
    if job:
        for number in (*heard, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the number comes by the pipe
    else:
        die_with_parent(parent)
        stop = Stop()
        for number in heard:
            signal.signal(number, stop)
        # A worker that the job forks may be told to stop by the job, which is no reason to stop the job itself.
        os.register_at_fork(after_in_child=silence)
    # C code writes the number of each signal to the pipe at once, also while a call holds the interpreter: so the parent
    # hears of a signal that was sent to the child as well, and does not send it again.
    signal.set_wakeup_fd((ours if job else theirs)[1], warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if job:
        wait_for(job, ours[0], theirs[0], heard, stages)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when `parent` ends, which started it: nothing goes on writing after that.

    Ends this process at once where the parent has ended before the kernel was asked.
    """
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def stops_held_back() -> Iterator[None]:
    """What tells this process to stop is heard when this is over; processes that are started meanwhile never hear of it.

    Where Python forks, it would be lost: what a handler raises there is only printed.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Stop:
    """The job's handler. The first signal unwinds what it is doing; a further one, which would break that, is ignored."""

    def __init__(self) -> None:
        self.told = False

    def __call__(self, number: int, frame: object) -> None:
        if self.told:
            return
        self.told = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


def silence() -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def wait_for(job: int, ours: int, theirs: int, heard: list[signal.Signals], stages: bool) -> NoReturn:
    """Passes signals on to the job until it has ended, by itself or not, and ends in its way.

    ours, theirs: where the numbers of the signals come that this process and the job have got.
    """
    grace = OF_STAGES if stages else GRACE
    first, deadline, status = 0, float("inf"), None
    while status is None:
        if time.monotonic() >= deadline:
            deadline = float("inf")
            name = signal.Signals(first).name
            print(f"killed: it had not ended {grace:.0f} s after {name}", file=sys.stderr, flush=True)
            os.kill(job, signal.SIGKILL)
        wait(deadline, ours, theirs)
        for number in (told := numbers(ours)) + numbers(theirs):
            if number in heard and not first:
                first, deadline = number, time.monotonic() + grace
        for number in told:
            if number in heard:
                os.kill(job, number)
        status = reaped().get(job)
    end_orphans(ours, stages)
    if first and status:
        os._exit(128 + first)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in CRASHES:
            name = signal.Signals(os.WTERMSIG(status)).name
            print(
                f"error: a library's own code ended the job ({name}); what it said is above",
                file=sys.stderr,
                flush=True,
            )
        die_by(os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def wait(deadline: float, *readers: int) -> None:
    """Until a signal has come, or the deadline."""
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    select.select(readers, [], [], left)


def numbers(reader: int) -> bytes:
    """Of the signals that have come."""
    with contextlib.suppress(BlockingIOError):
        return os.read(reader, 1 << 10)
    return b""


def reaped() -> dict[int, int]:
    """The children that have ended, and how; orphans of the job among them."""
    found = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found[ended[0]] = ended[1]
    return found


def end_orphans(reader: int, stages: bool) -> None:
    """Kills what the job has left behind, after a moment in which it may end by itself; a stage is told to end before."""
    if stages:
        signal_orphans(reader, signal.SIGTERM, 0.0, OF_STAGES)
    signal_orphans(reader, signal.SIGKILL, ORPHANS, GIVE_UP)


def signal_orphans(reader: int, number: int, after: float, until: float) -> None:
    """Sends the signal to each orphan that there is `after` seconds from now or later; returns once none is left, or at
    `until` seconds from now."""
    began = time.monotonic()
    told: set[int] = set()
    while left := set(children()):
        now = time.monotonic()
        if now > began + until:
            return
        if now >= began + after:
            for pid in left - told:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            told |= left
        wait(max(now + 0.05, began + after), reader)
        numbers(reader)
        reaped()


def children() -> Iterator[int]:
    """This process's children, their own among them once they are orphans."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # none, and no need to look
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(entry.name)


def die_by(number: int) -> NoReturn:
    """Ends by the signal that ended the job, so that whoever waits sees the same."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of the job's is enough
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # as process 1 of a container, which no such signal ends
