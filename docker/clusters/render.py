"""A stage's manifest for Kubernetes (JobSet) or a cloud (SkyPilot), from the template beside this file.

    python docker/clusters/render.py jobset grpo --image registry.example/jobs-train:0123456789abcdef --nodes 2
    python docker/clusters/render.py skypilot sample@grpo-cot --accelerator H100

The command, with its params filled in, is the one of dvc.yaml. A stage with several processes gets as many cards. The
manifest goes to stdout. docs/scaling.md says what to do with it.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from string import Template

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ON_CARDS = ("sft", "grade", "grpo", "sample")  # as needs_gpu in docker/host.sh
NETWORKED = ("base", "tasks", "distill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["jobset", "skypilot"])
    parser.add_argument("stage", help="as in dvc.yaml, or NAME@ITEM")
    parser.add_argument("--image", help="where the registry has what docker/build made (jobset)")
    parser.add_argument("--nodes", type=int, default=1, help="machines that its processes are divided among (jobset)")
    parser.add_argument("--accelerator", default="H100", help="the card, by SkyPilot's name (skypilot)")
    asked = parser.parse_args()
    command, processes, ahead = look_up(asked.stage)
    job = command[2]
    if asked.kind == "jobset" and not asked.image:
        parser.error("--image: a JobSet needs the image's address in a registry")
    if asked.kind == "skypilot" and asked.nodes != 1:
        parser.error("--nodes: SkyPilot's machines share no file system, so a stage runs on one")
    if asked.kind == "jobset" and job in NETWORKED:
        parser.error(f"{asked.stage}: a stage with network and keys runs where DVC runs")
    if asked.nodes < 1 or processes % asked.nodes:
        parser.error(f"--nodes: {asked.nodes} machines cannot share {job}.processes: {processes} evenly")
    cards = processes // asked.nodes + ahead if job in ON_CARDS else 0
    values = {
        "name": "jobs-" + re.sub(r"[^a-z0-9]+", "-", asked.stage.lower()),
        "stage": shlex.quote(asked.stage),
        "command": json.dumps(command),
        "nodes": asked.nodes,
        "image": asked.image,
        "limits": json.dumps({"nvidia.com/gpu": cards} if cards else {}),
        "accelerators": json.dumps({asked.accelerator: cards} if cards else None),
    }
    print(Template((HERE / f"{asked.kind}.yaml").read_text()).substitute(values), end="")


def look_up(name: str) -> tuple[list[str], int, int]:
    """The stage's command, word by word, how many processes it has, and how many cards beside theirs (grpo.staleness)."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from ruamel.yaml import YAML

    with Repo(ROOT) as repo:
        try:
            [stage] = repo.stage.collect(name)
        except (DvcException, ValueError) as error:
            sys.exit(f"error: {name}: is no stage of dvc.yaml ({error})")
        command = shlex.split(stage.cmd)
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    section = params.get(command[2], {})
    return command, section.get("processes", 1), section.get("staleness", 0)


if __name__ == "__main__":
    main()
