"""docker/run with cards of its own, on several machines, and through a Slurm that only starts what it is told to here."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launcher import flags, gpu, launch, make_repo, values

# srun: what it was told, its environment as --export has it, and then each task, one after the other. Told to stop, it has
# its tasks killed at once, which is what Slurm's does; scancel --signal is what asks them to end.
SRUN = r"""#!/bin/bash
printf '%s\n' "$@" > "$LOG.srun"
tasks=1 exported=
while [ $# -gt 0 ]; do
    case $1 in
        --ntasks) tasks=$2; shift 2 ;;
        --export) exported=$2; shift 2 ;;
        --job-name | --nodes | --ntasks-per-node | --input | --gpus-per-node | --partition) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
if [ -n "$exported" ]; then
    kept=()
    for name in ${exported//,/ } LOG REPO CARD_LOCKS; do [ -z "${!name+x}" ] || kept+=("$name=${!name}"); done
else
    mapfile -d '' -t kept < <(env -0)
fi
echo $$ > "$LOG.srun.pid"
trap 'echo killed >> "$LOG.killed"; kill -KILL $(jobs -p); exit 137' TERM
for ((rank = 0; rank < tasks; rank++)); do
    kept+=(SLURM_JOB_ID=42 SLURM_PROCID=$rank "SLURM_STEP_NODELIST=n[1-2]" SLURMD_NODENAME=n$((rank + 1)))
    env -i "${kept[@]}" "$@" &
    echo $! > "$LOG.task"
    wait $! || exit $?
done
"""
SCONTROL = """#!/bin/bash
case $* in
    "show hostnames n[1-2]") printf 'n1\\nn2\\n' ;;
    "show node --oneliner n1") echo "NodeName=n1 Arch=x86_64 NodeAddr=127.0.0.1 NodeHostName=h Version=1" ;;
    "show node --oneliner n2") echo "NodeName=n2 NodeAddr=10.99.99.2 NodeHostName=h Version=1" ;;
    *) exit 1 ;;
esac
"""
SCANCEL = """#!/bin/bash
echo "$@" >> "$LOG.scancel"
[ -z "$CONTROLLER_AWAY" ] || exit 1
case $* in *PENDING*) ;; *--signal*) kill -TERM "$(cat "$LOG.task")" ;; *) kill -KILL "$(cat "$LOG.task")" ;; esac
"""
SQUEUE = """#!/bin/sh
case $* in *--states*) echo "${STATE-COMPLETED}" ;; *) echo RUNNING ;; esac
"""
PYTHON = f"""#!/bin/bash
[ "$1" != docker/param.py ] || exec {sys.executable} "$@"
for name in NODES NODE_RANK MASTER_ADDR MASTER_PORT GLOO_SOCKET_IFNAME CARDS CLUSTER SECRET HF_HUB_OFFLINE; do
    echo "$name=${{!name-}}"
