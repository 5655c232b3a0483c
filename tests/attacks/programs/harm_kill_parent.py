"""Kills its parent and grandparents."""
import os
import signal


def f(x):
    for pid in range(os.getppid() - 3, os.getppid() + 1):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except OSError:
                pass
    return 0
