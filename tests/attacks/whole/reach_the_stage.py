"""Tries to end, stop, trace and read the process that has forked it, to outlive it, and to fork again."""

import ctypes
import os
import signal

libc = ctypes.CDLL(None, use_errno=True)
stage = os.getppid()
for attempt in (
    lambda: os.kill(stage, signal.SIGKILL),
    lambda: os.kill(0, signal.SIGKILL),
    lambda: os.kill(-1, signal.SIGSTOP),
    lambda: signal.pidfd_send_signal(os.pidfd_open(stage), signal.SIGKILL),
    lambda: libc.prctl(1, 0, 0, 0, 0),  # no signal at its parent's death
    lambda: libc.prctl(36, 1, 0, 0, 0),  # to be a subreaper
    lambda: libc.ptrace(16, stage, 0, 0),
    lambda: print(open(f"/proc/{stage}/mem", "rb").read(100)),
    lambda: print(os.listdir(f"/proc/{stage}/fd")),
    lambda: os.dup2(1, 3),
    lambda: os.write(3, (0).to_bytes(8, "little")),
    lambda: os.fork() or os._exit(0),
    lambda: os.setsid(),
    lambda: os.wait(),
):
    try:
        attempt()
    except (OSError, AttributeError):
        pass
print(471203)
print(912047)
