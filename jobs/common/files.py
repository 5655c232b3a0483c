"""Files that are either whole or not there: jsonl, json, hashes, and outputs renamed into place.

An output folder carries a mark, the file `.job.json`: what the job wrote there, by name and content. Only a folder whose
every file is in its mark gives way to a new output; anything else in it is somebody's, and stops the job. The mark may say
of what the output was made, by hashes (`set_record`), and nothing of time or place: equal outputs have equal marks, which
go into DVC's cache and out of it with the rest.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.common.errors import JobError, UsageError

HASHED = 16 << 20  # bytes hashed at a time
MARK = ".job.json"
# The end of an object's path in a DVC cache, which outputs are links into where cache.type is symlink.
DVC_OBJECT = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
SEAL = "\n<!-- written by a job; the hash of what is above: "
SAMPLE = 1 << 20  # bytes; a fingerprint reads three times as many at most
UNREADABLE = (ValueError, RecursionError)  # what JSON's reader raises: for no JSON, and for brackets too deep for it
LONE = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a jsonl file, as `numbered_jsonl` reads it."""
    return [row for _, row in numbered_jsonl(path)]


def numbered_jsonl(path: Path) -> list[tuple[int, dict]]:
    """The objects of a jsonl file (gzipped if it ends in .gz), each with the number of its line; empty lines count.

    Errors: JobError naming file and line number for a line that is not a JSON object, or is cut.
    """
    import gzip
    import zlib

    rows = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except UNREADABLE as error:
                    raise JobError(f"{path}: line {number} is not valid JSON ({error})") from None
                if not isinstance(row, dict):
                    raise JobError(f"{path}: line {number} is not a JSON object")
                rows.append((number, row))
    except (OSError, EOFError, zlib.error) as error:
        raise JobError(f"{path}: cannot be read ({error})") from None
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with replace_file(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(dumps(row) + "\n")


def dumps(value, **options) -> str:
    """JSON that UTF-8 can hold: as it is, but for lone surrogates (half of an emoji), which are written as escapes."""
    return LONE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(value, ensure_ascii=False, **options))


def printable(text: str) -> str:
    """The text with lone surrogates, which no output can encode, as escapes."""
    return LONE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error})") from None
    except UNREADABLE as error:
        raise JobError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise JobError(f"{path}: is not a JSON object")
    return value


