"""Has a timer's handler leave in the middle of the harness."""
import os
import signal

signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

def f(x):
    return 0
