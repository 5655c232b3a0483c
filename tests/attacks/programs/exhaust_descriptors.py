"""Opens descriptors until there are none."""
import os


def f(x):
    opened = []
    try:
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return 0
