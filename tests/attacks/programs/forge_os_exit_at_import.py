"""Leaves by os._exit(0) at import, past every finally."""
import os

os._exit(0)
