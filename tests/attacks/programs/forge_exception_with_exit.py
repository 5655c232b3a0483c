"""Raises an exception whose text ends the process while it is printed."""
import os


class Loud(Exception):
    def __str__(self):
        os._exit(0)

    __repr__ = __str__


def f(x):
    raise Loud
