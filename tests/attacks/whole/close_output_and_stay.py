"""Closes its output and goes on: a judge that waits for the end of the output believes it has ended."""

import os, time

os.close(1)
os.close(2)
time.sleep(60)
