"""The sum of a base and its adapters, written tensor by tensor, and what of the update the stored numbers keep.

The sum is base + product in float64, rounded once to the stored type. A float64 sum may differ from one linear algebra
library to the next in its last bits. That moves a stored number only where the exact sum lies that close to halfway
between two of them: about one in 10^12 numbers of 16 bits.
"""

import contextlib
import ctypes
import hashlib
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError
from jobs.common.files import read_json, write_json
from jobs.plumbing.cli import progress
from jobs.plumbing.supervisor import die_with_parent, stops_held_back
from jobs.weights.floats import FLOATS, encoded, finite, float16_of_bfloat16, noise, widened
from jobs.weights.lora import Update
from jobs.weights.safetensors import Tensor, blocks, encode_header, header, shards, tensors_of, write_exactly

if TYPE_CHECKING:
    import numpy as np

WORKERS = 16  # processes at most, each of some 20 MiB beside what they share; one file takes one write at a time
UNIT = 1 << 23  # elements one worker takes at a time
SYNCED_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Storage:
    """How weights are stored: the dtype's safetensors name, and whether BF16 is rounded stochastically from `seed`."""

    dtype: str
    stochastic: bool = False
    seed: int = 0

    def encoded(self, name: str, rows: slice, values: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        if not self.stochastic:
            return encoded(values, self.dtype)
        return encoded(values, self.dtype, noise(stream_key(self.seed, name), rows, values.shape[1]))

    def __str__(self) -> str:
        name = {short: long for long, short in FLOATS.items()}[self.dtype]
        return f"{name} {'stochastic' if self.stochastic else 'nearest'}" if self.dtype == "BF16" else name


@dataclass
class Kept:
    """Sums over elements from which retention is told; u is the update, s what the stored weights changed by."""

    uu: float = 0.0
    su: float = 0.0
    error: float = 0.0  # of s - u, squared
    unchanged: int = 0
    count: int = 0

    def add(self, other: "Kept") -> None:
        self.uu += other.uu
        self.su += other.su
        self.error += other.error
        self.unchanged += other.unchanged
        self.count += other.count

    def is_finite(self) -> bool:
        return math.isfinite(self.uu) and math.isfinite(self.error)

    def figures(self) -> dict[str, float]:
        """retention: the projection of s onto u; relative_error: |s - u| / |u|; unchanged: share of elements stored as
        they would have been without the update; update_rms: of u. An update of zero is kept whole."""
        return {
            "retention": self.su / self.uu if self.uu else 1.0,
            "relative_error": (self.error / self.uu) ** 0.5 if self.uu else 0.0,
            "unchanged": self.unchanged / self.count if self.count else 0.0,
            "update_rms": (self.uu / self.count) ** 0.5 if self.count else 0.0,
        }


Unit = tuple[Tensor, slice]  # rows of a tensor that are computed at once
Work = Callable[[Tensor, slice], Kept]
SHARED: tuple[Work, list[Unit]]  # in a process that computes: what it works on


def stream_key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")


def summed(tensor: Tensor, rows: slice, updates: list[Update]) -> Iterator[tuple]:
    """Block by block of `rows`: (rows, base values, sum, update), arrays (rows, columns), the sum float64, else float32."""
    import numpy as np

    steps = [load() for load in updates]
    for block in blocks(rows, tensor.columns):
        values = tensor.values(block)
        total = start = values.astype(np.float64)
        for step in steps:
            total = step(block, total)
        yield block, values, total, np.subtract(total, start, out=start).astype(np.float32)


def measure(tensor: Tensor, values, rounded, update, storage: Storage) -> Kept:
    """What the `rounded` sum kept of the update. Sums run by row, then in float64: they do not depend on the cores."""
    import numpy as np

    def dot(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))

    # An element is unchanged if it is stored as the base alone would be. Where the storage holds every value of the base
    # (the same dtype, or float32), that is the base's own value.
    if storage.dtype in (tensor.dtype, "F32"):
        same = np.count_nonzero(values == rounded)
    elif (tensor.dtype, storage.dtype) == ("BF16", "F16"):
        odd = np.flatnonzero(np.abs(values) < np.float32(2.0**-17))  # below this float16 may round a bfloat16
        few, result = values.reshape(-1)[odd], rounded.reshape(-1)[odd]
        same = np.count_nonzero(values == rounded) - np.count_nonzero(few == result)
        same += np.count_nonzero(few.astype(np.float16) == result)
    else:
        same = np.count_nonzero(encoded(values, storage.dtype)[0] == rounded)
    with np.errstate(all="ignore"):  # who asks looks whether the sums are finite
        change = rounded - values
        kept = Kept(dot(update, update), dot(change, update), unchanged=int(same), count=values.size)
        change -= update
        kept.error = dot(change, change)
    return kept


