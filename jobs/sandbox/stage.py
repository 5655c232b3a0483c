"""In a child without rights: a whole program, compiled once, and a fork of this process for each run of it.

A run is as `python main.py < input` would have it. It has descriptors 0, 1 and 2 and nothing else: the socket to the judge
is closed, and the right to fork is gone, before the program's first line. What it says is what it wrote to descriptor 1 and
how it ended, and this process, whose child it is, tells the judge the latter. Nothing of a program ever runs here.
"""

import _sitebuiltins
import atexit
import builtins
import contextlib
import functools
import gc
import io
import os
import select
import signal
import socket
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

from jobs.sandbox import agent
from jobs.sandbox.protocol import PID, RUN, SOCKET, STATUS, loads

if TYPE_CHECKING:
    from jobs.sandbox.server import Layers

QUICK = 0.01  # seconds that the judge can do without a run's process id
FILE = "main.py"  # what __file__ and tracebacks call the program


def run(layers: "Layers") -> NoReturn:
    """Answers {"code", "prelude", "any_exit"} with {"r": true} or {"invalid": exception}, then runs the program as asked.

    any_exit: sys.exit ends a program well, whatever its code. A run is asked for by the byte RUN, with which come three
    descriptors: its standard input, output and error. The answers are its process id, and its wait status once it has
    ended; any byte meanwhile ends it.
    """
    request = loads(agent.receive())
    try:
        code = [compile(text, FILE, "exec", dont_inherit=True) for text in (request["prelude"], request["code"])]
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        agent.send({"invalid": agent.raised(error)})
        os._exit(0)
    space = dress()
    open_streams()
    gc.freeze()
    agent.send({"r": True})
    # Of a socket that names all three the kernel is asked nothing more, which seccomp would refuse.
    judge, stage = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=SOCKET), os.getpid()
    while True:
        command, descriptors, _, _ = socket.recv_fds(judge, 1, 3)
        if not command:
            os._exit(0)
        if command != RUN or len(descriptors) != 3:  # meant for a run that had ended by itself
            continue
        child = layers.fork()
        if child == 0:
            try:
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number, inheritable=False)
                    os.close(descriptor)
                judge.close()
                layers.end_forking(stage)
                play(code, space, request["any_exit"])
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)
        tell_end(child, judge)


def tell_end(child: int, judge: socket.socket) -> None:
    """Tells the judge, which may end it, a run's process id and its wait status: at once where it does not take long."""
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    for number in (descriptor, judge.fileno()):
        poll.register(number, select.POLLIN)
    told = PID.pack(child)
    ready = poll.poll(1000 * QUICK)
    if not ready:
        judge.sendall(told)
        told, ready = b"", poll.poll()
    if judge.fileno() in {number for number, _ in ready}:
        command = judge.recv(1)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if not command:
            os._exit(0)
    os.close(descriptor)
    judge.sendall(told + STATUS.pack(os.waitpid(child, 0)[1]))


def dress() -> dict[str, Any]:
    """Makes of this interpreter what a program expects; the name space of its module __main__."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=FILE)
    sys.argv = [FILE]
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    ease_stack_limit()
    return main.__dict__


def open_streams() -> None:
    """Opens the streams on what stands for a run's own till these take their places: of the same kinds."""
    reader, writer = os.pipe()
    for number in (1, 2):
        os.dup2(writer, number, inheritable=False)
    os.close(reader)
    os.close(writer)
    stream: Any = functools.partial(io.open, encoding="utf-8", closefd=False)
    streams = {"stdin": stream(0, errors="surrogateescape"), "stdout": stream(1, "w", errors="surrogateescape"),
               "stderr": stream(2, "w", 1, errors="backslashreplace")}  # fmt: skip
    vars(sys).update(streams, **{f"__{name}__": opened for name, opened in streams.items()})


def ease_stack_limit() -> None:
    """Programs raise the main thread's stack limit, which CPython's own recursion does not need: let them think so."""
    import resource

    kernel = resource.setrlimit

    def setrlimit(kind: int, limits: Any) -> None:
        if kind != resource.RLIMIT_STACK:
            kernel(kind, limits)

    resource.setrlimit = setrlimit


def play(code: list[types.CodeType], space: dict[str, Any], any_exit: bool) -> NoReturn:
    """Runs the program and ends the process as CPython ends: threads joined, atexit called, output flushed."""
    status, out = 0, sys.stdout
    try:
        for part in code:
            exec(part, space)
    except SystemExit as error:
        status = 0 if any_exit else exit_status(error.code)
    except BaseException as error:
        status = 1
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.__excepthook__(type(error), error, error.__traceback__)
    if "threading" in sys.modules:
        with contextlib.suppress(BaseException):
            sys.modules["threading"]._shutdown()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()  # the program may have put another in its place
    with contextlib.suppress(BaseException):
        space.clear()  # files that it opened over the descriptor are flushed as they go
    try:
        if not out.closed:
            out.flush()
    except BaseException:
        status = status or 120  # as CPython ends where its standard output cannot be flushed
    os._exit(status)


def exit_status(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(BaseException):
        print(code, file=sys.stderr)
    return 1
