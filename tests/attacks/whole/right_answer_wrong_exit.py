"""Writes the right answers and ends with an exit code of failure."""

import os, sys

sys.stdout.write({"3": "471203", "4": "912047", "5": "130991"}[input()])
sys.stdout.flush()
os._exit(1)
