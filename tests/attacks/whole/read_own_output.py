"""Reads its own standard output and error back, where both ends of the pipe were inherited."""

import os

for fd in (1, 2):
    try:
        os.set_blocking(fd, False)
        os.write(1, os.read(fd, 1 << 16))
    except OSError:
        pass
