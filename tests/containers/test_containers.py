"""The launcher in real containers: a hostile job is contained, signals leave nothing, files belong to the caller.

Runs where `make check-containers` has one and a base (JOBS_CONTAINERS=1); elsewhere it is skipped.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from jobs.common import answer_format
from jobs.common.files import read_jsonl, write_jsonl
from tests.teacher_server import Behaviour, TeacherServer

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("JOBS_TEST_IMAGE", "cpu")
RUNTIME = os.environ.get("RUNTIME", "docker")
pytestmark = [
    pytest.mark.containers,
    pytest.mark.skipif(os.environ.get("JOBS_CONTAINERS") != "1", reason="JOBS_CONTAINERS=1 is not set"),
]
UID = int(os.environ.get("JOBS_TEST_UID", "1000")) if os.getuid() == 0 else os.getuid()
SECRETS = {"HF_TOKEN": "hf_hostile", "DEEPSEEK_API_KEY": "sk-hostile", "AWS_SECRET_ACCESS_KEY": "aws-hostile"}
LYING = ("env-hostile", "dvc-hostile", "git-hostile")  # in files of the repository
SET_IDS = 1 << 6 | 1 << 7  # CAP_SETGID, CAP_SETUID


def output(*words) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def rootless() -> bool:
    """Whether this is a rootless docker, where root in a container is the caller outside."""
    return RUNTIME == "docker" and "name=rootless" in output("docker", "info", "--format", "{{.SecurityOptions}}")


@functools.cache
def counts_processes() -> bool:
    """Whether the runtime can limit a container's processes: a rootless one cannot with cgroups of version 1."""
    if RUNTIME == "docker":
        return output("docker", "info", "--format", "{{.PidsLimit}}").strip() == "true"
    return "pids" in output("podman", "info", "--format", "{{.Host.CgroupControllers}}")


@pytest.fixture
def repo(tmp_path):
    """A repository whose only job is hostile.py, with secrets lying about, owned by a user who is not root."""
    root = tmp_path / "repo"
    shutil.copytree(ROOT / "docker", root / "docker")
    (root / "jobs").mkdir()
    (root / "jobs/__init__.py").write_text('__version__ = "0"\n')
    shutil.copy(ROOT / "tests/containers/hostile.py", root / "jobs/__main__.py")
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    for name, text in ((".env", "HF_TOKEN=env-hostile"), (".dvc/config.local", "password = dvc-hostile"),
                       (".git/config", "token = git-hostile"), ("data/smoke/seeds", "0")):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    cache = tmp_path / "cache"
    cache.mkdir()
    shutil.chown(tmp_path, UID)
    for path in tmp_path.rglob("*"):
        os.chown(path, UID, UID)
    for parent in list(tmp_path.parents)[:-1]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return root


def command(repo, *words):
    environment = os.environ | SECRETS | {"HF_HOME": str(repo.parent / "cache"), "MIN_DISK_GIB": "0"}
    return [repo / "docker/run", IMAGE, *words], {
        "cwd": repo, "env": environment, "text": True, "start_new_session": True,
        "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
    }  # fmt: skip


def launch(repo, *words, timeout=120):
    words, options = command(repo, *words)
    return subprocess.run(words, timeout=timeout, check=False, **options)


def containers() -> list[str]:
    names = output(RUNTIME, "ps", "--all", "--format", "{{.Names}}").split()
    return [name for name in names if name.startswith("jobs-score-")]


def tag() -> str:
    return output(ROOT / "docker/build", IMAGE).strip()


