"""Safetensors read and written by the block, and the three float formats weights are stored in; numpy alone.

No file is mapped or read whole, so memory does not grow with the model: mapped pages would count as the job's own.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.errors import JobError
from jobs.common.files import read_json

if TYPE_CHECKING:
    import numpy as np

WIDTH = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
FLOATS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
DROPPED = {"F16": 13, "BF16": 16}  # bits of float32's significand that are rounded away
BLOCK = 1 << 18  # elements: a block's few float32 arrays stay in the core's cache
HEADER_LIMIT = 100_000_000  # the safetensors library's own


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file: `start` is the offset of its bytes in `file`."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def columns(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def rows(self) -> int:
        """Rows of `columns` elements; a vector of n elements is n rows of one."""
        size = 1
        for length in self.shape:
            size *= length
        return size // self.columns if self.columns else 0

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * WIDTH[self.dtype]

    def read(self, rows: slice) -> bytes:
        """The raw bytes of `rows`."""
        width = self.columns * WIDTH[self.dtype]
        return read_exactly(self.file, self.start + rows.start * width, (rows.stop - rows.start) * width)

    def values(self, rows: slice | None = None) -> "np.ndarray":
        """float32 array of shape (rows, columns). Errors: JobError if the tensor is not F32, F16 or BF16."""
        rows = rows or slice(0, self.rows)
        return decoded(self.read(rows), self.dtype, self.name).reshape(rows.stop - rows.start, self.columns)


def read_exactly(path: Path, start: int, count: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while count:
            part = os.pread(handle, count, start)
            if not part:
                raise JobError(f"{path}: ends at byte {start}, {count} bytes before its last tensor does")
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(handle)


def write_exactly(handle: int, data, start: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, start)
        view, start = view[written:], start + written


def header(path: Path) -> tuple[dict[str, str], list[Tensor]]:
    """A safetensors file's metadata and its tensors in the order of their bytes.

    Errors: JobError naming the file if the header is broken, or its offsets do not tile the file exactly.
    """
    try:
        length = int.from_bytes(read_exactly(path, 0, 8), "little")
        if length > min(HEADER_LIMIT, path.stat().st_size):
            raise JobError(f"{path}: is not a safetensors file (a header of {length} bytes)")
        entries = json.loads(read_exactly(path, 8, length))
        metadata = entries.pop("__metadata__", {})
        tensors = [
            Tensor(path, name, e["dtype"], tuple(e["shape"]), 8 + length + e["data_offsets"][0])
            for name, e in entries.items()
        ]
        unknown = sorted({t.dtype for t in tensors} - set(WIDTH))
        if unknown:
            raise JobError(f"{path}: holds tensors of unknown type {', '.join(unknown)}")
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise JobError(f"{path}: has a broken safetensors header ({error!r})") from None
    tensors.sort(key=lambda t: (t.start, t.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            raise JobError(f"{path}: {tensor.name} starts at byte {tensor.start}, not at {end} as the shapes say")
        end += tensor.nbytes
    if end != path.stat().st_size:
        raise JobError(f"{path}: is {path.stat().st_size} bytes long, not {end} as its header says")
    return metadata, tensors


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, checked against its index if it has one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").exists():
            raise JobError(f"{folder}: has neither model.safetensors nor model.safetensors.index.json")
        return [folder / "model.safetensors"]
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise JobError(f"{index}: has no weight_map")
    files = [folder / name for name in sorted(set(where.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise JobError(f"{index}: names {', '.join(missing)}, which {folder} lacks")
    held = {tensor.name: file.name for file in files for tensor in header(file)[1]}
    if held != where:
        odd = sorted(name for name in held.keys() | where.keys() if held.get(name) != where.get(name))
        raise JobError(f"{index}: does not agree with the files about {', '.join(odd[:3])}")
    return files


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder by name."""
    return {tensor.name: tensor for file in shards(folder) for tensor in header(file)[1]}