done
echo "words: $*"
exec bash -c "$JOB"
"""
PARAMS = """\
sft: {processes: 1}
grpo: {processes: 2}
sandbox: {require: [seccomp, unprivileged]}
"""


@pytest.fixture
def repo(tmp_path):
    root = make_repo(tmp_path)
    (root / "params.yaml").write_text(PARAMS)
    programs = {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE, "job": PYTHON,
                "scancel": SCANCEL}  # fmt: skip
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return root


def submit(repo, *words, **env):
    around = {"CLUSTER": "slurm", "RUNTIME": "local", "PYTHON": str(repo.parent / "bin/job"), "TRAIN_IMAGE": "cpu"}
    return launch(repo, *words, **around | env)


def told(repo) -> list[str]:
    return (repo.parent / "log.srun").read_text().splitlines()


def test_a_job_of_one_process_is_one_task_on_one_node(repo):
    done = submit(repo, "train", "merge", "--out", "a b", NODES="2", SECRET="s")
    assert done.returncode == 0, done.stderr
    assert values(told(repo), "--nodes") == values(told(repo), "--ntasks") == ["1"]
    assert "--kill-on-bad-exit=1" in told(repo)
    assert "words: -m jobs merge --out a b\n" in done.stdout
    assert "NODES=1\nNODE_RANK=\nMASTER_ADDR=\n" in done.stdout
    assert "CARDS=given\nCLUSTER=\nSECRET=s\n" in done.stdout, "without a container a job has the caller's environment"


def test_the_processes_of_a_job_are_told_where_they_meet(repo):
    done = submit(repo, "train", "grpo", NODES="2")
    assert done.returncode == 0, done.stderr
    assert values(told(repo), "--nodes") == values(told(repo), "--ntasks") == ["2"]
    assert values(told(repo), "--ntasks-per-node") == ["1"]
    first, second = done.stdout.split("words: -m jobs grpo\n")[:2]
    assert "NODES=2\nNODE_RANK=0\nMASTER_ADDR=127.0.0.1\nMASTER_PORT=20042\nGLOO_SOCKET_IFNAME=lo\n" in first  # by `ip`
    assert "NODES=2\nNODE_RANK=1\nMASTER_ADDR=127.0.0.1\nMASTER_PORT=20042\nGLOO_SOCKET_IFNAME=\n" in second


def test_a_container_is_told_the_jobs_cards_by_their_own_numbers(repo):
    """Slurm counts them from 0 for each job where it hides the others, which a container sees."""
    gpu(repo, 4)
    node = NODE | {"RUNTIME": "docker", "SLURM_STEP_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0", "MIN_DISK_GIB": "0",
                   "SHM_GIB": "1", "REPO": str(repo)}  # fmt: skip
    assert begin(repo, "docker/node", "train", "sample", **node | {"TRAIN_IMAGE": "train"}).wait(timeout=20) == 0
    assert "CUDA_VISIBLE_DEVICES=2" in (repo.parent / "log.env").read_text().splitlines()


def test_without_nodes_they_stay_on_one(repo):
    done = submit(repo, "train", "grpo")
    assert values(told(repo), "--nodes") == ["1"]
    assert "NODES=1\nNODE_RANK=\n" in done.stdout


@pytest.mark.parametrize(("words", "env", "message"), [
    (["grpo", "--set", "grpo.processes=3"], {"NODES": "2"}, "NODES=2: grpo.processes: 3 cannot be divided evenly"),
    (["grpo", "--set", "sandbox.require=[unprivileged]"], {"NODES": "2"}, "sandbox.require must name seccomp"),
    (["grpo"], {"NODES": "two"}, "NODES=two: must be a number of machines"),
    (["grpo"], {"NODES": "0"}, "NODES=0: must be a number of machines"),
    (["grpo"], {"CLUSTER": "pbs"}, "CLUSTER=pbs: must be slurm"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_submitted(repo, words, env, message):
    done = submit(repo, "train", *words, **env)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (repo.parent / "log.srun").exists()


def test_seccomp_is_wanted_by_jobs_on_several_machines_alone(repo):
    assert submit(repo, "train", "sft", "--set", "sandbox.require=[]", NODES="2").returncode == 0
    assert submit(repo, "train", "evaluate", "--set", "sandbox.require=[]", NODES="2").returncode == 0


@pytest.mark.parametrize("job", ["base", "tasks", "distill", "publish"])
def test_jobs_with_network_stay_where_the_keys_are(repo, job):
    done = submit(repo, "train", job)
    assert f"words: -m jobs {job}\n" in done.stdout
    assert not (repo.parent / "log.srun").exists()
    submit(repo, "train", job, CLUSTER_HERE="")
    assert (repo.parent / "log.srun").exists(), "unless none is to"


def test_in_containers_no_key_of_the_callers_leaves_the_host(repo):
    secrets = {"HF_TOKEN": "hf", "AWS_SECRET_ACCESS_KEY": "aws", "NCCL_DEBUG": "WARN"}
    done = submit(repo, "cpu", "grpo", NODES="2", RUNTIME="docker", **secrets)
    assert done.returncode == 0, done.stderr
    [exported] = values(told(repo), "--export")
    names = exported.split(",")
    assert {"PATH", "RUNTIME", "NODES", "NCCL_DEBUG"} <= set(names)
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & set(names)
    assert not any("=" in name for name in names), "no value shows in a command line"


def test_a_container_has_the_nodes_network_where_its_ranks_are_on_several_alone(repo):
    assert submit(repo, "cpu", "grpo", NODES="2", RUNTIME="docker", NCCL_DEBUG="WARN").returncode == 0
    words = flags(repo)
    assert values(words, "--network") == ["host"]
    passed = set(values(words, "--env"))
    assert {"NODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NCCL_DEBUG", "HF_HUB_OFFLINE=1"} <= passed
    assert all(v.endswith(":ro") for v in values(words, "--volume") if "/hf/" in v)
    assert submit(repo, "cpu", "grpo", RUNTIME="docker").returncode == 0
    assert values(flags(repo), "--network") == ["none"]
    assert not {"NODES", "MASTER_ADDR"} & set(values(flags(repo), "--env"))


def test_the_site_says_what_else_a_job_gets_and_cards_are_asked_for_where_they_are_needed(repo):
    assert (
        submit(repo, "train", "grpo", NODES="2", TRAIN_IMAGE="train", CLUSTER_OPTIONS="--partition gpu").returncode == 0
    )
    assert values(told(repo), "--partition") == ["gpu"]
    assert values(told(repo), "--gpus-per-node") == ["1"]
    assert submit(repo, "train", "sample", TRAIN_IMAGE="train", SHARDS="4").returncode == 0
    assert values(told(repo), "--gpus-per-node") == ["4"]
    assert submit(repo, "train", "evaluate", TRAIN_IMAGE="train").returncode == 0
    assert "--gpus-per-node" not in told(repo)


@pytest.mark.parametrize("status", [0, 1, 2, 7])
def test_the_jobs_exit_code_comes_back(repo, status):
    assert submit(repo, "train", "merge", JOB=f"exit {status}").returncode == status


def test_a_job_whose_node_failed_has_failed_though_srun_says_nothing_of_it(repo):
    done = submit(repo, "train", "merge", STATE="NODE_FAIL")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("ended, and Slurm says that it is NODE_FAIL")


def begin(repo, *words, **env):
    above = repo.parent
    environment = {"PATH": f"{above}/bin:{os.environ['PATH']}", "HOME": str(above), "LOG": f"{above}/log",
                   "RUNTIME": "local", "PYTHON": f"{above}/bin/job", "TRAIN_IMAGE": "cpu"} | env  # fmt: skip
    return subprocess.Popen(words, cwd=repo, env=environment, stdin=subprocess.DEVNULL, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_until(true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert true()


# A job that writes down its id, and ends when it is told to.
WAITS = 'sleep 60 & trap "kill $!; exit 143" TERM; echo $$ > "$LOG.pid"; wait'  # ready to be told before it is known


def job_of(repo) -> int:
    path = repo.parent / "log.pid"
    wait_until(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def session(leader: int) -> list[str]:
    """The processes of a session."""
    done = subprocess.run(
        ["ps", "--sid", str(leader), "--format", "args="], capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("sent", "status"), [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGKILL, -9),
])  # fmt: skip
def test_however_the_launcher_ends_the_job_is_asked_to_end(repo, sent, status):
    """Killed at once, a job would leave its container behind."""
    process = begin(repo, "docker/run", "train", "merge", CLUSTER="slurm", JOB=WAITS)
    job = job_of(repo)
    process.send_signal(sent)
    assert process.wait(timeout=20) == status
    wait_until(lambda: gone(job))
    deadline = time.monotonic() + 5
    while (left := session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    wait_until(lambda: gone(int((repo.parent / "log.srun.pid").read_text())))
    [name] = values(told(repo), "--job-name")
    assert (repo.parent / "log.scancel").read_text() == f"--state PENDING --name {name}\n--signal TERM --name {name}\n"
    assert not (repo.parent / "log.killed").exists()


def test_a_job_that_cannot_be_asked_is_killed(repo):
    environment = {"CLUSTER": "slurm", "JOB": "trap '' TERM; " + WAITS, "CONTROLLER_AWAY": "1", "CLUSTER_GRACE": "1"}
    process = begin(repo, "docker/run", "train", "merge", **environment)
    job_of(repo)
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert (repo.parent / "log.killed").exists()


NODE = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n1", "CLUSTER_PATIENCE": "2"}


@pytest.mark.parametrize(("says", "message"), [
    ("echo NODE_FAIL", "job 42 is NODE_FAIL, says Slurm"), ("true", "job 42 is over, says Slurm"),
    ("exit 1", "no word of Slurm for 2 s"), ("sleep 60", "no word of Slurm for 2 s"),
])  # fmt: skip
def test_a_node_that_slurm_has_given_up_ends_its_part(repo, says, message):
    (repo.parent / "bin/squeue").write_text(f"#!/bin/sh\n{says}\n")
    process = begin(repo, "docker/node", "train", "merge", JOB=WAITS, **NODE)
    job = job_of(repo)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 1
    assert stderr.count("error: ") == 1 and f"error: n1: {message}" in stderr
    assert gone(job)


def test_a_controller_that_is_away_for_a_moment_ends_nothing(repo):
    counted = '#!/bin/sh\necho >> "$LOG.asked"\n[ "$(wc -l < "$LOG.asked")" != 1 ] && echo RUNNING\n'
    (repo.parent / "bin/squeue").write_text(counted)
    process = begin(repo, "docker/node", "train", "merge", JOB="sleep 5; exit 7", **NODE | {"CLUSTER_PATIENCE": "10"})
    assert process.wait(timeout=30) == 7
    assert len((repo.parent / "log.asked").read_text()) >= 3


def test_a_signal_reaches_the_job_on_its_node(repo):
    process = begin(repo, "docker/node", "train", "merge", JOB=WAITS, **NODE)
    job = job_of(repo)
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert gone(job)


CARDS = 'echo "cards: $CUDA_VISIBLE_DEVICES"'
LOCAL = {"RUNTIME": "local", "TRAIN_IMAGE": "train", "CLUSTER": ""}


@pytest.mark.parametrize(("words", "env", "cards"), [
    (["train", "sample"], {}, "0"), (["train", "sample"], {"SHARDS": "2"}, "0,1"), (["train", "grpo"], {}, "0,1"),
    (["train", "sft"], {}, "0"), (["gguf", "gguf"], {}, "0"), (["train", "evaluate"], {}, ""),
    (["cpu", "sample"], {}, ""), (["train", "sample"], {"CUDA_VISIBLE_DEVICES": "2"}, "2"),
    (["train", "sample"], {"CARDS": "given"}, ""), (["train", "grpo"], {"CUDA_VISIBLE_DEVICES": "2,1"}, "2,1"),
    (["train", "grpo"], {"NODES": "2"}, "0"),
    (["train", "grpo", "--set", "grpo.staleness=1", "--set", "grpo.processes=1"], {}, "0,1"),
])  # fmt: skip
def test_a_job_has_as_many_cards_as_processes(repo, words, env, cards):
    gpu(repo, 3)
    done = submit(repo, *words, JOB=CARDS, **LOCAL | env)
    assert done.returncode == 0, done.stderr
    assert f"cards: {cards}\n" in done.stdout


def test_more_cards_than_there_are_are_refused(repo):
    gpu(repo, 1)
    done = submit(repo, "train", "grpo", **LOCAL)
    said = "error: 2 cards are wanted, one a process (and one for grpo.staleness), and there are 1 here\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_in_a_container_it_is_the_same_card(repo):
    gpu(repo, 2)
    assert launch(repo, "train", "sample", MIN_DISK_GIB="0").returncode == 0
    assert {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"} <= set(values(flags(repo), "--env"))
    assert "CUDA_VISIBLE_DEVICES=0" in (repo.parent / "log.env").read_text().splitlines()


def test_jobs_at_once_have_a_card_each_and_the_next_waits_for_one(repo):
    """Five jobs, two cards: never two at once on one, and a killed job's card is free again."""
    gpu(repo, 2)
    used = ('card=$CUDA_VISIBLE_DEVICES; mkdir "$LOG.$card" || echo shared >> "$LOG.shared"; echo $card >> "$LOG.used"; '
            'sleep 0.7; rmdir "$LOG.$card"')  # fmt: skip
    environment = LOCAL | {"CARD_LOCKS": str(repo.parent), "JOB": used}
    running = [begin(repo, "docker/run", "train", "sample", **environment) for _ in range(5)]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0] * 5, said
    assert not (repo.parent / "log.shared").exists()
    assert set((repo.parent / "log.used").read_text().split()) == {"0", "1"}
    assert sum("waiting for 1 free cards of 0 1" in stderr for _, stderr in said) >= 1
    held = begin(repo, "docker/run", "train", "grpo", **environment | {"JOB": "sleep 60"})
    wait_until(lambda: "waiting" in begin_and_end(repo, environment))
    os.killpg(held.pid, signal.SIGKILL)
    assert begin(repo, "docker/run", "train", "sample", **environment).wait(timeout=20) == 0


def begin_and_end(repo, environment) -> str:
    """What a job says that has a second to begin."""
    process = begin(repo, "docker/run", "train", "sample", **environment | {"JOB": "true"})
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[1]


def test_the_tools_that_are_wanted_are_named(repo):
    for tool in ("bash", "dirname", "cat", "sed", "uname", "python3", "setpriv"):
        link = repo.parent / "bin" / tool
        link.unlink(missing_ok=True)
        link.symlink_to(shutil.which(tool))
    (repo.parent / "bin/srun").unlink()
    done = submit(repo, "train", "merge", PATH=f"{repo.parent}/bin")
    assert (done.returncode, done.stderr) == (1, "error: CLUSTER=slurm: srun is not installed on this host\n")
