"""Starts threads for ever."""
import threading
import time


def f(x):
    for _ in range(10000):
        try:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        except RuntimeError:
            break
    return 0
