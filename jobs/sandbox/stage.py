"""In a child without rights: one run of a whole program, as `python main.py < input` would have it.

The program has descriptors 0, 1 and 2 and nothing else: the socket to the judge is closed before its first line. What
it says is what it wrote to descriptor 1 and how it ended, and the server, whose child it is, tells the judge the latter.
"""

import _sitebuiltins
import atexit
import base64
import builtins
import contextlib
import functools
import io
import marshal
import os
import sys
import types
from typing import Any, NoReturn

from jobs.sandbox import agent
from jobs.sandbox.protocol import SOCKET, loads

FILE = "main.py"  # what __file__ and tracebacks call the program


def run() -> NoReturn:
    """Answers the judge's one request, {"code" or "compiled", "prelude", "any_exit"}, then becomes the program.

    The answer is {"r": the compiled program, in base64} or {"invalid": exception}: a program's other children need not
    compile it again. any_exit: sys.exit ends a program well, whatever its code.
    """
    request = loads(agent.receive())
    try:
        if request["compiled"]:
            code = marshal.loads(base64.b64decode(request["compiled"]))
        else:
            code = [compile(text, FILE, "exec", dont_inherit=True) for text in (request["prelude"], request["code"])]
            request["compiled"] = base64.b64encode(marshal.dumps(code)).decode()
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        agent.send({"invalid": agent.raised(error)})
        os._exit(0)
    space = dress()
    agent.send({"r": request["compiled"] if request["code"] else ""})
    os.close(SOCKET)
    play(code, space, request["any_exit"])


def dress() -> dict[str, Any]:
    """Makes of this interpreter what a program expects; the name space of its module __main__."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=FILE)
    sys.argv = [FILE]
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    stream: Any = functools.partial(io.open, encoding="utf-8", closefd=False)
    streams = {"stdin": stream(0, errors="surrogateescape"), "stdout": stream(1, "w", errors="surrogateescape"),
               "stderr": stream(2, "w", 1, errors="backslashreplace")}  # fmt: skip
    vars(sys).update(streams, **{f"__{name}__": opened for name, opened in streams.items()})
    ease_stack_limit()
    return main.__dict__


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
