"""What a bench's case starts: within a time limit, with a log, ended whole; two 'machines' made of network namespaces."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.bench.gpu_jobs import ENVIRONMENT


class Failed(Exception):
    """A process of the case ended badly, or the case's time was over."""


class Case:
    """One case of a bench, in a folder of its own. limit: seconds that it has in all.

    Everything that it starts carries a mark in its environment, by which it is found however it was started.
    """

    def __init__(self, name: str, work: Path, limit: float) -> None:
        self.name, self.folder, self.logs = name, work / name, work / "logs"
        self.deadline = time.monotonic() + limit
        self.mark = ("BENCH_CASE", f"{name}-{os.getpid()}-{time.time_ns()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)

    def log(self, name: str = "") -> Path:
        return self.logs / f"{'-'.join(filter(None, (self.name, name)))}.log"

    def left(self) -> float:
        """Seconds until its time is over."""
        return max(0.1, self.deadline - time.monotonic())

    def start(self, words: list, log: Path, folder: Path | None = None, **around: str) -> subprocess.Popen:
        """A command in `folder` (default: the case's), its output in the log."""
        environment = ENVIRONMENT | around | dict([self.mark])
        with open(log, "w") as file:
            return subprocess.Popen(
                list(map(str, words)), cwd=folder or self.folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=environment, start_new_session=True)  # fmt: skip

    def wait(self, process: subprocess.Popen, log: Path) -> None:
        """Errors: Failed, with the end of the log."""
        try:
            code = process.wait(timeout=self.left())
        except subprocess.TimeoutExpired:
            raise Failed(f"the case's time was over: {tail(log)}") from None
        if code:
            raise Failed(f"exit code {code}: {tail(log)}")

    def run(self, words: list, log: Path, folder: Path | None = None, **around: str) -> None:
        self.wait(self.start(words, log, folder, **around), log)

    def processes(self) -> dict[int, str]:
        """What it has started, whoever started it, by number; a sandbox's by the command, which names the folder.

        A shell that has started this process may name the folder as well, and is left out.
        """
        found, mark = {}, "=".join(self.mark).encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if words and (mark in (entry / "environ").read_bytes() or str(self.folder).encode() in words):
                    found[int(entry.name)] = words.decode(errors="replace").replace("\0", " ")[:100]
        above = ancestry()
        return {pid: words for pid, words in found.items() if pid not in above}

    def settled(self, seconds: float = 3.0) -> list[str]:
        """The commands that still run so long after the case's last word."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        return list(left.values())

    def end(self) -> None:
        for _ in range(50):
            if not (left := self.processes()):
                return
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def ancestry() -> set[int]:
    """The numbers of this process and of all above it."""
    found, pid = set(), os.getpid()
    while pid:
        found.add(pid)
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.split("\nPPid:")[1].split()[0])
    return found


def tail(log: Path, lines: int = 12) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-lines:])[-2000:] if log.exists() else ""


class Loopback:
    """Two 'machines' that are this one. why: what forbids better ones."""

    ADDRESS, INTERFACE = "127.0.0.1", "lo"

    def __init__(self, why: str) -> None:
        self.kind = f"one loopback for both, since there are no namespaces here: {why}"

    def enter(self, number: int) -> list[str]:
        """What a command on machine 0 or 1 begins with."""
        return []

    def remove(self) -> None:
        pass


class Namespaces(Loopback):
    """Two network namespaces, joined by a pair of virtual Ethernet cards and by nothing else."""

    NAMES, ADDRESSES = ("bench0", "bench1"), ("10.78.0.1", "10.78.0.2")
    ADDRESS, INTERFACE = ADDRESSES[0], "eth0"

    def __init__(self) -> None:
        self.kind = "two network namespaces joined by a veth pair"

    def make(self) -> None:
        """Errors: Failed saying what this machine does not permit; nothing is left then."""
        first, second = self.NAMES
        steps = [f"netns add {name}" for name in self.NAMES]
        steps.append(f"link add eth0 netns {first} type veth peer name eth0 netns {second}")
        for name, address in zip(self.NAMES, self.ADDRESSES, strict=True):
            steps += [f"-n {name} address add {address}/24 dev eth0", f"-n {name} link set eth0 up"]
            steps.append(f"-n {name} link set lo up")
        for program in ("ip", "nsenter"):
            if not shutil.which(program):
                raise Failed(f"no {program} on this machine")
        for words in steps:
            done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
            if done.returncode:
                self.remove()
                raise Failed(f"`ip {words}`: {' '.join(done.stderr.split())}")

    def enter(self, number: int) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.NAMES[number]}"]

    def remove(self) -> None:
        for name in self.NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextlib.contextmanager
def two_machines():
    """Namespaces if this machine permits them, else Loopback."""
    found: Loopback = Namespaces()
    try:
        found.make()
    except Failed as error:
        found = Loopback(str(error))
    try:
        yield found
    finally:
        found.remove()
