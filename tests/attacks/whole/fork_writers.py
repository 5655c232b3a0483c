"""Forks and starts processes that go on writing after the program has ended."""

import os, subprocess

for start in (
    os.fork,
    lambda: subprocess.Popen(["/bin/sh", "-c", "sleep 60"]),
    lambda: os.posix_spawn("/bin/true", ["x"], {}),
):
    try:
        start()
    except Exception:
        pass
os.execv("/bin/echo", ["echo", "471203"])
