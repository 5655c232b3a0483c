"""The pre-forked server: from it comes, for each submission, a child without rights that runs the agent (agent.py).

Started by exec with a cleared environment and two descriptors, so nothing of the trainer's, the judge's or a test's
memory is here to be found: `python -I -S -B -c "..." CONFIG`, where 3 is the judge's control socket. It imports the
modules that it is told to, finds out which layers of isolation work on this machine and says so, then forks: one child is
always ready ahead of its submission. On a byte `n` the server kills and reaps the child in use and hands over the socket of
the next one.

A child takes its own rights away (isolation.py), then answers the judge (protocol.py) until it is killed.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from jobs.sandbox import agent, isolation, semaphores
from jobs.sandbox.protocol import NEXT, PID, SOCKET, dumps

if TYPE_CHECKING:
    from jobs.sandbox.settings import ServerSettings

THREADS = 64  # what a child may start beyond the number of threads that this machine has already


def main() -> None:
    fork_for_ever(*prepared())


def prepared() -> tuple[socket.socket, "Layers"]:
    """The judge's control socket and the isolation that works here, in a process that is ready to fork children."""
    config: ServerSettings = json.loads(sys.argv[1])
    sys.argv = [""]
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)  # the judge's is its own
    isolation.prctl(isolation.PR_SET_PDEATHSIG, isolation.SIGKILL)
    if os.getppid() != config["parent"]:
        os._exit(1)
    if config["places"]:
        from jobs.sandbox.packages import open_places

        open_places(config["places"])
        sys.path.append(config["folder"])
    sys.modules["_multiprocessing"] = semaphores
    for name in config["modules"]:
        importlib.import_module(name)
    control = socket.socket(fileno=SOCKET)
    layers = Layers(config)
    if os.geteuid() == 0 and layers.works["unprivileged"]:
        reach_libraries()
    control.sendall(dumps({"layers": layers.works, "missing": layers.missing}))
    agent.rehearse()
    gc.collect()
    gc.freeze()
    layers.inherit()
    return control, layers


class Layers:
    """The isolation that works here: prepared once, probed in a child, then applied in every child."""

    def __init__(self, config: "ServerSettings") -> None:
        self.config = config
        self.missing: dict[str, str] = dict.fromkeys(config["without"], "switched off")
        self.ruleset = -1
        self.filter: isolation.Filter | None = None
        self.forking: isolation.Filter | None = None
        self.last: isolation.Filter | None = None
        self.memory = (config["memory_mib"] << 20) + isolation.address_space()
        self.processes = -1.0  # when the limit on processes was last set
        self.find("unprivileged")
        self.find("landlock")
        self.find("seccomp")
        self.works = {layer: layer not in self.missing for layer in ("seccomp", "landlock", "unprivileged")}
        self.count_processes()

    def find(self, layer: str) -> None:
        """Prepares and probes one layer, or notes why it is missing."""
        if layer in self.missing:
            return
        try:
            if layer == "landlock":
                self.ruleset = isolation.landlock_prepare(self.config["readable"], self.config["listable"])
            elif layer == "seccomp":
                # With nothing to guard the files, none may be opened at all.
                opening = "landlock" not in self.missing
                self.filter, self.buffer = isolation.seccomp_prepare(isolation.seccomp_program(opening))
                program = isolation.seccomp_program(opening, forking=True)
                self.forking, self.forking_buffer = isolation.seccomp_prepare(program)
                self.last, self.last_buffer = isolation.seccomp_prepare(isolation.end_forking_program())
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

    def count_processes(self) -> None:
        """Sets the limits that depend on how many threads the machine has: the kernel counts them by user.

        With seccomp a child may start threads and no processes: THREADS more than all there are now, so that none of
        its user's own is in the way and no bomb goes far. Without seccomp it may start none.
        """
        now = time.monotonic()
        if self.processes < 0 or now - self.processes > 1:
            most = THREADS
            with contextlib.suppress(OSError), open("/proc/loadavg") as file:
                most = int(file.read().split()[3].split("/")[1]) + THREADS
            self.own_limits = isolation.limits(CPU=self.config["cpu"], NPROC=0 if "seccomp" in self.missing else most)
            self.stage_limits = isolation.limits(CPU=self.config["cpu"], NPROC=most)
            self.processes = now

    def inherit(self) -> None:
        """What children inherit: memory in bytes of address space; no files written, few descriptors; no new rights."""
        isolation.limit(
            isolation.limits(AS=self.memory, FSIZE=0, NOFILE=32, CORE=0, MEMLOCK=0, MSGQUEUE=0, STACK=8 << 20)
        )
        isolation.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1)

    def apply(self, server: int, forking: bool = False) -> None:
        """All of it, in an order that still allows each step. Errors: OSError, and the child must not go on.

        forking: but for the right to fork, of which `end_forking` takes what comes of it.
        """
        isolation.limit(self.stage_limits if forking else self.own_limits)
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
        chosen = self.forking if forking else self.filter
        if "seccomp" not in self.missing and chosen is not None:
            isolation.seccomp_apply(chosen)

    def fork(self) -> int:
        return fork()

    def end_forking(self, parent: int) -> None:
        """The rest of it, in a process that a child of the server has forked. Errors: OSError."""
        isolation.prctl(isolation.PR_SET_PDEATHSIG, isolation.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if "seccomp" in self.missing:
            isolation.limit(self.own_limits)
        elif self.last is not None:
            isolation.seccomp_apply(self.last)


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


# fork(2) without CPython's hooks around it, which is sound in a process that has one thread and holds no lock. The hooks
# touch 190 pages of memory, each of which the child must then copy: more than half of what a bare fork costs. One of them
# seeds `random` anew, which therefore starts alike in every child of a server.
fork = ctypes.PyDLL(None).fork


def fork_for_ever(
    control: socket.socket, layers: Layers, stage: Callable[[Layers], NoReturn] | None = None
) -> NoReturn:
    """stage: what a child does that forks in its turn; None: it runs one submission (agent.py)."""
    server, child = os.getpid(), 0
    while True:
        try:
            command = control.recv(1)
        except ConnectionResetError:  # the judge is gone, and has not taken the last child's socket
            command = b""
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if stage:
                end_orphans()
        if command != NEXT:  # the judge is gone
            os._exit(0)
        ours, theirs = socket.socketpair()
        layers.count_processes()
        child = fork()
        if child == 0:
            try:
                os.dup2(theirs.fileno(), SOCKET, inheritable=False)  # over the control socket
                control.detach()
                ours.close()
                theirs.close()
                layers.apply(server, forking=stage is not None)
                agent.send({"n": 0, "r": True})
                if stage:
                    stage(layers)
                agent.serve()
            finally:
                os._exit(0)
        theirs.close()
        with contextlib.suppress(BrokenPipeError):  # the next turn ends it
            socket.send_fds(control, [PID.pack(child)], [ours.fileno()])
        ours.close()


def end_orphans() -> None:
    """Kills and reaps what a killed stage has left to this process, its subreaper."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        with contextlib.suppress(OSError), open("/proc/thread-self/children") as file:
            for pid in map(int, file.read().split()):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.0002)
