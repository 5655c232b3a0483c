"""Answers the load request itself, many times over, and leaves."""
import json
import os
import struct

text = json.dumps({"r": {"f": {"o": [0, True]}}}).encode()
for _ in range(100):
    os.write(3, struct.pack("<I", len(text)) + text)
os._exit(0)
