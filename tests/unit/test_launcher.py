"""docker/run and docker/build against a runtime that only writes down what it was told: flags, policy, refusals."""

import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.launcher import ROOT, flags, gpu, launch, make_repo, values


@pytest.fixture
def repo(tmp_path):
    return make_repo(tmp_path)


def test_a_job_gets_its_arguments_as_they_are(repo):
    awkward = ["--out", "a b", "--set", "x.y=[1, 2]", "*", "$HOME", "", "'\"", "-v"]
    done = launch(repo, "cpu", "score", *awkward)
    assert done.returncode == 0, done.stderr
    words = flags(repo)
    assert words[-len(awkward) - 1 :] == ["score", *awkward]


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_every_job_is_hardened(repo, runtime):
    assert launch(repo, "cpu", "score", RUNTIME=runtime).returncode == 0
    words = flags(repo)
    assert values(words, "--cap-drop") == ["ALL"]
    assert "no-new-privileges" in values(words, "--security-opt")
    for flag in ("--rm", "--init", "--read-only"):
        assert flag in words
    assert int(values(words, "--pids-limit")[0]) <= 4096
    assert values(words, "--shm-size") == ["1g"]
    assert "--privileged" not in words
    user = "1234:1234" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    assert values(words, "--user") == [user]
    assert ("--userns" in words) == (runtime == "podman" and os.getuid() != 0)
    assert (repo.parent / "log").read_text().startswith(runtime)


def test_the_repository_is_read_only_but_for_outputs_and_secrets_are_covered(repo):
    (repo / ".env").write_text("HF_TOKEN=hf_secret\n")
    assert launch(repo, "cpu", "score").returncode == 0
    words = flags(repo)
    volumes = values(words, "--volume")
    writable = {v.split(":")[1] for v in volumes if not v.endswith(":ro") and ":/hf/" not in v}
    outputs = ("data", "models", "metrics", "plots", "reports", ".checkpoints", ".cache")
    assert writable == {f"/repo/{folder}" for folder in outputs}
    assert f"{repo}:/repo:ro" in volumes
    assert f"{repo}/data/smoke:/repo/data/smoke:ro" in volumes
    assert "/dev/null:/repo/.dvc/config.local:ro" in volumes
    assert "/dev/null:/repo/.env:ro" in volumes
    assert any(value.startswith("/repo/.git:ro") for value in values(words, "--tmpfs"))


@pytest.mark.parametrize(
    "job", ["sft", "grade", "grpo", "merge", "sample", "evaluate", "compare", "score", "generate", "gguf", "odd"]
)
def test_jobs_that_need_no_network_have_none(repo, job):
    done = launch(repo, "cpu", job, HF_TOKEN="hf_secret", TEACHER_KEY="sk-secret", HTTPS_PROXY="http://u:p@proxy")
    assert done.returncode == 0, done.stderr
    words = flags(repo)
    assert values(words, "--network") == ["none"]
    names = values(words, "--env")
    assert not {"HF_TOKEN", "TEACHER_KEY", "HTTPS_PROXY"} & set(names)
    assert "HF_HUB_OFFLINE=1" in names
    assert {v for v in values(words, "--volume") if ":/hf" in v} == {
        f"{repo.parent}/.cache/huggingface/{folder}:/hf/{folder}:ro" for folder in ("hub", "datasets", "xet")
    } | {"/dev/null:/hf/token:ro"}


@pytest.mark.parametrize(("job", "secret"), [("base", "HF_TOKEN"), ("publish", "HF_TOKEN"), ("distill", "TEACHER_KEY"),
                                             ("tasks", None)])  # fmt: skip
def test_secrets_go_by_name_to_the_jobs_that_need_them(repo, job, secret):
    secrets = {"HF_TOKEN": "hf_secret", "TEACHER_KEY": "sk-secret", "AWS_SECRET_ACCESS_KEY": "aws-secret"}
    assert launch(repo, "cpu", job, **secrets).returncode == 0
    words = flags(repo)
    assert values(words, "--network") == ["bridge"]
    assert set(values(words, "--env")) & set(secrets) == ({secret} if secret else set())
    assert not any(value in (repo.parent / "log").read_text() for value in secrets.values())


