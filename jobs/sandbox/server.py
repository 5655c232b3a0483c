"""The pre-forked server and, in each child that it forks, the agent that runs one submission.

Started by exec with a cleared environment and two descriptors, so nothing of the trainer's, the judge's or a test's
memory is here to be found: `python -I -S -B -c "..." CONFIG`, where 3 is the judge's control socket. It imports the
modules that it is told to, finds out which layers of isolation work on this machine and says so, then forks: one child is
always ready ahead of its submission. On a byte `n` the server kills and reaps the child in use and hands over the socket of
the next one.

A child takes its own rights away (isolation.py), then answers frames (codec.py) on descriptor 3 until it is killed.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import time
import types
from typing import Any, NoReturn

from jobs.sandbox import isolation
from jobs.sandbox.codec import HEADER, TooLong, digest, dumps, is_huge, loads, pack, unpack

CONTROL, SOCKET = 3, 3
STATUS = struct.Struct("<II")  # the wait status of the child before, the pid of this one


def main() -> None:
    config = json.loads(sys.argv[1])
    sys.argv = [""]
    isolation.prctl(isolation.PR_SET_PDEATHSIG, isolation.SIGKILL)
    if os.getppid() != config["parent"]:
        os._exit(1)
    for name in config["modules"]:
        importlib.import_module(name)
    control = socket.socket(fileno=CONTROL)
    layers = Layers(config)
    if os.geteuid() == 0 and layers.works["unprivileged"]:
        reach_libraries()
    control.sendall(dumps({"layers": layers.works, "missing": layers.missing}))
    rehearse()
    gc.collect()
    gc.freeze()
    layers.inherit()
    fork_for_ever(control, layers)


class Layers:
    """The isolation that works here: prepared once, probed in a child, then applied in every child."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.missing: dict[str, str] = dict.fromkeys(config["without"], "switched off")
        self.ruleset = -1
        self.filter: isolation.Filter | None = None
        self.memory = (config["memory_mib"] << 20) + address_space()
        self.own_limits = isolation.limits(CPU=config["cpu"], NPROC=0)
        self.find("unprivileged")
        self.find("landlock")
        self.find("seccomp")
        self.works = {layer: layer not in self.missing for layer in ("seccomp", "landlock", "unprivileged")}

    def find(self, layer: str) -> None:
        """Prepares and probes one layer, or notes why it is missing."""
        if layer in self.missing:
            return
        try:
            if layer == "landlock":
                self.ruleset = isolation.landlock_prepare(self.config["readable"])
            elif layer == "seccomp":
                # With nothing to guard the files, none may be opened at all.
                program = isolation.seccomp_program(opening="landlock" not in self.missing)
                self.filter, self.buffer = isolation.seccomp_prepare(program)
            error = self.probe(layer)
        except KeyError:
            error = f"no table of system calls for {os.uname().machine}"
        except OSError as failure:
            error = str(failure)
        if error:
            self.missing[layer] = error

    def probe(self, layer: str) -> str:
        """Why `layer` cannot be applied, "" if it can; tried in a child of its own."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                isolation.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1)
                self.apply_one(layer)
                os._exit(0)
            except BaseException as error:
                os.write(writer, (str(error) or type(error).__name__).encode()[:500])
                os._exit(1)
        os.close(writer)
        reason = os.read(reader, 500).decode()
        os.close(reader)
        status = os.waitpid(pid, 0)[1]
        return reason or (f"a child died of it (status {status})" if status else "")

    def apply_one(self, layer: str) -> None:
        if layer == "unprivileged":
            isolation.drop_root()
            if os.getuid() == 0:
                raise PermissionError("still root")
        elif layer == "landlock":
            isolation.landlock_apply(self.ruleset)
        elif layer == "seccomp" and self.filter is not None:
            isolation.seccomp_apply(self.filter)

    def inherit(self) -> None:
        """What children inherit: memory in bytes of address space; no files written, few descriptors; no new rights."""
        isolation.limit(
            isolation.limits(AS=self.memory, FSIZE=0, NOFILE=32, CORE=0, MEMLOCK=0, MSGQUEUE=0, STACK=8 << 20)
        )
        isolation.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1)

    def apply(self, server: int) -> None:
        """All of it, in an order that still allows each step. Errors: OSError, and the child must not go on."""
        isolation.limit(self.own_limits)
        if "unprivileged" not in self.missing:
            isolation.drop_root()
        isolation.prctl(isolation.PR_SET_DUMPABLE, 0)
        isolation.prctl(isolation.PR_SET_PDEATHSIG, isolation.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        if "landlock" not in self.missing:
            isolation.landlock_apply(self.ruleset)
        if self.ruleset >= 0:
            os.close(self.ruleset)
        if "seccomp" not in self.missing and self.filter is not None:
            isolation.seccomp_apply(self.filter)


def reach_libraries() -> None:
    """Lets imports work in children, which are nobody, where root's interpreter lies in a folder closed to others (/root).

    Each such folder of sys.path stays open, and is named by its descriptor from now on: that way leads through no parent.
    What may be read there is still Landlock's to say.
    """
    opened: dict[str, str] = {}

    def renamed(path: str) -> str:
        for folder, name in opened.items():
            if path == folder or path.startswith(folder + "/"):
                return name + path[len(folder) :]
        return path

    for folder in sys.path:
        if os.path.isdir(folder) and renamed(folder) == folder and not open_to_others(folder):
            opened[folder] = f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_CLOEXEC)}"
    sys.path[:] = map(renamed, sys.path)
    for module in list(sys.modules.values()):
        if type(getattr(module, "__path__", None)) is list:
            module.__path__ = list(map(renamed, module.__path__))
    sys.path_importer_cache.clear()


def open_to_others(folder: str) -> bool:
    """Whether every user may list the folder and come by all of its parents."""
    if os.stat(folder).st_mode & 0o005 != 0o005:
        return False
    for path in (os.path.abspath(folder), os.path.realpath(folder)):
        while path != "/":
            path = os.path.dirname(path)
            if not os.stat(path).st_mode & 0o001:
                return False
    return True


def address_space() -> int:
    """Bytes that this process maps already."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# fork(2) without CPython's hooks around it, which is sound in a process that has one thread and holds no lock. The hooks
