"""Begins a message of the protocol and never ends it."""
import os
import time


def f(x):
    os.write(3, b"\xff\xff\0\0[")
    time.sleep(1000)
