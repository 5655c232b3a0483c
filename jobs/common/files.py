"""Files that are either whole or not there: jsonl, json, hashes, and outputs renamed into place."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.common.errors import JobError

HASHED = 16 << 20  # bytes hashed at a time


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a jsonl file, as `numbered_jsonl` reads it."""
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: Path) -> list[tuple[int, dict]]:
    """The objects of a jsonl file (gzipped if it ends in .gz), each with the number of its line; empty lines count.

    Errors: JobError naming file and line number for a line that is not a JSON object, or is cut.
    """
    import gzip

    rows = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise JobError(f"{path}: line {number} is not valid JSON ({error})") from None
                if not isinstance(row, dict):
                    raise JobError(f"{path}: line {number} is not a JSON object")
                rows.append((number, row))
    except (OSError, EOFError) as error:
        raise JobError(f"{path}: cannot be read ({error})") from None
    return rows


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    with replace_file(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error})") from None
    except ValueError as error:
        raise JobError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise JobError(f"{path}: is not a JSON object")
    return value


def write_json(path: Path, value: dict) -> None:
    with replace_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_metrics(path: Path, metrics: dict) -> None:
    """Metrics for `dvc metrics diff`: numbers only, nested, rounded once to six decimals."""
    write_json(path, rounded(metrics, str(path)))


def rounded(value, where: str):
    if isinstance(value, dict):
        return {str(key): rounded(inner, f"{where}: {key}") for key, inner in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: a metric must be a number, not {value!r}")
    return round(value, 6) if isinstance(value, float) else value


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a directory's sorted relative names and file digests."""
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter, and a model's shards are gigabytes
            digests = pool.map(sha256, (path / name for name in names))
        return hashlib.sha256("\n".join(f"{n} {d}" for n, d in zip(names, digests, strict=True)).encode()).hexdigest()
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        # Each block waits for the interpreter, for 5 ms where another thread is importing: few and large ones then.
        buffer = memoryview(bytearray(min(HASHED, path.stat().st_size + 1)))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def require_safetensors(*folders: Path) -> None:
    """Errors: JobError for a folder of weights in another format: reading a pickle runs what is in it."""
    for folder in folders:
        if not any(folder.glob("*.safetensors")):
            raise JobError(f"{folder}: has no safetensors file; nothing else is loaded")


def partial_path(path: Path) -> Path:
    """Where an output grows before it is renamed into place: beside it, on the same file system."""
    return path.parent / f".{path.name}.partial"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a path to write; on success it is synced and renamed to `path`, otherwise removed.

    Errors: an OSError (full disk, read-only folder) becomes a JobError naming the file.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        if path.is_symlink() or path.is_dir():
            remove(path)
        os.replace(partial, path)
    except OSError as error:
        raise JobError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            remove(partial)


@contextlib.contextmanager
def replace_dir(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it takes the place of `path`, otherwise it is removed."""
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        partial.mkdir()
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        remove(path)
        os.rename(partial, path)
    except OSError as error:
        raise JobError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            remove(partial)


def process_folder(room: Path, name: str) -> Path:
    """A new folder for this process in `room`; those that killed processes could not remove are removed."""
    for left in room.glob(f"{name}-[0-9]*-*"):
        pid = left.name.removeprefix(f"{name}-").split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-", dir=room))