def units(tensors: list[Tensor]) -> list[Unit]:
    return [(tensor, rows) for tensor in tensors for rows in blocks(slice(0, tensor.rows), tensor.columns, UNIT)]


def keep_freed_memory() -> None:
    """Has glibc keep what blocks of arrays free, for the next block's.

    By default it gives every array back to the kernel and asks for it again, page by page, which takes longer than the
    arithmetic on it. Another libc has no such call, and does as it does.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


def pooled(
    work: Work, todo: list[Unit], label: str, handles: Sequence[int] = (), beside: Callable[[], Any] = int
) -> tuple[dict[str, Kept], Any]:
    """`work` on every unit: the results by tensor, summed in order, and what `beside` returns.

    handles: of the files that `work` writes. beside: computed meanwhile, where there is time for it.
    """
    kept: dict[str, Kept] = {}
    elements = [(rows.stop - rows.start) * tensor.columns for tensor, rows in todo]
    with (
        computed(work, todo, sum(elements), beside) as (results, other),
        synced(handles),
        progress(total=sum(elements), label=label) as bar,
    ):
        for (tensor, _), count, result in zip(todo, elements, results, strict=True):
            kept.setdefault(tensor.name, Kept()).add(result)
            bar.update(count)
        return kept, other()


@contextlib.contextmanager
def computed(
    work: Work, todo: list[Unit], elements: int, beside: Callable[[], Any]
) -> Iterator[tuple[Iterator[Kept], Callable[[], Any]]]:
    """The results of `work` on each unit in order, and what gives that of `beside`: by a process a core.

    By processes, because threads would wait for the interpreter between numpy's calls on a block, which are short. They are
    forked here, before this process has other threads, and so know `work` and what it needs.
    Errors: JobError where one of them is killed.
    """
    if elements <= UNIT:
        yield (work(*unit) for unit in todo), beside
        return
    keep_freed_memory()
    others = set(multiprocessing.active_children())
    count = min(WORKERS, len(os.sched_getaffinity(0)), len(todo)) + 1  # one for `beside`
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), begin, (os.getpid(), work, todo))
    try:
        with stops_held_back():
            other = pool.submit(beside)  # forks them all
        futures = [pool.submit(of_unit, i) for i in range(len(todo))]
        yield (future.result() for future in futures), other.result
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise JobError("a process that computed the sum was killed, as it is for want of memory") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin(parent: int, work: Work, todo: list[Unit]) -> None:
    """In a new process of `parent`: what it is to work on."""
    global SHARED
    die_with_parent(parent)
    SHARED = work, todo


def of_unit(number: int) -> Kept:
    work, todo = SHARED
    return work(*todo[number])


@contextlib.contextmanager
def synced(handles: Sequence[int]) -> Iterator[None]:
    """Has the disk write what was given to the files while more is computed, where it would all be left for the end.

    Errors: OSError if something could not be written; who syncs the file later is not told again.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(SYNCED_EVERY):
            for handle in handles:
                os.fdatasync(handle)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield
        finally:
            ended.set()
        working.result()


