"""The semaphores that stand in for multiprocessing's behave as CPython's, in whatever threads use them."""

import threading

import pytest

_multiprocessing = pytest.importorskip("_multiprocessing")
from jobs.sandbox.semaphores import SemLock  # noqa: E402


@pytest.fixture(params=["ours", "theirs"])
def made(request, tmp_path):
    kind = SemLock if request.param == "ours" else _multiprocessing.SemLock

    def make(recursive, value, most):
        return kind(0 if recursive else 1, value, most, f"/test-{tmp_path.name}-{threading.get_ident()}", True)

    return make


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_semaphore_is_counted(made):
    seats = made(False, 2, 2)
    assert [seats.acquire(False) for _ in range(3)] == [True, True, False]
    assert (seats._get_value(), seats._is_zero(), seats._count()) == (0, True, 2)
    assert not seats.acquire(True, 0.01)
    seats.release()
    assert in_a_thread(lambda: seats.acquire(True, 0.01))
    for _ in range(2):
        seats.release()
    with pytest.raises(ValueError, match="released too many times"):
        seats.release()


def test_a_recursive_lock_is_its_owners(made):
    lock = made(True, 1, 1)
    with lock, lock:
        assert (lock._is_mine(), lock._count()) == (True, 2)
        assert not in_a_thread(lambda: lock.acquire(False))
        assert not in_a_thread(lock._is_mine)
    assert (lock._is_mine(), lock._get_value()) == (False, 1)
    with pytest.raises(AssertionError, match="not owned by thread"):
        lock.release()


def test_what_waits_goes_on_when_another_thread_releases(made):
    gate = made(False, 0, 1)
    waiting = threading.Thread(target=gate.acquire)
    waiting.start()
    gate.release()
    waiting.join(10)
    assert not waiting.is_alive()
