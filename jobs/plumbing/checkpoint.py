"""Resume keys and checkpoint folders: what lets a killed job go on.

Checkpoints live in .checkpoints/JOB/KEY/, KEY a hash of the job's params, inputs and code: the same key resumes, another
one starts anew. They are never a DVC out: DVC deletes outs before a stage runs.

A folder belongs to the process that holds the lock beside it (.checkpoints/JOB/KEY.lock) until that process ends, however
it ends. The kernel keeps the lock (flock), so it holds between containers too, which do not see each other's processes.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from jobs.common.errors import JobError
from jobs.common.files import sha256, sha256_each, write_json
from jobs.plumbing.cli import log
from jobs.plumbing.closure import code
from jobs.plumbing.provenance import versions

ROOT = Path(".checkpoints")
PATIENCE = 2.0  # seconds for another run to remove a folder that it found without an owner
held: dict[Path, int] = {}  # the locks that this process holds: path of the lock file -> descriptor


def key(job: str, settings: Mapping, *inputs: Path, packages: tuple[str, ...] = ()) -> str:
    """A short hash of the resolved settings, the bytes of inputs and code, and the versions of the packages used."""
    files = [sha256(path) for path in (*inputs, *code(job))]
    text = json.dumps([settings, files, versions(job, *packages)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(job: str, settings: Mapping, *inputs: Path, run: str | None = None, packages: tuple[str, ...] = ()) -> Path:
    """The checkpoint folder of `job` for these settings and inputs, which is this process's until it ends.

    Folders of other keys are removed, but for those that another process works in.

    The job's own code is part of the key: DVC runs a stage again when its code has changed, and the checkpoints that the
    old code left, its last one among them, must not answer for the new.

    run: the name of the folder, for a job that several stages run; the job's by default. packages: those that a param
    chooses by name (`provenance.versions`).

    Errors: JobError if another process works in the same folder.
    """
    room = ROOT / (run or job)
    mine = room / key(job, settings, *inputs, packages=packages)
    room.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while not acquire(mine):
        if time.monotonic() > deadline:
            raise JobError(
                f"{mine}: a run of {run or job} with the same params and inputs works in it ({holder(mine)}): wait until "
                "it ends, or stop it; its checkpoints are then this run's"
            )
        time.sleep(0.1)
    for other in {path.with_suffix("") for path in room.iterdir()} - {mine}:
        clear(other)
    mine.mkdir(exist_ok=True)
    return mine


def acquire(folder: Path) -> bool:
    """Takes the lock beside `folder` for this process, which may have it already; False if another process has it."""
    lock = folder.with_suffix(".lock").absolute()
    if lock in held and not same_file(lock, held[lock]):
        os.close(held.pop(lock))  # somebody removed the file: what is held guards nothing any more
    while lock not in held:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise JobError(f"{lock}: cannot be locked ({error.strerror}), and two runs would harm each other") from None
        if not same_file(lock, descriptor):  # whoever had it removed it in between
            os.close(descriptor)
            continue
        held[lock] = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(
            descriptor, f"process {os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}\n".encode(), 0
        )
    return True


def same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def holder(folder: Path) -> str:
    """What the lock's owner wrote of itself: for people, since ids of processes mean nothing in another container."""
    try:
        return folder.with_suffix(".lock").read_text().strip() or "which has just begun"
    except OSError:
        return "which has just ended"


def clear(folder: Path) -> None:
    """Removes a folder and its lock, unless another process works in it."""
    if not acquire(folder):
        log.info("%s is in use and stays: %s", folder, holder(folder))
        return
    lock = folder.with_suffix(".lock").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    lock.unlink(missing_ok=True)
    os.close(held.pop(lock))


def let_go() -> None:
    """Lets go of all locks. A forked child does so at once: its copies would keep the locks of a parent that is dead."""
    while held:
        os.close(held.popitem()[1])


os.register_at_fork(after_in_child=let_go)


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints of a run. A file or a link of such a name is somebody's own, and stays."""
    named = [p for p in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    found = [p for p in named if p.is_dir() and not p.is_symlink()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)


def last(directory: Path) -> Path | None:
    """The newest whole checkpoint-N in `directory`; broken ones are removed with a message.

    Whole: every file that its manifest lists is there with the recorded hash (see `seal`).
    """
    for path in newest_first(directory):
        if whole(path):
            return path
        log.warning("%s is broken or was cut short: removed, the one before it is used", path)
        shutil.rmtree(path)
    return None


def seal(path: Path) -> None:
    """Records the hashes of a finished checkpoint's files; without this record it is not used."""
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name != "MANIFEST.json"]
    names = [p.relative_to(path).as_posix() for p in files]
    write_json(path / "MANIFEST.json", dict(zip(names, sha256_each(files), strict=True)))


def prune(directory: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints; to be called once the newest is sealed, never before."""
    for path in newest_first(directory)[keep:]:
        shutil.rmtree(path)


def whole(path: Path) -> bool:
    try:
        files = json.loads((path / "MANIFEST.json").read_bytes())
        return all((path / name).is_file() and sha256(path / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False
