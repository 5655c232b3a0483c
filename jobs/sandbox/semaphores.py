"""The semaphores of multiprocessing for the threads of one process: no other can be started here, nor shared memory made.

Stands in the place of `_multiprocessing`, so that `multiprocessing.pool.ThreadPool` and `multiprocessing.dummy` work.
"""

import threading
from typing import Any

RECURSIVE_MUTEX = 0  # the other kind is a semaphore


class SemLock:
    """As CPython's class of that name, without its name in the file system."""

    SEM_VALUE_MAX = (1 << 31) - 1

    def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> None:
        self.kind, self.value, self.maxvalue, self.name, self.handle = kind, value, maxvalue, None, id(self)
        self.free = threading.Condition()
        self.owner, self.held = 0, 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        if self.kind == RECURSIVE_MUTEX and self._is_mine():
            self.held += 1
            return True
        with self.free:
            if not self.free.wait_for(lambda: self.value > 0, (timeout and max(0.0, timeout)) if block else 0):
                return False
            self.value -= 1
            self.owner, self.held = threading.get_ident(), self.held + 1
        return True

    def release(self) -> None:
        if self.kind == RECURSIVE_MUTEX:
            if not self._is_mine():
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self.held > 1:
                self.held -= 1
                return
        with self.free:
            if self.value >= self.maxvalue:
                raise ValueError("semaphore or lock released too many times")
            self.value, self.held = self.value + 1, self.held - 1
            self.free.notify()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exception: Any) -> None:
        self.release()

    def _count(self) -> int:
        return self.held

    def _is_mine(self) -> bool:
        return self.held > 0 and self.owner == threading.get_ident()

    def _get_value(self) -> int:
        return self.value

    def _is_zero(self) -> bool:
        return self.value == 0

    def _after_fork(self) -> None:
        self.held = 0


def sem_unlink(name: str) -> None:
    """There is no name."""