def hub(repo) -> Path:
    cache = repo.parent / ".cache/huggingface"
    (cache / "hub/models--x").mkdir(parents=True)
    for name in ("token", "stored_tokens", "credentials.json"):
        (cache / name).write_text("hf_secret")
    return cache


@pytest.mark.parametrize("job", ["base", "publish", "tasks", "distill", "evaluate", "score"])
def test_the_hubs_token_goes_to_the_jobs_that_need_it_and_no_other_file_of_the_cache(repo, job):
    """What lies in the cache beside models and data is not mounted, whatever it is called."""
    cache = hub(repo)
    assert launch(repo, "cpu", job).returncode == 0
    mounted = {v.split(":")[0] for v in values(flags(repo), "--volume") if v.split(":")[1].startswith("/hf")}
    token = f"{cache}/token" if job in ("base", "publish") else "/dev/null"
    assert mounted == {f"{cache}/hub", f"{cache}/datasets", f"{cache}/xet", token}


@pytest.mark.parametrize(("given", "found"), [
    ("rel/hub", "rel/hub"), ("~/mine", "mine"), ("./a/../b", "b"), ("with space", "with space"),
])  # fmt: skip
def test_the_hubs_cache_is_found_as_the_hub_finds_it(repo, given, found):
    """A relative path would be the name of a volume to the runtime."""
    assert launch(repo, "cpu", "score", HF_HOME=given).returncode == 0
    assert f"{repo.parent / found}/hub:/hf/hub:ro" in values(flags(repo), "--volume")
    assert (repo.parent / found / "hub").is_dir()


