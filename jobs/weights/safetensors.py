"""Safetensors files read and written by the block; numpy alone.

No file is mapped or read whole, so memory does not grow with the model: mapped pages would count as the job's own.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line
from jobs.common.files import read_json
from jobs.weights.floats import decoded

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
BLOCK = 1 << 18  # elements: a block's few float32 arrays stay in the core's cache
INDEX = "model.safetensors.index.json"
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
    """The safetensors files of a model folder, checked against its index if it has one.

    Errors: JobError for other formats, for an index that its files contradict, for a model.safetensors beside the index
    of other files, and for an adapter beside the model: some tools would read the one, some the others.
    """
    if (folder / "adapter_config.json").exists() and (folder / "config.json").exists():
        raise JobError(
            f"{folder}: holds an adapter beside the model (adapter_config.json), which some tools would load with it; "
            "move it to a folder of its own"
        )
    index, single = folder / INDEX, folder / "model.safetensors"
    if not index.exists():
        if not single.exists():
            raise JobError(f"{folder}: has no safetensors file model.safetensors, nor an index; nothing else is loaded")
        return [single]
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise JobError(f"{index}: has no weight_map")
    files = [folder / name for name in sorted(set(where.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise JobError(f"{index}: names {', '.join(missing)}, which {folder} lacks")
    if single.exists() and single not in files:
        raise JobError(
            f"{folder}: holds model.safetensors beside an index of other files; remove the ones that are old"
        )
    held: dict[str, str] = {}
    for file in files:
        for tensor in header(file)[1]:
            if tensor.name in held:
                raise JobError(f"{folder}: {held[tensor.name]} and {file.name} both hold {tensor.name}")
            held[tensor.name] = file.name
    if held != where:
        odd = sorted(name for name in held.keys() | where.keys() if held.get(name) != where.get(name))
        raise JobError(f"{index}: does not agree with the files about {', '.join(odd[:3])}")
    return files


def is_tied(folder: Path) -> bool:
    """Whether a model folder's embedding is its output head too.

    Where config.json does not say, the default of its family does: Gemma's files leave it out, and mean yes.
    Errors: JobError for a tied model whose files hold two different matrices, of which some tools would use one, some both.
    """
    tied = says_tied(folder)
    if tied and any(folder.glob("*.safetensors")):
        require_one_end(folder)
    return tied


def says_tied(folder: Path) -> bool:
    config = read_json(folder / "config.json")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("tie_word_embeddings") is not None:
            return bool(part["tie_word_embeddings"])
    return bool(config_of(folder).get_text_config().tie_word_embeddings)


def config_of(folder: Path) -> Any:
    """config.json with its family's defaults, as transformers has them. Errors: JobError for one that is no model's."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"{folder}/config.json: cannot be read as a model's ({one_line(error)})") from error


def require_one_end(folder: Path) -> None:
    """Errors: JobError where the files hold an embedding and a head that differ."""
    tensors = tensors_of(folder)
    inputs, outputs = ([tensors[name] for name in tensors if end(name)] for end in (is_embedding, is_head))
    if len(inputs) != 1 or len(outputs) != 1:
        return
    a, b = inputs[0], outputs[0]
    same = (a.shape, a.dtype) == (b.shape, b.dtype) and all(
        a.read(rows) == b.read(rows) for rows in blocks(slice(0, a.rows), a.columns)
    )
    if not same:
        raise JobError(
            f"{folder}/config.json: says that {a.name} is the head too (tie_word_embeddings), and the files hold another "
            f"{b.name}: set it to false, or take that tensor out"
        )


def module_of(name: str) -> str:
    """`model.layers.0.self_attn.q_proj` of that module's weight, bias or factors."""
    return re.split(r"\.lora_|\.(?:weight|bias)$", name)[0]


def is_embedding(name: str) -> bool:
    return module_of(name).rpartition(".")[2] in ("embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings")


def is_head(name: str) -> bool:
    return module_of(name).rpartition(".")[2] in ("lm_head", "embed_out")


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


def with_dtype(config: str, dtype: str) -> str:
    """The text of a config.json with the dtype it names replaced and every other byte kept.

    A config that names another dtype than the weights have would have them cast when they are loaded.
    """
    return re.sub(r'("(?:torch_)?dtype"\s*:\s*)"\w+"', rf'\1"{dtype}"', config)