@pytest.fixture
def listener():
    """A server on every address of this machine, as a database or the runtime's own API might be."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


def addresses(port: int) -> list[str]:
    return [f"{address}:{port}" for address in ["127.0.0.1", *output("hostname", "-I").split()] if ":" not in address]


def test_a_hostile_job_is_contained(repo, listener):
    done = launch(repo, "score", "report", *addresses(listener))
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["wrote"] == (["/dev"] if rootless() else [])  # a tmpfs of the container's own, which is its root's
    assert got["reached"] == []
    # Podman's filter of system calls allows two more, which gain nothing outside the container; Docker's does not.
    allowed = {"user namespace", "keyring"} if RUNTIME == "podman" else {"root", "root by su"} if rootless() else set()
    assert set(got["became"]) <= allowed
    assert [secret for secret in (*SECRETS.values(), *LYING) if secret in got["read"]] == []
    assert got["interfaces"] == ["lo"]
    inside = 0 if rootless() else UID
    assert (got["uid"], got["gid"]) == (inside, inside)
    assert set(got["groups"]) <= {inside}
    assert {int(got[name], 16) for name in ("capabilities", "bounding")} == {SET_IDS if rootless() else 0}
    assert (got["no_new_privileges"], got["seccomp"]) == ("1", "2")


def test_the_attacks_would_be_seen_to_succeed(repo, listener):
    """The same attacks as root in the same image without the launcher's flags: most of them work."""
    run = [RUNTIME, "run", "--rm", "--user", "0:0", "--network", "host", "--volume", f"{repo}:/repo",
           "--env", "HF_TOKEN=hf_hostile", tag(), "score", "report", f"127.0.0.1:{listener}"]  # fmt: skip
    got = json.loads(output(*run))
    assert {"/etc", "/repo", "/repo/jobs", "params.yaml", ".dvc/config.local"} <= set(got["wrote"])
    if not rootless():  # whose containers have their own machine's network for the host's
        assert f"127.0.0.1:{listener}" in got["reached"]
    assert {"root", "chroot"} <= set(got["became"])
    assert all(secret in got["read"] for secret in ("hf_hostile", *LYING))


def test_forking_without_end_is_stopped(repo):
    if not counts_processes():
        pytest.skip(f"this {RUNTIME} keeps no container to a number of processes")
    done = launch(repo, "score", "forks")
    assert done.returncode == 0, done.stderr
    assert 50 < int(done.stdout) < 4096
    assert containers() == []


def test_outputs_belong_to_the_caller_and_other_places_are_refused(repo):
    assert launch(repo, "score", "write", "reports/x").returncode == 0
    assert (repo / "reports/x").stat().st_uid == UID
    assert launch(repo, "score", "write", "x").returncode != 0
    assert [str(p) for p in repo.rglob("*") if p.stat().st_uid != UID] == []


SMALL = ["--set", "tasks.toy={distill: 5, train: 4, heldout: 3}", "--set", "sandbox.workers=1"]


@pytest.fixture
def toy(repo):
    """The repository with the real jobs in it, and toy tasks that `tasks` made there in its container."""
    for name in ("jobs", "data/smoke"):
        shutil.copytree(ROOT / name, repo / name, dirs_exist_ok=True)
    for path in (*(repo / "jobs").rglob("*"), *(repo / "data/smoke").rglob("*")):
        os.chown(path, UID, UID)
    done = launch(repo, "tasks", "--out", "data/tasks", "--metrics", "metrics/tasks.json", *SMALL)
    assert done.returncode == 0, done.stderr
    return repo


def test_real_jobs_run_and_what_they_write_belongs_to_the_caller(toy):
    """Two that are unlike: one that writes the tasks, and one that judges programs by them in the sandbox."""
    tasks = read_jsonl(toy / "data/tasks/toy.jsonl")
    programs = [(t["task_id"], code) for t in tasks for code in (t["reference"], "def solve(x): pass")]
    write_jsonl(toy / "data/samples.jsonl", ({"task_id": name, "solution": code} for name, code in programs))
    words = ["--tasks", "data/tasks/toy.jsonl", "--samples", "data/samples.jsonl", "--out", "data/scored.jsonl"]
    done = launch(toy, "score", *words, *SMALL[2:])
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in read_jsonl(toy / "data/scored.jsonl")] == ["passed", "failed"] * 3
    (toy / "data/samples.jsonl").unlink()
    written = [path for name in ("data", "metrics", "reports", ".cache") for path in (toy / name).rglob("*")]
    assert {toy / "data/tasks/README.md", toy / "data/scored.jsonl", toy / "metrics/tasks.json"} <= set(written)
    assert [str(path) for path in written if path.stat().st_uid != UID] == []


