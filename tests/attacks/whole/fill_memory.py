"""Takes all the memory there is, in itself and in the file that is its input."""

import mmap, os

try:
    os.ftruncate(0, 1 << 40)
except OSError:
    pass
try:
    os.pwrite(0, b"x" * (1 << 24), 0)
except OSError:
    pass
keep = []
while True:
    keep.append(bytearray(1 << 26))
