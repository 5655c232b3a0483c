"""Ignores every signal and sleeps."""
import signal
import time

for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def f(x):
    while True:
        time.sleep(1000)
