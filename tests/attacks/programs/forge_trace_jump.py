"""Sets a trace function that jumps over lines of whoever called."""
import sys


def trace(frame, event, argument):
    try:
        frame.f_lineno += 1
    except Exception:
        pass
    return trace


def f(x):
    frame = sys._getframe()
    while frame:
        frame.f_trace = trace
        frame = frame.f_back
    sys.settrace(trace)
    return 0
