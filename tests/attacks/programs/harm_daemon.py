"""Leaves a daemon behind that writes files later."""
import os
import time


def f(x):
    try:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3)
                open("/tmp/sandbox-attack-harm-daemon", "w").close()
            os._exit(0)
    except OSError:
        pass
    return 0