# touch 190 pages of memory, each of which the child must then copy: more than half of what a bare fork costs. One of them
# seeds `random` anew, which therefore starts alike in every child of a server.
fork = ctypes.PyDLL(None).fork


def fork_for_ever(control: socket.socket, layers: Layers) -> NoReturn:
    server, child = os.getpid(), 0
    while True:
        try:
            command = control.recv(1)
        except ConnectionResetError:  # the judge is gone, and has not taken the last child's socket
            command = b""
        status = 0
        if child:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        if command != b"n":  # the judge is gone
            os._exit(0)
        ours, theirs = socket.socketpair()
        child = fork()
        if child == 0:
            try:
                os.dup2(theirs.fileno(), SOCKET, inheritable=False)  # over the control socket
                control.detach()
                ours.close()
                theirs.close()
                layers.apply(server)
                send({"ready": True})
                serve()
            finally:
                os._exit(0)
        theirs.close()
        with contextlib.suppress(BrokenPipeError):  # the next turn ends it
            socket.send_fds(control, [STATUS.pack(status, child)], [ours.fileno()])
        ours.close()


# ---- the agent, in the child

OBJECTS: list[Any] = []
NUMBERS: dict[int, int] = {}
SUBMISSION = sys.modules["submission"] = types.ModuleType("submission")


def keep(value: Any) -> dict[str, list]:
    """Leaves `value` here and gives the judge a number for it."""
    number = NUMBERS.get(id(value))
    if number is None:
        number = NUMBERS[id(value)] = len(OBJECTS)
        OBJECTS.append(value)
    return {"o": [number, callable(value)]}


def kept(number: int, called: bool) -> Any:
    return OBJECTS[number]


DO: dict[str, Any] = {
    "call": lambda function, arguments, named: function(*arguments, **named),
    "getattr": getattr, "setattr": setattr, "len": len, "iter": iter, "next": next, "bool": bool, "str": str,
    "repr": repr, "int": int, "float": float, "dir": dir,
    "getitem": lambda value, key: value[key],
    "setitem": lambda value, key, item: value.__setitem__(key, item),
}  # fmt: skip


