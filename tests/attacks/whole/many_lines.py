"""Writes as many lines as it may, for a comparison line by line."""

import sys

sys.stdout.write("\n" * 1000000)
sys.stdout.write(" " * 40000)
