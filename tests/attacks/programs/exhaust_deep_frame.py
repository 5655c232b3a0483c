"""Sends a message nested a hundred thousand deep."""
import os
import struct


def f(x):
    text = b"[" * 100_000 + b"]" * 100_000
    os.write(3, struct.pack("<I", len(text)) + text)
    return 0
