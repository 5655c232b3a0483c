"""Has the judge build a dictionary of colliding keys, by frames written by hand."""
import json
import os
import struct


def f(x):
    items = [i * (2**61 - 1) for i in range(1, 100000)]
    for message in ({"r": {"s": items}}, [0.0, {"s": items}]):
        text = json.dumps(message).encode()
        data = struct.pack("<I", len(text)) + text
        while data:
            data = data[os.write(3, data):]
    return 0