def receive() -> bytes:
    """The text of the next frame. One read takes most whole: the judge sends none before it has the last one's answer."""
    frame = os.read(SOCKET, 1 << 14)
    missing = 4 + HEADER.unpack_from(frame)[0] - len(frame)
    return frame[4:] + read_exactly(missing) if missing else frame[4:]


def read_exactly(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(SOCKET, min(size, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(message: Any) -> None:
    frame = dumps(message)
    while frame:
        frame = frame[os.write(SOCKET, frame) :]


def raised(error: BaseException) -> list:
    """An exception as the names of its classes and a short text."""
    names = [base.__name__ for base in type(error).__mro__[:20]]
    try:
        text = str(error)[:300]
    except BaseException:
        text = ""
    return [[str(name)[:100] for name in names], str.__str__(text)]


def answer(reply: Any) -> None:
    """Sends a reply; one that cannot be sent is an exception of the submission's."""
    try:
        send(reply)
    except (OverflowError, MemoryError, RecursionError, TypeError, ValueError) as error:
        send({"x": raised(error)})


def serve() -> None:
    space = SUBMISSION.__dict__
    while True:
        request = loads(receive())
        try:
            if request["op"] == "load":
                reply = load(request, space)
            elif request["op"] == "tool":
                reply = {"r": carry_out(request["name"], request["payload"])}
            elif request["op"] == "batch":
                batch(space[request["name"]], request["inputs"])
                continue
            else:
                reply = do(request)
        except BaseException as error:
            reply = {"x": raised(error)}
        answer(reply)


def carry_out(name: str, payload: Any) -> Any:
    """One of our own functions on untrusted text: only in a server that was told to import its module."""
    from jobs.sandbox.tools import tool

    return tool(name)(payload)


def load(request: dict, space: dict) -> dict:
    try:
        code = compile(request["code"], "<submission>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return {"invalid": raised(error)}
    exec(code, space)
    return {"r": {name: pack(space[name], keep) for name in request["names"] if name in space}}


def batch(function: Any, inputs: list) -> None:
    """Answers every call with [seconds, value] or [seconds, exception, 0]; fresh arguments for each.

    Seconds of CPU, so that a busy machine changes no verdict; the judge's own clock finds those that sleep.
    """
    clock = time.process_time
    for packed in inputs:
        arguments = unpack(packed)
        start = clock()
        try:
            value = function(*arguments)
            seconds = clock() - start
            send([seconds, digest(value) if is_huge(value) else pack(value, keep)])
            continue
        except TooLong:
            try:
                reply = [clock() - start, digest(value)]
            except BaseException as error:
                reply = [clock() - start, raised(error), 0]
        except BaseException as error:
            reply = [clock() - start, raised(error), 0]
        answer(reply)


def do(request: dict) -> dict:
    packed = request["args"]
    # Unpacking may hand out the very lists of the message, so what they were is kept as text.
    before = dumps(packed[1:]) if request["op"] == "call" else b""
    arguments = [unpack(argument, kept) for argument in packed]
    reply: dict[str, Any] = {"r": pack(DO[request["op"]](*arguments), keep)}
    if before:
        after = [pack(argument, keep) for argument in arguments[1:]]
        if dumps(after) != before:
            reply["m"] = after
    return reply


def rehearse() -> None:
    """Does in the server what children do, so that they inherit specialised bytecode and the interpreter's caches, filled.

    Each child would have to make them anew, and to copy every page that it writes them to.
    """
    code = "from typing import List\n\ndef f(x: List[int]) -> int:\n    return x[0]\n"
    for _ in range(40):
        dumps(load(loads(dumps({"op": "load", "code": code, "names": ["f"]})[4:]), {}))
        dumps(do(loads(dumps({"op": "call", "args": [{"o": [0, True]}, [[1, 2]], {"m": {}}]})[4:])))
    OBJECTS.clear()
    NUMBERS.clear()
