"""Sleeps a little less than a test's limit in every call."""
import time


def f(x):
    time.sleep(0.9)
    return 0
