"""python tests/clusters/check.py FILE...: what the makers' own packages say of manifests; exit code 1 if one is refused.

In an environment of its own (tools.in): SkyPilot parses its task by its own schema. A JobSet is read by the models that
Kubeflow makes of its API, a NetworkPolicy by the Kubernetes client's. These leave out what they do not know, so what
comes out again is compared with what went in.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    wrong = []
    for path in map(Path, sys.argv[1:]):
        documents = list(yaml.safe_load_all(path.read_text()))
        for document in documents:
            kind = document.get("kind", "SkyPilot task")
            try:
                {"JobSet": jobset, "NetworkPolicy": policy, "SkyPilot task": skypilot}[kind](document, path)
            except Exception as error:  # whatever a parser raises is its verdict
                wrong.append(f"{path}: {kind}: {type(error).__name__}: {error}")
            else:
                print(f"{path}: {kind} is well formed")
    if wrong:
        sys.exit("\n".join(wrong))


def skypilot(document: dict, path: Path) -> None:
    import sky

    task = sky.Task.from_yaml(str(path))
    assert (task.num_nodes, task.run) == (document["num_nodes"], document["run"])
    wanted = document["resources"]["accelerators"]
    assert all(resources.accelerators == wanted for resources in task.resources), task.resources


def jobset(document: dict, _path: Path) -> None:
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    same(document, JobsetV1alpha2JobSet.from_dict(document).to_dict())


def policy(document: dict, _path: Path) -> None:
    from kubernetes.client import ApiClient

    client = ApiClient()
    read = client.deserialize(json.dumps(document), "V1NetworkPolicy", "application/json")  # as a server's answer
    same(document, client.sanitize_for_serialization(read))


def same(given: Any, read: Any, where: str = "") -> None:
    """Errors: ValueError naming what was given and not read."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                raise ValueError(f"{where}.{key} is unknown")
            same(value, read[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, pair in enumerate(zip(given, read, strict=True)):
            same(*pair, f"{where}[{number}]")
    elif given != read:
        raise ValueError(f"{where} is {given!r}, and was read as {read!r}")


if __name__ == "__main__":
    main()