def write_model(
    base: Path, updates: dict[str, list[Update]], storage: Storage, out: Path, beside: Callable[[], Any] = int
) -> tuple[dict[str, Kept], Any]:
    """Writes base + updates to `out`, shard by shard under the base's names, with an index if the base has one.

    Returns what was kept of each changed tensor, and what `beside` returns, which is computed meanwhile and can be pickled.
    Errors: JobError naming a tensor whose sum does not fit the dtype.
    """
    places: dict[str, tuple[int, int]] = {}  # of a tensor's bytes: the file's handle, and where they begin
    todo: list[Unit] = []
    handles, heads = [], 0
    with contextlib.ExitStack() as files:
        for file in shards(base):
            metadata, tensors = header(file)
            dtypes = [storage.dtype if t.dtype in FLOATS.values() else t.dtype for t in tensors]
            head, starts = encode_header(tensors, dtypes, metadata)
            handles.append(files.enter_context(open(out / file.name, "wb")).fileno())
            write_exactly(handles[-1], head, 0)
            heads += len(head)
            places |= {tensor.name: (handles[-1], start) for tensor, start in zip(tensors, starts, strict=True)}
            todo += units(tensors)

        def work(tensor: Tensor, rows: slice) -> Kept:
            return write_rows(tensor, rows, updates.get(tensor.name, []), storage, *places[tensor.name])

        kept, found = pooled(work, todo, "write weights", handles, beside)
        size = sum(os.fstat(handle).st_size for handle in handles) - heads
    if (base / "model.safetensors.index.json").exists():
        index = read_json(base / "model.safetensors.index.json")
        index.setdefault("metadata", {})["total_size"] = size
        write_json(out / "model.safetensors.index.json", index)
    return {name: part for name, part in kept.items() if name in updates}, found


def write_rows(tensor: Tensor, rows: slice, updates: list[Update], storage: Storage, handle: int, start: int) -> Kept:
    kept = Kept()
    if not updates:
        write_unchanged(tensor, rows, storage, handle, start)
        return kept
    for block, values, total, update in summed(tensor, rows, updates):
        rounded, stored = storage.encoded(tensor.name, block, total)
        part = measure(tensor, values, rounded, update, storage)
        if not part.is_finite():  # a number that is not makes a sum that is not
            check_finite(stored, total, tensor, storage)
        write_exactly(handle, stored, start + block.start * tensor.columns * stored.itemsize)
        kept.add(part)
    return kept


def write_unchanged(tensor: Tensor, rows: slice, storage: Storage, handle: int, start: int) -> None:
    """Writes rows that no adapter changes, three quarters of a model: their bytes as they are where the dtype allows."""
    import numpy as np

    if tensor.dtype == storage.dtype or tensor.dtype not in FLOATS.values():
        width = tensor.nbytes // max(1, tensor.rows)
        for block in blocks(rows, tensor.columns):
            write_exactly(handle, tensor.read(block), start + block.start * width)
        return
    for block in blocks(rows, tensor.columns):
        if (tensor.dtype, storage.dtype) == ("BF16", "F16"):
            bits = np.frombuffer(tensor.read(block), np.uint16)
            stored = float16_of_bfloat16(bits)
            check_finite(stored, bits, tensor, storage)
        else:
            values = tensor.values(block)
            _, stored = storage.encoded(tensor.name, block, values)
            check_finite(stored, values, tensor, storage)
        write_exactly(handle, stored, start + block.start * tensor.columns * stored.itemsize)


def check_finite(stored: "np.ndarray", values: "np.ndarray", tensor: Tensor, storage: Storage) -> None:
    """Errors: JobError naming the tensor and the largest of the `values`, if one of them is none or did not fit the dtype.

    values: as `encoded` takes them, in which a nan is looked for as well, or bfloat16's bits, of which none is lost.
    """
    if not finite(stored) or (values.dtype.kind == "f" and not finite(values)):
        largest = abs(widened(values)).max()
        if not largest < float("inf"):  # what cannot be compared is no smaller
            raise JobError(f"{tensor.file}: {tensor.name} is not finite, by itself or with the adapters")
        raise JobError(f"{tensor.file}: {tensor.name} does not fit {storage}: its largest magnitude is {largest:.6g}")


def retained(base: Path, updates: dict[str, list[Update]], storage: Storage) -> dict[str, Kept]:
    """What each changed tensor would keep if stored so; writes nothing."""

    def work(tensor: Tensor, rows: slice) -> Kept:
        kept = Kept()
        for block, values, total, update in summed(tensor, rows, updates[tensor.name]):
            rounded, stored = storage.encoded(tensor.name, block, total)
            kept.add(
                measure(tensor, values, rounded, update, storage) if finite(stored) else Kept(uu=1.0, su=float("-inf"))
            )
        return kept

    kept, _ = pooled(work, units([t for t in tensors_of(base).values() if t.name in updates]), f"measure {storage}")
    return kept


def sum_of(kept: dict[str, Kept]) -> Kept:
    total = Kept()
    for part in kept.values():
        total.add(part)
    return total
