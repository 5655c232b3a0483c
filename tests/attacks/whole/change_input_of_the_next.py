"""Leaves something for the next run: in its input, in files, in shared memory, in a signal to its parent."""

import os, signal

for act in (
    lambda: os.write(0, b"3\n"),
    lambda: open("answer", "w").write("x"),
    lambda: open("/dev/shm/sandbox-attack-harm", "w"),
    lambda: open("/tmp/sandbox-attack-harm-file", "w"),
    lambda: os.kill(os.getppid(), signal.SIGKILL),
    lambda: os.kill(-1, 9),
):
    try:
        act()
    except OSError:
        pass
