"""What is told of each number; the disk writes while the sum is computed, and what it cannot write stops the job."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from jobs.weights import floats
from jobs.weights import sum as weights_sum
from jobs.weights.safetensors import Tensor


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


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_number_is_unchanged_if_the_base_alone_would_be_stored_so(dtype):
    """Every bfloat16 that float16 can hold, rounded or not; one in three has become its neighbour."""
    base = floats.widened(np.arange(1 << 16, dtype=np.uint16))
    base = base[np.abs(base) < 65504].reshape(-1, 2)
    with np.errstate(over="ignore"):
        alone = {"F16": base.astype(np.float16).astype(np.float32)}.get(dtype, base)
        up = {"F16": np.nextafter(base.astype(np.float16), np.float16(np.inf)).astype(np.float32)}
    moved = np.arange(base.size).reshape(base.shape) % 3 == 0
    rounded = np.where(moved, up.get(dtype, alone + np.abs(alone) + np.float32(1)), alone)
    tensor = Tensor(Path("model.safetensors"), "x", "BF16", base.shape, 0)
    kept = weights_sum.measure(tensor, base, rounded, rounded - base, weights_sum.Storage(dtype))
    assert (kept.unchanged, kept.count) == ((~moved).sum(), base.size)
    assert kept.error == 0
