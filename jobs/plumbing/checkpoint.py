"""Resume keys, checkpoint folders and provenance: what lets a killed job go on, and what differs from run to run.

Checkpoints live in .checkpoints/JOB/KEY/, KEY a hash of the job's params, inputs and code: the same key resumes, another
one starts anew. They are never a DVC out: DVC deletes outs before a stage runs. What differs from run to run (time, host,
versions) goes to reports/provenance/, never into an out.
"""

import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from jobs.common.files import sha256, write_json
from jobs.plumbing.cli import log
from jobs.plumbing.closure import code

ROOT = Path(".checkpoints")
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "unsloth",
    "vllm",
    "accelerate",
    "evalplus",
    "llama_cpp_python",
    "gguf",
    "numpy",
    "safetensors",
    "dvc",
)
STARTED = time.time()


def key(settings: Mapping, *inputs: Path) -> str:
    """A short hash of the resolved settings, the inputs' bytes and the installed versions."""
    text = json.dumps([settings, [sha256(path) for path in inputs], versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(job: str, settings: Mapping, *inputs: Path, run: str | None = None) -> Path:
    """The checkpoint folder of `job` for these settings and inputs; folders of other keys are removed.

    The job's own code is part of the key: DVC runs a stage again when its code has changed, and the checkpoints that the
    old code left, its last one among them, must not answer for the new.

    run: the name of the folder, for a job that several stages run; the job's by default.

    A folder in use by another process of the same job and key is not guarded against: DVC runs one stage at a time.
    """
    room = ROOT / (run or job)
    mine = room / key(settings, *inputs, *code(job))
    for other in room.glob("*"):
        if other != mine:
            shutil.rmtree(other, ignore_errors=True)
    mine.mkdir(parents=True, exist_ok=True)
    return mine


def newest_first(directory: Path) -> list[Path]:
    found = [p for p in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
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
    files = {
        p.relative_to(path).as_posix(): sha256(p)
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name != "MANIFEST.json"
    }
    write_json(path / "MANIFEST.json", files)


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


def versions() -> dict[str, str]:
    """Of the installed packages that decide results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(stage: str, **facts) -> None:
    """Writes reports/provenance/STAGE.json: time, memory, host, GPU, versions, commit, image, and `facts`."""
    write_json(
        Path("reports/provenance") / f"{stage}.json",
        {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - STARTED, 1),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "gpu": gpu(),
            "image": os.environ.get("JOBS_IMAGE"),
            "commit": os.environ.get("JOBS_COMMIT") or command("git", "rev-parse", "HEAD"),
            "packages": versions(),
            **facts,
        },
    )


def gpu() -> dict | None:
    """Name, memory and peak use of the first GPU, if this process has used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    return {
        "name": device.name,
        "memory_mib": device.total_memory >> 20,
        "peak_memory_mib": torch.cuda.max_memory_allocated() >> 20,
        "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def command(*words: str) -> str | None:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