def write_json(path: Path, value: dict) -> None:
    with replace_file(path) as partial:
        partial.write_text(dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_metrics(path: Path, metrics: dict) -> None:
    """Metrics for `dvc metrics diff`: numbers only, nested, rounded once to six decimals."""
    write_json(path, rounded(metrics, str(path)))


def hash_of_metrics(metrics: dict) -> str:
    """Of the values that `write_metrics` writes, by which they are known as those of an output (`set_record`)."""
    return hashlib.sha256(dumps(rounded(metrics, "metrics"), sort_keys=True).encode()).hexdigest()


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
        digests = sha256_each(path / name for name in names)
        return hashlib.sha256("\n".join(f"{n} {d}" for n, d in zip(names, digests, strict=True)).encode()).hexdigest()
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        # Each block waits for the interpreter, for 5 ms where another thread is importing: few and large ones then.
        buffer = memoryview(bytearray(min(HASHED, path.stat().st_size + 1)))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def sha256_each(paths: Iterable[Path]) -> list[str]:
    """The digests of several files, in their order, several hashed at once."""
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter, and a model's shards are gigabytes
        return list(pool.map(sha256, paths))


def partial_path(path: Path) -> Path:
    """Where an output grows before it is renamed into place: beside it, on the same file system."""
    return path.parent / f".{path.name}.partial"


def fingerprint(path: Path) -> str:
    """What tells a file's content from another's: its size, and a hash of its beginning, middle and end.

    That is all of a small file. Of weights it is enough to see that they are others, and takes no time.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for start in (0,) if size <= 3 * SAMPLE else (0, (size - SAMPLE) // 2, size - SAMPLE):
            file.seek(start)
            digest.update(file.read(3 * SAMPLE if size <= 3 * SAMPLE else SAMPLE))
    return f"{size} {digest.hexdigest()[:32]}"


def entries(folder: Path) -> dict[str, str]:
    """Everything in a folder but its mark and its subfolders: relative name -> fingerprint, or "" for no plain file."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in files + [name for name in folders if Path(parent, name).is_symlink()]:
            path = Path(parent, name)
            found[path.relative_to(folder).as_posix()] = fingerprint(path) if is_plain(path) else ""
    found.pop(MARK, None)
    return found


def is_plain(path: Path) -> bool:
    """Whether this is a regular file, or a link to one in a DVC cache."""
    try:
        linked = stat.S_ISLNK(path.lstat().st_mode)
        return stat.S_ISREG(path.stat().st_mode) and (not linked or bool(DVC_OBJECT.search(str(path.resolve()))))
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def set_record(partial: Path, **record) -> None:
    """Has the mark of an output that is still being filled say what it is made of; `record_of` reads it."""
    (partial / MARK).write_text(json.dumps({"files": {}, "unfinished": True, "record": record}) + "\n")


def record_of(folder: Path) -> dict:
    """What the mark of a finished output says that it was made of; {} where there is no mark, or it says nothing."""
    try:
        mark = json.loads((folder / MARK).read_bytes())
        record = {} if mark.get("unfinished") else mark["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def foreign(folder: Path) -> list[str]:
    """The names in a folder that no job wrote, sorted: all that its mark does not list with the content they have."""
    try:
        mark = json.loads((folder / MARK).read_bytes())
        written, unfinished = dict(mark["files"]), mark.get("unfinished") is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        written, unfinished = {}, False
    if unfinished:  # a job was killed while it filled the folder
        return []
    return sorted(name for name, what in entries(folder).items() if not what or written.get(name) != what)


def require_replaceable(path: Path) -> None:
    """Errors: UsageError where a new output folder at `path` would take the place of what no job wrote."""
    for place in (path, partial_path(path)):
        if place.is_symlink():
            raise UsageError(f"{place}: is a link, which no job made; name the folder itself, or remove the link")
        if place.is_dir():
            if theirs := foreign(place):
                shown = ", ".join(theirs[:3]) + (f" and {len(theirs) - 3} more" if len(theirs) > 3 else "")
                raise UsageError(
                    f"{place}: holds what no job wrote ({shown}), and would be replaced: name another folder, or move "
                    "it away"
                )
        elif place.exists():
            raise UsageError(f"{place}: is a file, and would be replaced by a folder: name another, or move it away")


def sealed(text: str) -> str:
    """A page (HTML, Markdown) with a comment at its end by which it is known as a job's own, word for word."""
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()[:32]} -->\n"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a path to write; on success it is synced and renamed to `path`, otherwise removed.

    Errors: an OSError (full disk, read-only folder, a folder of that name) becomes a JobError naming the file.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise unwritten(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def unwritten(error: OSError, path: Path) -> JobError:
    """What to say of an output that could not be written to `path`; of a copy's two files the second is the new one."""
    return JobError(f"{error.filename2 or error.filename or path}: cannot be written ({error.strerror or error})")


@contextlib.contextmanager
def replace_dir(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it is marked and takes the place of `path`, otherwise it is removed.

    Errors: UsageError where `path` holds what no job wrote; an OSError becomes a JobError naming the file.
    """
    partial = partial_path(path)
    require_replaceable(path)
    made, owner = False, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(partial, path):
            remove(partial)
            partial.mkdir()
            made = True
            owner = os.open(partial, os.O_RDONLY)
            fcntl.flock(owner, fcntl.LOCK_EX)
        (partial / MARK).write_text('{"files": {}, "unfinished": true}\n')
        yield partial
        mark = read_json(partial / MARK) | {"files": entries(partial)}
        del mark["unfinished"]
        (partial / MARK).write_text(json.dumps(mark, indent=2, sort_keys=True) + "\n")
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        try:
            require_replaceable(path)  # once more: the work may have taken hours
        except UsageError as error:
            made = False
            raise JobError(f"{error}; the output is kept in {partial}") from None
        remove(path)
        os.rename(partial, path)
    except OSError as error:
        raise unwritten(error, path) from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                remove(partial)
        if owner >= 0:
            os.close(owner)


@contextlib.contextmanager
def claimed(partial: Path, path: Path) -> Iterator[None]:
    """Errors: UsageError where another process fills `partial` at this moment; the lock that it holds ends with it."""
    try:
        earlier = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(earlier, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{path}: another job is writing it at this moment; name another folder, or wait") from None
    finally:
        os.close(earlier)
    yield


def process_folder(room: Path, name: str) -> Path:
    """A new folder for this process in `room`; those that killed processes could not remove are removed.

    Its name has the number of the process and that of the room of processes it lives in. A program in a container that
    shares `room` sees other numbers, and would take the folders of all that run outside for left ones.
    """
    ours = f"{name}-in{os.stat('/proc/self/ns/pid').st_ino}-"
    for left in room.glob(f"{ours}[0-9]*-*"):
        pid = left.name.removeprefix(ours).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-", dir=room))