@pytest.mark.parametrize("host", ["localhost", "host.docker.internal", "this machine's address"])
def test_a_teacher_on_this_machine_is_reached_as_the_docs_say(toy, host):
    """docs/local-teacher.md: by its own names for this machine, and by an address of it; no key is wanted."""
    host = host if " " not in host else output("hostname", "-I").split()[0]
    reasoning = "One step after the other, as it is told."
    behaviours = {
        task["prompt"]: Behaviour(answer_format.render(reasoning, task["reference"]))
        for task in read_jsonl(toy / "data/tasks/distill.jsonl")
    }
    with TeacherServer(behaviours, host="0.0.0.0") as server:
        url = f"http://{host}:{server.server.server_port}/v1"
        words = [f"distill.base_url={url}", "distill.model=mine", "distill.api_key_env=null", "distill.examples=3",
                 "distill.extra_body={}", "distill.reasoning_characters=[20, 1000]", "distill.code_characters=[20, 1000]",
                 "distill.similarity=1.0", "distill.retries=0", "sandbox.workers=1"]  # fmt: skip
        done = launch(toy, "distill", *(word for text in words for word in ("--set", text)))
    if rootless() and host == "localhost":
        assert done.returncode == 1
        assert "is this machine, which a container of a rootless docker does not reach" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert len(read_jsonl(toy / "data/distill/examples.jsonl")) == 3
    assert sum(server.asked.values()) >= 3
    assert not any(secret in str(headers) for headers in server.headers for secret in SECRETS.values())


def test_a_job_with_a_network_gets_its_own_secret_alone(repo):
    done = launch(repo, "base", "report")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert "eth0" in got["interfaces"] or "tap0" in got["interfaces"]
    assert "hf_hostile" in got["read"]
    assert [secret for secret in ("sk-hostile", "aws-hostile", *LYING) if secret in got["read"]] == []


@pytest.mark.parametrize(("mode", "sent", "status"), [("sleep", signal.SIGINT, 130), ("sleep", signal.SIGTERM, 143),
                                                      ("deaf", signal.SIGINT, 130)])  # fmt: skip
def test_a_signal_stops_the_container_and_none_is_left(repo, mode, sent, status):
    words, options = command(repo, "score", mode)
    # A test run in the background of a shell has SIGINT ignored, and so would the launcher.
    process = subprocess.Popen(words, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)
    deadline = time.monotonic() + 60
    while not (repo / "reports/started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    assert process.wait(timeout=60) == status
    assert containers() == []
    if mode == "sleep" and sent == signal.SIGINT:  # KeyboardInterrupt: `finally` ran
        assert (repo / "reports/ended").exists()


@pytest.mark.parametrize("user", ["1000:1000", "54321:54321", "0:0"])
def test_the_image_works_under_any_user(user):
    script = "import getpass, os, tempfile, numpy; tempfile.mkdtemp(); print(os.getuid(), getpass.getuser())"
    limits = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    printed = output(RUNTIME, "run", "--rm", *limits, "--user", user, "--entrypoint", "python", tag(), "-c", script)
    assert printed == f"{user.split(':')[0]} jobs\n"


def test_labels_say_version_commit_and_lock():
    config = json.loads(output(RUNTIME, "image", "inspect", "--format", "{{json .Config}}", tag()))
    lock = hashlib.sha256((ROOT / f"docker/images/{IMAGE}/packages.lock").read_bytes()).hexdigest()
    assert config["Labels"]["jobs.lock"] == f"sha256:{lock}"
    assert {"org.opencontainers.image.version", "org.opencontainers.image.revision"} <= set(config["Labels"])
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["python", "-m", "jobs"]
