"""A job that does what it should not, in the place of jobs/__main__.py for test_containers.py: prints what worked."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def succeeds(action, *arguments) -> bool:
    try:
        return action(*arguments) is not False
    except (OSError, subprocess.SubprocessError):
        return False


def connects(address: tuple[str, int]) -> bool:
    with socket.create_connection(address, timeout=3):
        return True


def system_call(number: int, *arguments) -> bool:
    return ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) >= 0


def wrote() -> list[str]:
    """The places outside the outputs that could be written, /tmp and /hf apart: these two are gone with the container."""
    places = ["/etc", "/usr/bin", "/opt/venv", "/opt/venv/bin", "/hf/hub", "/hf/datasets", "/", "/sys/fs/cgroup",
              "/proc/sys/kernel", "/dev", "/repo", "/repo/jobs", "/repo/docker", "/repo/data/smoke", "/repo/.git",
              "/repo/.dvc"]  # fmt: skip
    found = [place for place in places if succeeds(Path(place, "hostile").write_text, "x")]
    for name in ("params.yaml", "jobs/__init__.py", "docker/run", ".env", ".dvc/config.local"):
        if Path(name).read_text() and succeeds(open, name, "a"):
            found.append(name)
    return found


def reached(addresses: list[str]) -> list[str]:
    """The addresses that could be connected to, beside names that were resolved and raw sockets."""
    found = [a for a in addresses if succeeds(connects, (a.rpartition(":")[0], int(a.rpartition(":")[2])))]
    if succeeds(socket.getaddrinfo, "example.org", 80):
        found.append("dns")
    for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW)):
        if succeeds(socket.socket, family, kind, socket.IPPROTO_ICMP if family == socket.AF_INET else 0):
            found.append(f"raw socket {family.name}")
    found += [str(path) for path in (Path("/var/run/docker.sock"), Path("/run/docker.sock")) if path.exists()]
    return found


def became() -> list[str]:
    """The rights that could be gained."""
    su = ["su", "-c", "true"]
    attempts = {
        "root": lambda: os.setuid(0),
        "root by su": lambda: subprocess.run(su, stdin=subprocess.DEVNULL, check=True, timeout=5, capture_output=True),
        "mount": lambda: system_call(165, b"none", b"/tmp", b"tmpfs", 0, None),
        "user namespace": lambda: system_call(272, 0x10000000),
        "chroot": lambda: os.chroot("/tmp"),
        "device": lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(254, 0)),
        "module": lambda: system_call(313, -1, b"", 0),
        "host name": lambda: socket.sethostname("hostile"),
        "priority": lambda: os.nice(-5),
        "bpf": lambda: system_call(321, 0, None, 0),
        "keyring": lambda: system_call(250, 0, -3, 1),
    }
    return [name for name, attempt in attempts.items() if in_a_child(attempt)]


def in_a_child(attempt) -> bool:
    """Whether it worked, without its effects (a changed root, say) on what follows."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if succeeds(attempt) else 1)
    return os.waitpid(pid, 0)[1] == 0


def read() -> str:
    """All the text that could hold a secret."""
    texts = [json.dumps(dict(os.environ))]
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            succeeds(lambda p=process / name: texts.append(p.read_text(errors="replace")))
    for root in (".git", ".dvc", ".env", "/hf", "/run/secrets", "/root", "/home"):
        for path in [Path(root), *(Path(root).rglob("*") if Path(root).is_dir() else [])]:
            if path.is_file():
                succeeds(lambda p=path: texts.append(p.read_text(errors="replace")))
    return "\n".join(texts)


def forks(limit: int) -> int:
    """How many processes could be started before the kernel refused; they end with their parent's pipe."""
    reader, writer = os.pipe()
    started = 0
    try:
        while started < limit:
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            started += 1
    except OSError:
        pass
    os.close(writer)
    return started


def status(name: str) -> str:
    text = Path("/proc/self/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    _job, mode, *rest = sys.argv[1:]
    if mode == "report":
        print(json.dumps({
            "wrote": wrote(), "reached": reached(rest), "became": became(), "read": read(),
            "interfaces": sorted(name for _, name in socket.if_nameindex()), "uid": os.getuid(), "gid": os.getgid(),
            "groups": os.getgroups(), "capabilities": status("CapEff"), "bounding": status("CapBnd"),
            "no_new_privileges": status("NoNewPrivs"), "seccomp": status("Seccomp")}))  # fmt: skip
    elif mode == "forks":
        print(forks(100_000))
    elif mode == "write":
        Path(rest[0]).write_text("written\n")
    elif mode == "sleep":
        Path("reports/started").touch()
        try:
            time.sleep(600)
        finally:
            Path("reports/ended").touch()
    elif mode == "deaf":
        import signal

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        Path("reports/started").touch()
        time.sleep(600)
