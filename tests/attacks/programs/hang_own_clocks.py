"""Replaces every clock that it can reach, sets timers of its own, and sleeps for ever."""
import signal
import sys
import time


def stopped(*arguments):
    return 0.0


for module in list(sys.modules.values()):
    for name in ("monotonic", "perf_counter", "process_time", "thread_time", "time", "queue_time"):
        if callable(getattr(module, name, None)):
            try:
                setattr(module, name, stopped)
            except (AttributeError, TypeError):
                pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)


def f(x):
    while True:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        signal.setitimer(signal.ITIMER_PROF, 0)
        time.sleep(0.05)
