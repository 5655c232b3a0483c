"""Where a job may write: checked before it starts, so that no output takes the place of what no job wrote.

A folder is known by its mark (`common.files`), a file by what is in it: each kind of output file has a look of its own,
so that one that git or DVC brought back, in another checkout, is known all the same.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from jobs.common.errors import UsageError
from jobs.common.files import SEAL, is_plain, require_replaceable, sealed

Kind = Callable[[Path], bool]  # whether the file at a path is such an output
LARGEST = 1 << 20  # bytes of a metrics file


def FOLDER(path: Path) -> bool:
    raise AssertionError("folders are known by their mark")


def CACHE(path: Path) -> bool:
    raise AssertionError("a cache is added to, never replaced")


def METRICS(path: Path) -> bool:
    """As `files.write_metrics` writes them: numbers by name, sorted and indented."""
    if path.stat().st_size > LARGEST:
        return False
    text = path.read_text(encoding="utf-8")
    value = json.loads(text)

    def numbers(value: object) -> bool:
        if isinstance(value, dict):
            return all(map(numbers, value.values()))
        return isinstance(value, int | float) and not isinstance(value, bool)

    return (
        isinstance(value, dict)
        and numbers(value)
        and text == json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )


def TABLE(*columns: str) -> Kind:
    """A CSV file whose header begins with these columns."""

    def known(path: Path) -> bool:
        with open(path, encoding="utf-8") as file:
            return file.readline(10_000).rstrip("\n").split(",")[: len(columns)] == list(columns)

    return known


def ROWS(*keys: str) -> Kind:
    """A jsonl file whose every line has these keys."""

    def known(path: Path) -> bool:
        with open(path, encoding="utf-8") as file:
            return all(isinstance(row := json.loads(line), dict) and row.keys() >= set(keys) for line in file)

    return known


def SEALED(path: Path) -> bool:
    """A page with the seal of its text: one that was edited by hand since is no longer the job's."""
    text, start, seal = path.read_text(encoding="utf-8").rpartition(SEAL)
    return bool(start) and sealed(text) == text + start + seal


def require_outputs(inputs: Mapping[str, Path], outputs: Mapping[str, tuple[Path, Kind]]) -> None:
    """Looks at where a job is told to write; both sides by flag.

    Errors: UsageError naming the flag: an output that is or holds the working folder or an input; that lies in .git or
    .dvc; that is or holds another output; whose place cannot be, or holds what no job wrote.
    """
    read = {flag: resolved(flag, path) for flag, path in inputs.items()}
    written = {flag: resolved(flag, path) for flag, (path, _) in outputs.items()}
    here = Path.cwd()
    for flag, (path, kind) in outputs.items():
        place = written[flag]
        if here.is_relative_to(place) or path.name == "..":
            raise UsageError(f"{flag}: {path} is or holds the working folder; name a new folder or file")
        # Seen from here: `dvc exp run --temp` works in a copy that lies in .dvc/tmp.
        if {".git", ".dvc"} & set((place.relative_to(here) if place.is_relative_to(here) else place).parts):
            raise UsageError(f"{flag}: {path} lies in what belongs to git or DVC; name a new folder or file")
        for other, source in read.items():
            if source.is_relative_to(place):
                raise UsageError(f"{flag}: {path} is or holds what {other} reads ({inputs[other]}); name another")
        for other, second in written.items():
            if other != flag and second.is_relative_to(place):
                raise UsageError(f"{flag}: {path} is or holds what {other} writes; give each a place of its own")
        try:
            require_place(flag, path, kind)
        except OSError as error:  # a folder of somebody else's
            raise UsageError(f"{flag}: {path} cannot be an output ({error.strerror})") from None


def resolved(flag: str, path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself
        raise UsageError(f"{flag}: {path} is no usable path ({error})") from None


def require_place(flag: str, path: Path, kind: Kind) -> None:
    """Errors: UsageError where `path` cannot hold such an output, or what is there is not one."""
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise UsageError(f"{flag}: {path} cannot be: {above} is not a folder")
    if kind is FOLDER:
        try:
            require_replaceable(path)
        except UsageError as error:
            raise UsageError(f"{flag}: {error}") from None
    elif kind is CACHE:
        if os.path.lexists(path) and not path.is_dir():
            raise UsageError(f"{flag}: {path} is not a folder")
    elif os.path.lexists(path):
        if path.is_dir():
            raise UsageError(f"{flag}: {path} is a folder, and a file is to be written; name another")
        if not is_plain(path):
            raise UsageError(f"{flag}: {path} is a link or no plain file, which no job made; name another")
        if path.stat().st_size and not known(path, kind):
            raise UsageError(
                f"{flag}: {path} is not what this job writes there, and would be replaced: name another, or move it away"
            )


def known(path: Path, kind: Kind) -> bool:
    try:
        return kind(path)
    except (ValueError, RecursionError):  # not UTF-8, not JSON
        return False
