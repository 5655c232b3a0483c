"""Sends a number of a million digits, which takes quadratic time to read."""
import os
import struct


def f(x):
    for text in (b'{"r":' + b"9" * 1_000_000 + b"}", b'[0.0,{"i":"' + b"f" * 4_000_000 + b'"}]'):
        data = struct.pack("<I", len(text)) + text
        while data:
            data = data[os.write(3, data):]
    return 0
