"""Ends with status 0 in the call."""
import sys


def f(x):
    sys.exit(0)