def test_paths_that_a_volume_cannot_name_are_refused(repo):
    done = launch(repo, "cpu", "score", HF_HOME="/tmp/a:b")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "/tmp/a:b holds a colon" in done.stderr
    moved = repo.parent / "odd : place"
    moved.mkdir()
    done = launch(repo.rename(moved / "repo"), "cpu", "score", PATH=f"{repo.parent}/bin:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "odd : place/repo holds a colon" in done.stderr
    assert not (moved / "log.run").exists()


def test_a_repository_with_spaces_in_its_path_runs(repo):
    moved = repo.rename(repo.parent / "a folder of mine")
    assert launch(moved, "cpu", "score").returncode == 0
    assert f"{moved}/data:/repo/data" in values(flags(moved), "--volume")


def params(repo, **changed):
    known = {
        "base_url": "https://teacher.example/v1",
        "model": "some-model",
        "api_key_env": "TEACHER_KEY",
        "recorded": "null",
    }
    lines = "".join(f"  {key}: {value}\n" for key, value in (known | changed).items())
    (repo / "params.yaml").write_text(f"# api_key_env: OTHER_KEY\nbase: {{repo: me/mine}}\ndistill:\n{lines}")


@pytest.mark.parametrize(("url", "network"), [
    ("http://localhost:8000/v1", "host"), ("http://127.0.0.1:8000", "host"), ("http://[::1]:8000/v1", "host"),
    ("HTTP://LocalHost/v1", "host"), ("http://0.0.0.0:1/", "host"), ("http://localhost.example:8000/v1", "bridge"),
    ("http://host.docker.internal:8000/v1", "bridge"), ("https://teacher.example/localhost", "bridge"),
])  # fmt: skip
def test_a_teacher_on_this_machine_is_reached(repo, url, network):
    """A loopback address is the container's own unless it shares the machine's network; a gateway has a name."""
    params(repo, base_url=f'"{url}"')
    assert launch(repo, "cpu", "distill", TEACHER_KEY="sk", HTTPS_PROXY="http://proxy").returncode == 0
    words = flags(repo)
    assert values(words, "--network") == [network]
    assert ("HTTPS_PROXY" in values(words, "--env")) == (network == "bridge")
    assert values(words, "--add-host") == (["host.docker.internal:host-gateway"] if network == "bridge" else [])


@pytest.mark.parametrize(("runtime", "version", "info", "own"), [
    ("docker", "20.10.24", "", False), ("docker", "27.1.0", "name=rootless", True), ("podman", "3.4.4", "", True),
    ("podman", "4.3.1", "", True), ("podman", "4.10.0", "", False), ("podman", "5.4.2", "", False),
    ("podman", "", "", False),
])  # fmt: skip
def test_this_machine_has_a_name_in_containers_whatever_the_runtime_knows_of_it(repo, runtime, version, info, own):
    """Podman before 4.7 knows no host-gateway, and a rootless Docker's is not this machine: they get its address."""
    hostname = repo.parent / "bin/hostname"
    hostname.write_text('#!/bin/sh\n[ "$1" = -I ] && echo "fd00::2 192.0.2.7 172.17.0.1 " || echo box\n')
    hostname.chmod(0o755)
    params(repo, base_url="http://host.docker.internal:8000/v1")
    assert launch(repo, "cpu", "distill", RUNTIME=runtime, ENGINE_VERSION=version, ENGINE_INFO=info).returncode == 0
    machine = "192.0.2.7" if own else "host-gateway"
    assert values(flags(repo), "--add-host") == [f"host.docker.internal:{machine}"]


def test_without_a_teacher_there_is_no_network_and_no_key(repo):
    params(repo, base_url="http://localhost:8000", references="true")
    assert launch(repo, "cpu", "distill", TEACHER_KEY="sk").returncode == 0
    words = flags(repo)
    assert values(words, "--network") == ["none"]
    assert "TEACHER_KEY" not in values(words, "--env")


def test_recorded_answers_need_no_way_to_this_machine(repo):
    params(repo, base_url="http://localhost:8000", recorded="data/answers.jsonl")
    assert launch(repo, "cpu", "distill").returncode == 0
    assert values(flags(repo), "--network") == ["bridge"]


@pytest.mark.parametrize(("written", "words", "expected"), [
    ("null", [], None), ("~", [], None), ("", [], None), ("'TEACHER_KEY'", [], "TEACHER_KEY"),
    ("TEACHER_KEY", ["--set", "distill.api_key_env=null"], None),
    ("null", ["--set=distill.api_key_env=OTHER_KEY"], "OTHER_KEY"),
    ("TEACHER_KEY", ["--params", "mine.yaml"], "OTHER_KEY"),
])  # fmt: skip
def test_the_teachers_key_is_the_one_that_the_job_will_read(repo, written, words, expected):
    params(repo, api_key_env=written)
    (repo / "mine.yaml").write_text("distill: {api_key_env: OTHER_KEY, base_url: http://teacher.example}\n")
    done = launch(repo, "cpu", "distill", *words, TEACHER_KEY="sk-1", OTHER_KEY="sk-2")
    assert done.returncode == 0, done.stderr
    assert {"TEACHER_KEY", "OTHER_KEY"} & set(values(flags(repo), "--env")) == ({expected} if expected else set())


@pytest.mark.parametrize(("written", "message"), [
    ("'a[$(touch pwned)]'", "is not the name of a variable"), ("x y", "is not the name of a variable"),
    ("[", "cannot be read as params"),
])  # fmt: skip
def test_a_teachers_key_that_is_no_name_is_refused(repo, written, message):
    params(repo, api_key_env=written)
    done = launch(repo, "cpu", "distill")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert message in done.stderr
    assert not (repo.parent / "log.run").exists()
    assert not (repo / "pwned").exists()


def test_the_image_reads_the_params_where_no_python_here_can(repo):
    for name in ("python", "python3", "dvc"):  # a dvc that is a wrapper in shell
        (repo.parent / "bin" / name).write_text("#!/bin/sh\nexit 3\n")
        (repo.parent / "bin" / name).chmod(0o755)
    assert launch(repo, "cpu", "distill").returncode == 0
    asked = [
        line for line in (repo.parent / "log").read_text().splitlines() if "docker/param.py distill.api_key_env" in line
    ]
    assert len(asked) == 1
    assert "--network none" in asked[0]


@pytest.mark.parametrize(("info", "user", "more"), [
    ("[name=seccomp,profile=builtin name=rootless name=cgroupns]", "0:0", ["--cap-add", "SETUID", "--cap-add", "SETGID"]),
    ("[name=seccomp,profile=builtin name=userns]", None, ["--userns", "host"]),
    ("[name=apparmor name=seccomp,profile=builtin]", None, []),
])  # fmt: skip
def test_the_job_is_the_owner_of_the_repository_whatever_docker_makes_of_ids(repo, info, user, more):
    assert launch(repo, "cpu", "score", ENGINE_INFO=info).returncode == 0
    words = flags(repo)
    owner = "1234:1234" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    assert values(words, "--user") == [user or owner]
    found = [
        word
        for i, word in enumerate(words)
        if word in ("--cap-add", "--userns") or words[i - 1] in ("--cap-add", "--userns")
    ]
    assert found == more
    assert values(words, "--cap-drop") == ["ALL"]
    lines = launch(repo, script="docker/doctor", ENGINE_INFO=info).stdout
    assert ("rootless" in lines, "userns-remap" in lines) == (user is not None, more[:1] == ["--userns"])


def test_a_rootless_docker_cannot_reach_this_machines_loopback(repo):
    params(repo, base_url="http://localhost:8000/v1")
    done = launch(repo, "cpu", "distill", ENGINE_INFO="name=rootless")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "http://localhost:8000/v1 is this machine" in done.stderr


def test_podman_by_dockers_name_is_told_apart(repo):
    with open(repo.parent / "bin/docker", "a") as file:
        file.write('[ "$1" != --version ] || echo podman version 4.3.1\n')
    done = launch(repo, "cpu", "score")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "RUNTIME=podman" in done.stderr


@pytest.mark.parametrize(("left", "message"), [
    ("ln -s /etc/passwd data/x", "data/x is a link that leaves data/ (to /etc/passwd)"),
    ("mkdir models/m && ln -s ../../params.yaml models/m/c.json", "models/m/c.json is a link that leaves models/"),
    ("ln -s /repo/data/y data/x; touch data/y", "data/x is a link that leaves"),  # /repo is the container's name alone
    ("ln -s ../metrics plots/m", "plots/m is a link that leaves"),
    ("ln -s .. data/up", "data/up is a link that leaves"),
    ("ln -s /etc/passwd 'reports/a\nb'", "is a link that leaves"),
    ("mkfifo data/pipe", "data/pipe is neither file nor folder"),
    ("mkdir data/d && echo 'stages: {}' > data/d/dvc.yaml", "data/d/dvc.yaml is part of a pipeline"),
    ("touch metrics/x.dvc", "metrics/x.dvc is part of a pipeline"),
    ("echo changed >> data/mine.dvc", "data/mine.dvc is part of a pipeline"),
    ("mkdir -p reports/.git", "reports/.git is part of a pipeline"),
])  # fmt: skip
def test_what_dvc_would_follow_is_refused_before_it_does(repo, left, message):
    (repo / "data/mine.dvc").write_text("outs: []\n")  # `dvc add` of the user's own
    time.sleep(0.02)
    done = launch(repo, "cpu", "score", JOB=left)
    assert done.returncode == 1
    assert message in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_links_within_a_folder_and_the_users_own_files_are_left_in_peace(repo):
    (repo / "data/mine.dvc").write_text("outs: []\n")
    away = repo.parent / "big disk"
    away.mkdir()
    shutil.chown(away, repo.stat().st_uid)
    (repo / "models").symlink_to(away)
    time.sleep(0.02)
    done = launch(
        repo, "cpu", "score", JOB="touch models/a && ln -s a models/b && mkdir data/d && ln -s ../mine.dvc data/d/x"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_jobs_links_are_named_too_and_its_exit_code_stays(repo):
    done = launch(repo, "cpu", "score", JOB="ln -s /etc/passwd data/x", JOB_STATUS="7")
    assert done.returncode == 7
    assert "data/x is a link" in done.stderr


def test_a_gpu_is_passed_only_where_there_is_one_and_wanted_where_needed(repo):
    refused = launch(repo, "train", "sft")
    assert refused.returncode == 1
    assert refused.stderr.strip() == "error: sft in the train image needs an NVIDIA GPU, and nvidia-smi finds none here"
    assert not (repo.parent / "log.run").exists()
    assert launch(repo, "gguf", "gguf").returncode == 0
    assert "--gpus" not in flags(repo)
    assert launch(repo, "train", "sample").returncode == 1
    assert launch(repo, "train", "evaluate").returncode == 0, "scoring needs none"
    gpu(repo)
    assert launch(repo, "train", "sft").returncode == 0
    assert values(flags(repo), "--gpus") == ["all"]
    assert launch(repo, "train", "sft", RUNTIME="podman").returncode == 0
    assert values(flags(repo), "--device") == ["nvidia.com/gpu=all"]
    assert launch(repo, "cpu", "sft").returncode == 0
    assert "--gpus" not in flags(repo)


def test_another_image_can_take_the_place_of_train(repo):
    assert launch(repo, "train", "sft", TRAIN_IMAGE="cpu").returncode == 0
    assert any(word.startswith("jobs-cpu:") for word in flags(repo))


@pytest.mark.parametrize(("words", "env", "message", "status"), [
    (["cpu", "score"], {"NO_DAEMON": "1"}, "docker does not answer", 1),
    (["cpu", "score"], {"RUNTIME": "singularity"}, "must be docker, podman or local", 2),
    (["cpu", "score"], {"MIN_DISK_GIB": "999999"}, "GiB free on the disk", 1),
    (["cpu", "score"], {"SHM_GIB": "99999"}, "of shared memory", 1),
    (["gpu", "score"], {}, "image 'gpu': must be one of cpu gguf train", 2),
    (["../x", "score"], {}, "must be one of", 2),
    (["cpu"], {}, "usage: docker/run IMAGE JOB", 2),
])  # fmt: skip
def test_what_is_missing_is_one_line_before_anything_happens(repo, words, env, message, status):
    done = launch(repo, *words, **env)
    assert done.returncode == status
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (repo.parent / "log.run").exists()
    assert not (repo / "models").exists()


def test_without_a_runtime_it_says_what_to_do(repo):
    for name in ("docker", "podman"):
        (repo.parent / "bin" / name).unlink()
    for tool in ("bash", "dirname", "id", "stat", "sed", "uname"):
        (repo.parent / "bin" / tool).symlink_to(shutil.which(tool))
    done = launch(repo, "cpu", "score", PATH=f"{repo.parent}/bin")
    assert done.returncode == 1
    assert done.stderr == (
        "error: docker is not installed: install Docker Engine, or podman for RUNTIME=podman; RUNTIME=local runs without a "
        "container\n"
    )


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to own the repository as root")
def test_root_does_not_run_jobs_as_root(repo):
    os.chown(repo, 0, 0)
    done = launch(repo, "cpu", "score")
    assert done.returncode == 1
    assert "belongs to root" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to see whom folders are given to")
def test_no_root_owned_folder_is_left(repo):
    assert launch(repo, "cpu", "score").returncode == 0
    for folder in ("models", "metrics", ".checkpoints", ".cache"):
        assert (repo / folder).stat().st_uid == 1234


@pytest.mark.parametrize("status", [0, 1, 2, 130, 137])
def test_the_jobs_exit_code_is_the_launchers(repo, status):
    assert launch(repo, "cpu", "score", JOB_STATUS=str(status)).returncode == status


@pytest.mark.parametrize(("sent", "name", "status"), [(signal.SIGINT, "INT", 130), (signal.SIGTERM, "TERM", 143)])
def test_a_signal_reaches_the_container_and_none_is_left(repo, sent, name, status):
    """The runtime's `run` sleeps on whatever it is sent; the launcher must signal the container, not its client."""
    log = repo.parent / "log"
    environment = {"PATH": f"{repo.parent}/bin:{os.environ['PATH']}", "HOME": str(repo.parent), "LOG": str(log),
                   "MIN_DISK_GIB": "0", "JOB_SECONDS": "3"}  # fmt: skip
    process = subprocess.Popen([repo / "docker/run", "cpu", "score"], env=environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 20
    while not (repo.parent / "log.run").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(timeout=20) == status
    asked = log.read_text()
    (container,) = values(flags(repo), "--name")
    assert f"docker kill --signal {name} {container}\n" in asked
    assert f"docker rm --force {container}\n" in asked


def test_runtime_local_is_this_python_with_the_arguments_and_its_exit_code(repo):
    (repo / "jobs/__main__.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)\n")
    done = launch(repo, "train", "score", "a b", "*", RUNTIME="local", PYTHON=shutil.which("python3"))
    assert (done.returncode, done.stdout) == (7, "['score', 'a b', '*']\n")
    assert not (repo.parent / "log").exists()


@pytest.mark.parametrize(
    ("job", "offline"), [("evaluate", "1"), ("merge", "1"), ("tasks", "None"), ("publish", "None")]
)
def test_runtime_local_looks_nothing_up_where_a_container_has_no_network(repo, job, offline):
    (repo / "jobs/__main__.py").write_text("import os; print(os.environ.get('HF_HUB_OFFLINE'))\n")
    done = launch(repo, "train", job, RUNTIME="local", PYTHON=shutil.which("python3"))
    assert done.stdout == f"{offline}\n"


def test_the_tag_follows_dockerfile_locks_and_base_and_nothing_else(repo):
    def tag(**env):
        done = launch(repo, "cpu", script="docker/build", **env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = tag()
    (repo / "jobs/__init__.py").write_text('__version__ = "10"\n')
    (repo / "docker/images/train/packages.lock").write_text("other\n")
    assert tag() == first
    assert tag(JOBS_BASE="other:base") != first
    assert tag(JOBS_SNAPSHOT="") != first
    for name in ("cpu/packages.lock", "cpu/Dockerfile", "tools.lock", "llama.cmake"):
        before = tag()
        with open(repo / "docker/images" / name, "a") as file:
            file.write("# changed\n")
        assert tag() != before, name


def test_a_missing_image_is_pulled_where_the_registry_has_it_and_built_where_not(repo):
    log = repo.parent / "log"
    done = launch(repo, "cpu", script="docker/build", NO_IMAGE="1", JOBS_REGISTRY="example.org/x", REGISTRY_HAS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("example.org/x/jobs-cpu:")
    assert "docker build" not in log.read_text()
    done = launch(repo, "cpu", script="docker/build", NO_IMAGE="1", JOBS_BASE="mirror/python@sha256:0")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("docker build")]
    assert "--build-arg BASE=mirror/python@sha256:0" in line
    assert "org.opencontainers.image.version=9" in line
    assert "jobs.lock=sha256:" in line
    assert "1 MB" in done.stderr
    assert '"bytes": 1000000' in (repo / "reports/images/cpu.json").read_text()


def test_doctor_says_what_is_missing_and_what_to_do(repo):
    done = launch(repo, script="docker/doctor", NO_DAEMON="1")
    assert done.returncode == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert lines["runtime"].startswith("MISSING")
    assert "RUNTIME=local" in lines["runtime"]
    assert "80 GB" in lines["gpu"]
    assert lines["teacher"].startswith("note")
    assert "TEACHER_KEY" in lines["teacher"]
    assert all(len(line) > 25 for line in lines.values())


@pytest.mark.parametrize(("driver", "verdict"), [("580.65.06", "ok"), ("550.90", "MISSING")])
def test_doctor_holds_the_driver_against_cuda_13_and_prints_no_secret(repo, driver, verdict):
    gpu(repo)
    path = repo.parent / "bin/nvidia-smi"
    path.write_text(f"#!/bin/sh\ncase $* in *driver*) echo {driver} ;; *) echo 'GPU 0, 81559 MiB' ;; esac\n")
    done = launch(repo, script="docker/doctor", TEACHER_KEY="sk-secret", HF_TOKEN="hf_secret")
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert lines["driver"].startswith(verdict)
    assert lines["teacher"].startswith("note")  # the key is set, but the endpoint does not exist
    assert "sk-secret" not in done.stdout + done.stderr
    assert "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(("card", "base", "verdict"), [
    ("Tesla T4, 15360 MiB", "Qwen/Qwen3-4B-Base", "MISSING"),
    ("NVIDIA H100 80GB HBM3, 81559 MiB", "Qwen/Qwen3-4B-Base", "ok"),
    ("Tesla T4, 15360 MiB", "me/mine", "note"), ("NVIDIA GB10, [N/A]", "me/mine", "note"),
])  # fmt: skip
def test_doctor_knows_the_cards_memory(repo, card, base, verdict):
    gpu(repo)
    (repo.parent / "bin/nvidia-smi").write_text(
        f"#!/bin/sh\ncase $* in *driver*) echo 580.65 ;; *query*) echo '{card}' ;; *) echo GPU ;; esac\n"
    )
    params(repo)
    (repo / "params.yaml").write_text((repo / "params.yaml").read_text().replace("me/mine", base))
    lines = {line.split()[1]: line for line in launch(repo, script="docker/doctor").stdout.splitlines()}
    assert lines["gpu"].startswith(verdict)
    assert card in lines["gpu"]


@pytest.fixture
def teacher():
    """An endpoint that lists two models to whoever brings the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/v1/models" and self.headers["Authorization"] == "Bearer sk-secret"
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "new-model"}, {"id": "other"}]}' if known else b"sk-secret is wrong")

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize(("changes", "key", "verdict", "said"), [
    ({"model": "new-model"}, "sk-secret", "ok", "is served"),
    ({"model": "gone"}, "sk-secret", "MISSING", "gone is not served by"),
    ({"model": "gone", "aliases": "[older, other]"}, "sk-secret", "ok", "is served"),
    ({"model": "gone", "aliases": "[older]"}, "sk-secret", "MISSING", "gone is not served by"),
    ({"recorded": "null", "references": "true"}, "", "ok", "nobody is asked"),
    ({"model": "gone"}, "sk-other", "note", "401"),
    ({"model": "gone", "api_key_env": "null"}, "", "note", "401"),
    ({"model": "gone"}, "", "note", "TEACHER_KEY is not set"),
    ({"model": "deepseek-reasoner", "base_url": "https://api.deepseek.com"}, "", "MISSING", "2026-07-24"),
    ({"api_key_env": "no name"}, "", "MISSING", "not the name of a variable"),
    ({"recorded": "answers.jsonl"}, "", "ok", "answers.jsonl"),
])  # fmt: skip
def test_doctor_asks_the_teacher_whether_the_model_is_still_there(repo, teacher, changes, key, verdict, said):
    params(repo, **({"base_url": teacher} | changes))
    done = launch(repo, script="docker/doctor", TEACHER_KEY=key)
    [line] = [line for line in done.stdout.splitlines() if line.split()[1] == "teacher"]
    assert line.startswith(verdict)
    assert said in line
    assert "sk-" not in done.stdout + done.stderr


@pytest.mark.parametrize(("url", "package", "verdict"), [
    ("s3://bucket/x", None, "MISSING"), ("s3://bucket/x", "dvc_s3", "ok"), ("gs://bucket", "dvc_s3", "MISSING"),
    ("ssh://host/x", None, "MISSING"), ("/mnt/shared", None, "ok"),
])  # fmt: skip
def test_doctor_knows_what_a_remote_needs(repo, url, package, verdict):
    python = repo.parent / "bin/dvcpython"
    (repo.parent / "bin/dvc").write_text(f"#!{python}\n")
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"remote default"*) echo shared ;; *remote.shared.url*) echo {url} ;; '
        f'"-c import {package}") exit 0 ;; *) exit 1 ;; esac\n'
    )
    for file in (python, repo.parent / "bin/dvc"):
        file.chmod(0o755)
    done = launch(repo, script="docker/doctor")
    [line] = [line for line in done.stdout.splitlines() if line.split()[1] == "dvc"]
    assert line.startswith(verdict)
    if verdict == "MISSING":
        target = line.split("make ")[1]
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("runtime", "info", "noted"), [
    ("docker", "true", False), ("docker", "false", True), ("podman", "[cpu memory pids]", False), ("podman", "[]", True),
])  # fmt: skip
def test_doctor_says_where_a_jobs_processes_are_not_limited(repo, runtime, info, noted):
    """A rootless runtime ignores --pids-limit where the user was given no such controller."""
    said = launch(repo, script="docker/doctor", RUNTIME=runtime, ENGINE_INFO=info).stdout
    assert ("note     limits" in said) == noted


def test_every_remedy_of_doctor_is_a_target():
    said = (ROOT / "docker/doctor").read_text()
    targets = set(re.findall(r"\bmake ([a-z.][\w.-]*)", said)) - {"dvc-"}
    assert "install" in targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (target, done.stderr)


@pytest.mark.parametrize("version", ["(3, 10)", "(3, 13)"])
def test_install_refuses_a_python_that_the_lock_is_not_for(repo, version):
    python = repo.parent / "bin/python9"
    python.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit\nexit 1\n')
    python.chmod(0o755)
    done = launch(repo, "python9", ".venv", script="docker/install")
    assert done.returncode == 2
    assert "3.11 or 3.12 is needed" in done.stderr
    assert not (repo / ".venv").exists()


@pytest.mark.parametrize("runtime", ["docker", "podman"])
def test_a_stand_in_base_is_made_of_debians_packages_and_the_wheels_that_are_here(repo, runtime):
    """A program in debootstrap's place puts one file into the folder that it is given."""
    fake = repo.parent / "bin/debootstrap"
    fake.write_text('#!/bin/bash\nroot=${!#}\nmkdir -p "$root/etc/ssl/certs" && touch "$root/etc/debian_version"\n')
    fake.chmod(0o755)
    wheels = repo.parent / "wheels"
    wheels.mkdir()
    (wheels / "torch-1-py3-none-any.whl").write_bytes(b"a wheel")
    done = launch(repo, "standin:test", script="docker/standin", RUNTIME=runtime, PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 0, done.stderr
    asked = (repo.parent / "log").read_text().splitlines()
    assert any(line.startswith(f"{runtime} import ") and line.endswith(" - standin:test") for line in asked), asked
    with tarfile.open(repo.parent / "log.tar") as image:
        assert {"./etc/debian_version", "./wheels/torch-1-py3-none-any.whl"} <= set(image.getnames())


PRINTS = """#!/bin/sh
env
"""
FORCED = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "AUTO", "OMP_NUM_THREADS": "7",
          "OPENBLAS_CORETYPE": "SkylakeX", "NPY_DISABLE_CPU_FEATURES": "X86_V3"}  # fmt: skip


def rounding(repo, runtime, **env):
    """What a job of the `cpu` image sees of FORCED's names, started by `runtime` with `env` around it."""
    if runtime == "local":
        python = repo.parent / "bin/prints"
        python.write_text(PRINTS)
        python.chmod(0o755)
        done = launch(repo, "cpu", "score", RUNTIME="local", PYTHON=str(python), **env)
        words = done.stdout.splitlines()
    else:
        done = launch(repo, "cpu", "score", RUNTIME=runtime, **env)
        words = values(flags(repo), "--env")
    assert done.returncode == 0, done.stderr
    return dict(word.split("=", 1) for word in words if word.partition("=")[0] in FORCED)


def test_what_decides_a_cpus_rounding_is_the_same_in_every_runtime_whatever_the_caller_has_set(repo):
    seen = [rounding(repo, runtime, **env) for runtime in ("local", "docker", "podman") for env in ({}, FORCED)]
    assert all(one == seen[0] for one in seen)
    assert seen[0].keys() == FORCED.keys() and not seen[0].items() & FORCED.items()


def test_on_a_gpu_the_caller_decides(repo):
    gpu(repo)
    assert rounding(repo, "local", **FORCED) == FORCED
    assert rounding(repo, "docker", **FORCED) != FORCED, "the cpu image sees no GPU"
    assert launch(repo, "train", "sft", MIN_DISK_GIB="0", **FORCED).returncode == 0
    given = values(flags(repo), "--env")
    assert "OMP_NUM_THREADS" in given and not any(word.startswith("MKL_CBWR") for word in given)
