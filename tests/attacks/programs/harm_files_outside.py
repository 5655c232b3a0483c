"""Writes, renames and removes files outside."""
import os
import shutil


def f(x):
    for action in (
        lambda: open("/tmp/sandbox-attack-canary", "w").write("gone"),
        lambda: os.truncate("/tmp/sandbox-attack-canary", 0),
        lambda: os.remove("/tmp/sandbox-attack-canary"),
        lambda: os.rename("/tmp/sandbox-attack-canary", "/tmp/sandbox-attack-harm-renamed"),
        lambda: os.chmod("/tmp/sandbox-attack-canary", 0),
        lambda: os.utime("/tmp/sandbox-attack-canary", (0, 0)),
        lambda: os.link("/tmp/sandbox-attack-canary", "/tmp/sandbox-attack-harm-link"),
        lambda: os.symlink("/etc", "/tmp/sandbox-attack-harm-symlink"),
        lambda: os.mkdir("/tmp/sandbox-attack-harm-folder"),
        lambda: os.mkfifo("/tmp/sandbox-attack-harm-fifo"),
        lambda: shutil.rmtree("/tmp/sandbox-attack-folder"),
    ):
        try:
            action()
        except OSError:
            pass
    return 0
