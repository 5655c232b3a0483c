"""What differs from run to run: time, host, GPU, installed packages, commit. It goes to reports/provenance/, never into an
out, so that equal runs have equal outs."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path

from jobs.common.files import write_json
from jobs.plumbing.closure import third_party

STARTED = time.time()


def provenance(stage: str, *, packages: tuple[str, ...] = (), delegated: tuple[str, ...] = (), **facts) -> None:
    """Writes reports/provenance/STAGE.json: time, memory, host, GPU, versions, commit, image, and `facts`.

    stage: the job's name, or JOB-NAME for a job that several stages run. packages: as `versions` takes them.
    delegated: the jobs that ran before it in this process, whose packages count as well.
    """
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
            "packages": used(stage.partition("-")[0], packages, delegated),
            **facts,
        },
    )


def used(job: str, packages: tuple[str, ...], delegated: tuple[str, ...]) -> dict[str, str]:
    found = versions(job, *packages)
    for other in delegated:
        found = found | versions(other)
    return dict(sorted(found.items()))


@cache
def versions(job: str, *named: str) -> dict[str, str]:
    """The installed distributions that a job's code imports and all that these require, with their versions.

    named: distributions that a param chooses by name, such as an optimizer's; no import tells of them.
    """
    providers = metadata.packages_distributions()
    todo = [name for module in third_party(job) for name in providers.get(module, ())] + list(named)
    found: dict[str, str] = {}
    while todo:
        name = canonical(todo.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # another image's, or another platform's
            continue
        found[name] = distribution.version
        wanted = [line for line in distribution.requires or () if "extra ==" not in line]
        todo += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted]
    return dict(sorted(found.items()))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


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
