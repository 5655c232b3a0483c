"""Becomes another program."""
import os


def f(x):
    for path in ("/bin/sh", "/usr/bin/sh"):
        try:
            os.execv(path, ["sh", "-c", "touch /tmp/sandbox-attack-harm-exec; sleep 1000"])
        except OSError:
            pass
    return 0
