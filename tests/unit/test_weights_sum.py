"""The disk writes while the sum is computed, and what it cannot write stops the job."""

import errno
import os
import threading

import pytest

from jobs.weights import sum as weights_sum


def test_the_disk_writes_before_the_end(tmp_path, monkeypatch):
    told, sync = threading.Event(), os.fdatasync

    def counted(handle: int) -> None:
        sync(handle)
        told.set()

    monkeypatch.setattr(os, "fdatasync", counted)
    monkeypatch.setattr(weights_sum, "SYNCED_EVERY", 0.01)
    with open(tmp_path / "file", "wb") as file, weights_sum.synced([file.fileno()]):
        file.write(b"1")
        assert told.wait(60)
        file.write(b"2")
    assert (tmp_path / "file").read_bytes() == b"12"


def test_what_the_disk_cannot_write_is_an_error_though_it_is_told_only_once(tmp_path, monkeypatch):
    told = threading.Event()

    def full(handle: int) -> None:
        told.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    monkeypatch.setattr(weights_sum, "SYNCED_EVERY", 0.01)
    with (
        open(tmp_path / "file", "wb") as file,
        pytest.raises(OSError, match="No space left"),
        weights_sum.synced([file.fileno()]),
    ):
        assert told.wait(60)


def test_an_error_of_the_sum_is_not_hidden_by_the_disks(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_sum, "SYNCED_EVERY", 0.01)
    with (
        open(tmp_path / "file", "wb") as file,
        pytest.raises(ValueError, match="does not fit"),
        weights_sum.synced([file.fileno()]),
    ):
        raise ValueError("does not fit")