def encode_header(tensors: list[Tensor], dtypes: list[str], metadata: dict[str, str]) -> tuple[bytes, list[int]]:
    """The header of a file holding `tensors` in this order as `dtypes`, and each tensor's offset in that file."""
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    starts, start = [], 0
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        end = start + tensor.rows * tensor.columns * WIDTH[dtype]
        entries[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        starts.append(start)
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    return len(text).to_bytes(8, "little") + text, [8 + len(text) + start for start in starts]


def blocks(rows: slice, columns: int, elements: int = BLOCK) -> Iterator[slice]:
    """`rows` cut into runs of about `elements` elements."""
    step = max(1, elements // max(1, columns))
    for first in range(rows.start, rows.stop, step):
        yield slice(first, min(first + step, rows.stop))


def decoded(raw: bytes, dtype: str, name: str) -> "np.ndarray":
    """`raw` as float32; all three formats convert without loss."""
    import numpy as np

    held = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    if dtype not in held:
        raise JobError(f"{name}: is stored as {dtype}; only F32, F16 and BF16 can be added to or converted")
    return widened(np.frombuffer(raw, held[dtype]))


def widened(stored: "np.ndarray") -> "np.ndarray":
    """float32 or float16 values, or bfloat16's bits as uint16, as float32."""
    import numpy as np

    if stored.dtype != np.uint16:
        return stored.astype(np.float32, copy=False)
    wide = stored.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def encoded(values: "np.ndarray", dtype: str, noise: "np.ndarray | None" = None) -> tuple["np.ndarray", "np.ndarray"]:
    """float32 `values` rounded to `dtype`: to nearest even, or BF16 by `noise`, one uniform uint16 an element.

    Returns the rounded values in float32, and as they are stored: float32, float16, or uint16 holding bfloat16's bits,
    all of the same shape. A value too large for F16 is 65,536 or more in the first and inf in the second.

    numpy's own conversions to and from float16 go element by element; integer arithmetic takes many at once.
    """
    import numpy as np

    if dtype == "F32":
        return values, values
    bits = np.ascontiguousarray(values).view(np.uint32)
    dropped = DROPPED[dtype]
    if noise is None:  # half of the last kept bit, and that bit itself to break ties to even
        up = bits >> np.uint32(dropped)
        up &= np.uint32(1)
        up += np.uint32((1 << dropped - 1) - 1)
    else:
        up = noise.astype(np.uint32)
    up += bits
    up &= np.uint32(0xFFFFFFFF ^ ((1 << dropped) - 1))
    rounded = up.view(np.float32)
    if dtype == "BF16":
        return rounded, (up >> np.uint32(16)).astype(np.uint16)
    half = (up >> np.uint32(13)).astype(np.uint16)
    half -= np.uint16(112 << 10 & 0xFFFF)  # the biases differ by 112
    half &= np.uint16(0x7FFF)
    top = (up >> np.uint32(16)).astype(np.uint16)
    half |= top & np.uint16(0x8000)
    stored = half.view(np.float16)
    odd = beyond_float16(top)
    with np.errstate(over="ignore"):
        stored.reshape(-1)[odd] = values.reshape(-1)[odd].astype(np.float16)
    rounded.reshape(-1)[odd] = stored.reshape(-1)[odd].astype(np.float32)
    return rounded, stored


def near_a_tie(values: "np.ndarray", slack: "np.ndarray", dtype: str) -> "np.ndarray":
    """Flat indices of float32 `values`, (rows, columns), that may be rounded to `dtype` otherwise if they change by up
    to `slack`, (rows, 1): all of those, and some more."""
    import numpy as np

    bits = values.view(np.uint32)
    dropped = DROPPED[dtype]
    off = (bits & np.uint32((1 << dropped) - 1)).view(np.int32)  # from where rounding turns, in units of the last place
    off -= np.int32(1 << dropped - 1)
    np.abs(off, out=off)
    off -= np.int32(8)  # for what float32 sums are off themselves
    power = (bits & np.uint32(0x7F800000)).view(np.float32)
    distance = off.astype(np.float32)
    distance *= power
    # Twice the slack and some: below a power of two the places where rounding turns are half as far apart.
    near = distance <= slack * np.float32(2.5 * 2**23)
    if dtype == "F16":  # below 2^-14 it holds multiples of 2^-24; rounding turns halfway between them, the sign at zero
        small = np.flatnonzero(power < np.float32(2.0**-14))
        steps = values.reshape(-1)[small] * np.float32(2.0**24)
        within = slack[small // values.shape[1], 0] * np.float32(2.5 * 2**24) + np.float32(2.0**-11)
        halfway = np.abs(steps - np.floor(steps) - np.float32(0.5))
        near.reshape(-1)[small] = np.minimum(halfway, np.abs(steps)) <= within
    return np.flatnonzero(near)


def beyond_float16(top: "np.ndarray") -> "np.ndarray":
    """Flat indices of values below 2^-14 or of 2^16 and above, which float16 holds with fewer bits or not at all.

    top: the upper halves of their float32 bits, uint16; of a bfloat16, its bits.
    """
    import numpy as np

    magnitude = top & np.uint16(0x7FFF)
    magnitude -= np.uint16(0x3880)
    return np.flatnonzero(magnitude >= np.uint16(0x0F00))


def float16_of_bfloat16(stored: "np.ndarray") -> "np.ndarray":
    """As `encoded` stores widened(stored) in F16, in a third of the time: but for the far ends, bits only move.

    stored: uint16 holding bfloat16's bits, of one dimension.
    """
    import numpy as np

    half = stored << np.uint16(3)  # 7 bits of the significand become 10
    half -= np.uint16(112 << 10 & 0xFFFF)  # the biases differ by 112
    half &= np.uint16(0x7FFF)
    half |= stored & np.uint16(0x8000)
    odd = beyond_float16(stored)
    with np.errstate(over="ignore"):
        half[odd] = widened(stored[odd]).astype(np.float16).view(np.uint16)
    return half.view(np.float16)


def finite(stored: "np.ndarray") -> bool:
    """Whether no element of an `encoded` array is inf or nan."""
    import numpy as np

    if stored.dtype == np.float32:
        return bool(np.isfinite(stored).all())
    top = np.uint16(0x7C00 if stored.dtype == np.float16 else 0x7F80)  # all bits of the exponent
    return not bool(((stored.view(np.uint16) & top) == top).any())


def noise(key: int, rows: slice, columns: int) -> "np.ndarray":
    """Uniform uint16 of shape (rows, columns): elements of one stream a key, however the rows are cut."""
    import numpy as np

    first, count = rows.start * columns, (rows.stop - rows.start) * columns
    stream = np.random.Philox(key=key)
    stream.advance(first // 16)  # a step of the counter is four uint64
    skip = first % 16
    drawn = stream.random_raw(-(-(skip + count) // 4)).view(np.uint16)
    return drawn[skip : skip + count].reshape(rows.stop - rows.start, columns)


def with_dtype(config: str, dtype: str) -> str:
    """The text of a config.json with the dtype it names replaced and every other byte kept.

    A config that names another dtype than the weights have would have them cast when they are loaded.
    """
    return re.sub(r'("(?:torch_)?dtype"\s*:\s*)"\w+"', rf'\1"{dtype}"', config)
