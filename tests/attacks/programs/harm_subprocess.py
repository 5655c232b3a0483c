"""Runs a shell command."""
import subprocess


def f(x):
    try:
        subprocess.run("touch /tmp/sandbox-attack-harm-shell; sleep 1000 &", shell=True)
    except OSError:
        pass
    return 0
