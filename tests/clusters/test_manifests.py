"""Manifests for Kubernetes and clouds: rendered for the stages, read by their makers' packages, as strict as docker/run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RENDER = ROOT / "docker/clusters/render.py"
IMAGE = "registry.example/jobs-train:0123456789abcdef"


def render(*words, cwd=ROOT):
    script = cwd / RENDER.relative_to(ROOT)
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What render.py reads, with two processes of GRPO."""
    place = tmp_path_factory.mktemp("repository")
    files = ("dvc.yaml", "params.yaml", "docker/clusters/render.py", "docker/clusters/jobset.yaml",
             "docker/clusters/skypilot.yaml")  # fmt: skip
    for name in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text((ROOT / name).read_text())
    params = (place / "params.yaml").read_text()
    before, mark, grpo = params.partition("\ngrpo:\n")
    changed = re.sub(r"processes: 1\b", "processes: 2", grpo, count=1)
    assert mark and changed != grpo
    (place / "params.yaml").write_text(before + mark + changed)
    subprocess.run(["git", "init", "--quiet", place], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=place, check=True)
    return place


@pytest.fixture(scope="module")
def manifests(repository, tmp_path_factory):
    """A file for every kind of stage, by name."""
    place = tmp_path_factory.mktemp("manifests")
    asked = {"one": ["jobset", "evaluate@grpo-cot", "--image", IMAGE], "two": ["jobset", "grpo", "--image", IMAGE,
             "--nodes", "2"], "sample": ["skypilot", "sample@grpo-cot"], "grpo": ["skypilot", "grpo"],
             "compare": ["skypilot", "compare"]}  # fmt: skip
    for name, words in asked.items():
        done = render(*words, cwd=repository)
        assert done.returncode == 0, done.stderr
        (place / f"{name}.yaml").write_text(done.stdout)
    return place


def documents(manifests, name):
    return list(yaml.safe_load_all((manifests / f"{name}.yaml").read_text()))


def pod(manifests, name):
    return documents(manifests, name)[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def container(manifests, name):
    [found] = pod(manifests, name)["containers"]
    return found


def environment(manifests, name):
    return {variable["name"]: variable.get("value") for variable in container(manifests, name)["env"]}


def test_a_jobset_starts_the_stages_own_command(manifests):
    assert container(manifests, "one")["command"][:3] == ["docker/run", "train", "evaluate"]
    assert "data/evaluations/grpo-cot" in container(manifests, "one")["command"]
    assert container(manifests, "one")["image"] == IMAGE
    assert container(manifests, "one")["resources"] == {"limits": {}}


def test_processes_are_divided_among_its_pods_which_are_told_where_they_meet(manifests):
    job = documents(manifests, "two")[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    assert container(manifests, "two")["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    told = environment(manifests, "two")
    assert told["NODES"] == "2"
    assert told["MASTER_ADDR"] == "jobs-grpo-ranks-0-0.jobs-grpo"
    assert {"NODE_RANK", "MASTER_PORT"} <= told.keys()


def test_a_pod_may_do_no_more_than_a_container_of_docker_run(manifests):
    launcher = (ROOT / "docker/run").read_text()
    mounts = {mount["mountPath"]: mount for mount in container(manifests, "two")["volumeMounts"]}
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")} - {"/tmp", "/dev/shm"}
    outputs = re.search(r"^outputs=\((.*)\)$", launcher, re.MULTILINE)[1].split()
    assert writable == {f"/repo/{folder}" for folder in (*outputs, ".checkpoints", ".cache")}
    assert mounts["/repo"]["readOnly"] and mounts["/repo/.git"]["name"] == "nothing"
    assert pod(manifests, "two")["securityContext"]["runAsNonRoot"]
    assert not pod(manifests, "two")["automountServiceAccountToken"]
    assert container(manifests, "two")["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_policy_of_the_network_chooses_the_pods(manifests):
    for name in ("one", "two"):
        jobset, policy = documents(manifests, name)
        labels = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]["labels"]
        assert policy["spec"]["podSelector"]["matchLabels"] == labels
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert "0.0.0.0" not in str(policy)


def test_a_task_of_skypilot_runs_the_stage_by_dvc_on_as_many_cards_as_processes(manifests):
    [task] = documents(manifests, "grpo")
    assert task["resources"]["accelerators"] == {"H100": 2} and task["num_nodes"] == 1
    assert "dvc repro --pull --single-item grpo\n" in task["run"]
    assert documents(manifests, "compare")[0]["resources"]["accelerators"] is None


def test_completions_sampled_ahead_have_a_card_beside_those_of_the_processes(repository):
    file = repository / "params.yaml"
    before = file.read_text()
    try:
        file.write_text(re.sub(r"staleness: 0\b", "staleness: 1", before, count=1))
        done = render("skypilot", "grpo", cwd=repository)
    finally:
        file.write_text(before)
    assert yaml.safe_load(done.stdout)["resources"]["accelerators"] == {"H100": 3}


@pytest.mark.parametrize(("words", "message"), [
    (["jobset", "grpo"], "--image: a JobSet needs the image's address"),
    (["jobset", "distill", "--image", IMAGE], "a stage with network and keys runs where DVC runs"),
    (["jobset", "grpo", "--image", IMAGE, "--nodes", "3"], "3 machines cannot share grpo.processes: 1 evenly"),
    (["skypilot", "grpo", "--nodes", "2"], "SkyPilot's machines share no file system"),
    (["skypilot", "nosuch"], "nosuch: is no stage of dvc.yaml"),
])  # fmt: skip
def test_what_cannot_be_rendered_is_refused_in_a_line(words, message):
    done = render(*words)
    assert done.returncode and not done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The makers' packages, in an environment that goes with the test."""
    place, uv = tmp_path_factory.mktemp("tools") / "venv", ROOT / ".venv/bin/uv"
    for words in (["venv", "--quiet", "--python", sys.executable, place],
                  ["pip", "install", "--quiet", "--python", place / "bin/python", "--requirement",
                   Path(__file__).with_name("tools.in")]):  # fmt: skip
        done = subprocess.run([uv, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the tools cannot be installed here: {done.stderr.strip()[-300:]}")
    return place / "bin/python"


def check(tools, *files):
    quiet = {"HOME": str(tools.parent), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PATH": os.environ["PATH"]}
    return subprocess.run([tools, Path(__file__).with_name("check.py"), *files], env=quiet, capture_output=True,
                          text=True, check=False)  # fmt: skip


def test_the_makers_own_tools_read_them_and_refuse_broken_ones(tools, manifests, tmp_path):
    done = check(tools, *sorted(manifests.glob("*.yaml")))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("is well formed") == 7
    broken = {"one": ("backoffLimit", "backofLimit", "JobSet"), "two": ("policyTypes", "policyTipes", "NetworkPolicy"),
              "grpo": ("accelerators", "acelerators", "SkyPilot task")}  # fmt: skip
    for name, (old, new, _) in broken.items():
        (tmp_path / f"{name}.yaml").write_text((manifests / f"{name}.yaml").read_text().replace(old, new))
    done = check(tools, *sorted(tmp_path.glob("*.yaml")))
    assert done.returncode == 1
    for name, (_, _, kind) in broken.items():
        assert re.search(rf"{name}\.yaml: {kind}: \w+", done.stderr), (name, done.stderr)
