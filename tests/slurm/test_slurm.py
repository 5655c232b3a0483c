"""The pipeline through a real Slurm: the bytes of one host, whatever breaks in between, and nothing left behind.

By tests/slurm/run.sh alone, which makes a place where a cluster may be broken.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.kill import SMALL, Pipeline
from tests.slurm.cluster import NODES, Cluster, wait_for

pytestmark = pytest.mark.skipif("JOBS_SLURM" not in os.environ, reason="breaks a cluster; make check-slurm runs it")

# Two processes, and so many steps that the controller notices a dead node long before the last one.
PARAMS = {
    "sft": {"processes": 2},
    "grpo": {"processes": 2, "steps": 120, "patience": 0},
    "checkpoints": {"every": 5},
}
AROUND = {"CLUSTER": "slurm", "NODES": "2", "CLUSTER_HERE": "", "CLUSTER_PATIENCE": "10"}
BOUND = 60  # seconds within which a stage has failed and nothing is left, whatever broke


class Run(Pipeline):
    """A pipeline whose stages go to the cluster if `around` says so."""

    def __init__(self, folder: Path, **around: str) -> None:
        super().__init__(folder)
        self.environment |= around
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.lay_out({**SMALL, **{section: SMALL.get(section, {}) | values for section, values in PARAMS.items()}})

    def begun(self, stage: str) -> bool:
        return bool(list(self.folder.glob(f".checkpoints/{self.job(stage)}/*/checkpoint-*/MANIFEST.json")))

    def pid_of(self, *words: str) -> int:
        """The process whose command line begins with these words, the interpreter's left out."""
        found = [pid for pid, line in self.processes().items() if tuple(line[1 : 1 + len(words)]) == words]
        assert found, self.processes()
        return min(found)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def mended(cluster):
    """The cluster, whole again after the test."""
    yield cluster
    mend(cluster)


@pytest.fixture(scope="module")
def here(cluster, tmp_path_factory):
    """The pipeline on this host alone, its two processes side by side: over its loopback, which the cluster has set up."""
    run = Run(tmp_path_factory.mktemp("here") / "run")
    code, log = run.repro()
    assert code == 0, log[-3000:]
    return run


@pytest.fixture(scope="module")
def there(cluster, tmp_path_factory):
    """The same by the cluster, every stage a job and two processes on two nodes."""
    run = Run(tmp_path_factory.mktemp("there") / "run", **AROUND)
    code, log = run.repro()
    assert code == 0, log[-3000:] + cluster.logs()
    return run


def test_every_stage_has_the_bytes_of_one_host(here, there, cluster):
    stages = there.stages()
    assert {stage: there.hashes(stage) for stage in stages} == {stage: here.hashes(stage) for stage in stages}
    log = (cluster.place / "slurmctld.log").read_text()
    assert log.count("NodeList=n[1-2]") == 2, "sft and grpo had both nodes"
    assert log.count("NodeList=n") == len(stages)
    assert not there.left_over() and not cluster.jobs()


def stop_launcher(run, cluster):
    os.kill(run.pid_of("docker/run", "train", "grpo"), signal.SIGTERM)


def kill_launcher(run, cluster):
    os.kill(run.pid_of("docker/run", "train", "grpo"), signal.SIGKILL)


def interrupt(run, cluster):
    """As Ctrl-C does."""
    os.killpg(run.process.pid, signal.SIGINT)


def kill_rank(run, cluster):
    os.kill(max(pid for pid, words in run.processes().items() if words[1:4] == ["-m", "jobs", "grpo"]), signal.SIGKILL)


BREAKS = {
    "docker/run is told to stop": stop_launcher,
    "docker/run is killed": kill_launcher,
    "Ctrl-C": interrupt,
    "a process of a rank is killed": kill_rank,
    "a slurmd is killed": lambda run, cluster: cluster.kill_node("n2"),
    "a link is taken down": lambda run, cluster: cluster.link("n2", "down"),
}


def mend(cluster: Cluster) -> None:
    subprocess.run("scancel --user root; scontrol update NodeName=n2 State=resume", shell=True, capture_output=True)
    cluster.link("n2", "up")
    if "n2" not in cluster.daemons:
        cluster.start_node("n2")
    cluster.wait_idle()


@pytest.mark.parametrize("broken", BREAKS)
def test_what_breaks_fails_the_stage_in_time_and_the_next_run_ends_with_the_same_bytes(there, mended, broken):
    expected = there.hashes("grpo")
    there.forget("grpo")
    shutil.rmtree(there.folder / ".checkpoints/grpo", ignore_errors=True)
    there.process = there.start("--single-item", "--no-run-cache", "grpo")
    wait_for(lambda: there.begun("grpo"), "a first checkpoint", 120)
    BREAKS[broken](there, mended)
    began = time.monotonic()
    assert there.process.wait(timeout=BOUND) != 0
    wait_for(lambda: not there.processes(), f"no process left: {there.processes()}", BOUND)
    print(f"{broken}: failed and gone after {time.monotonic() - began:.1f} s")
    mend(mended)
    assert not mended.jobs()
    assert "grpo" not in yaml.safe_load((there.folder / "dvc.lock").read_text())["stages"]
    code, log = there.repro("--single-item", "--no-run-cache", "grpo")
    assert code == 0, log[-3000:]
    assert "resuming from" in log
    assert there.hashes("grpo") == expected
    assert not there.left_over()


ENDLESS = """#!/bin/bash
[ "$1" != docker/param.py ] || exec {python} "$@"
{first}
echo "$$ $SLURMD_NODENAME" > {place}/told.$SLURM_PROCID
setpriv --pdeathsig KILL sleep 600 & trap 'kill $!; echo asked > {place}/asked.$SLURM_PROCID; exit 143' TERM; wait
"""
# The ranks of two nodes meet as torchrun's do: the others reach the first one by address and port.
MEET = """
import os, socket
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if os.environ["NODE_RANK"] == "0":
    with socket.create_server(address) as server:
        server.settimeout(20)
        peer = server.accept()[1][0]
else:
    for _ in range(200):
        try:
            peer = socket.create_connection(address, 1).getpeername()[0]
            break
        except OSError:
            import time; time.sleep(0.1)
print(os.environ["NODE_RANK"], "met", peer, "by", os.environ["GLOO_SOCKET_IFNAME"])
"""


class Endless:
    """A job that would never end: in its python's place, a program that says where it is, and that it was asked to end."""

    def __init__(self, run: Run, place: Path, job: str, nodes: int = 1, first: str = "", options: str = "") -> None:
        python = place / "python"
        python.write_text(ENDLESS.format(python=sys.executable, place=place, first=first))
        python.chmod(0o755)
        self.place, self.run, self.nodes = place, run, nodes
        environment = run.environment | {"PYTHON": str(python), "NODES": str(nodes), "CLUSTER_OPTIONS": options}
        with open(place / "log", "w") as log:
            self.process = subprocess.Popen(["docker/run", "train", job], cwd=run.folder, env=environment, stdout=log,
                                            stderr=log, start_new_session=True)  # fmt: skip

    def where(self) -> dict[str, int]:
        """The process on each node."""
        wait_for(lambda: len(self.lines("told")) == self.nodes, f"the job: {self.log()}")
        return {node: int(pid) for pid, node in map(str.split, self.lines("told"))}

    def lines(self, name: str) -> list[str]:
        return [text for path in sorted(self.place.glob(f"{name}.*")) if (text := path.read_text().strip())]

    def log(self) -> str:
        return (self.place / "log").read_text()

    def ended(self, seconds: float) -> int:
        """The launcher's exit code; all processes have ended by then, within so many seconds."""
        began = time.monotonic()
        code = self.process.wait(timeout=seconds)
        wait_for(lambda: not self.run.processes(), f"no process left: {self.run.processes()}", seconds)
        print(f"exit code {code}, all gone after {time.monotonic() - began:.1f} s: {self.log()}")
        return code


@pytest.fixture(scope="module")
def laid_out(cluster, tmp_path_factory):
    """A pipeline that has not run."""
    return Run(tmp_path_factory.mktemp("laid") / "run", **AROUND)


def test_dvc_takes_what_a_job_has_made_as_what_this_host_makes(laid_out, cluster, tmp_path):
    """One stage that needs no model; the whole pipeline is above."""
    here = Run(tmp_path / "run")
    for run in (here, laid_out):
        code, log = run.repro("tasks")
        assert code == 0, log[-3000:]
    assert here.hashes("tasks") == laid_out.hashes("tasks")
    assert "JobId" in (cluster.place / "slurmctld.log").read_text(), "it was a job"
    code, log = laid_out.repro("tasks")
    assert code == 0 and "didn't change" in log


@pytest.mark.parametrize("broken", ["a slurmd is killed", "a link is taken down"])
def test_a_job_does_not_go_on_where_slurm_has_given_it_up(laid_out, mended, tmp_path, broken):
    """It would write beside its own second try."""
    job = Endless(laid_out, tmp_path, "merge", options="--nodelist n2")
    assert job.where().keys() == {"n2"}
    BREAKS[broken](laid_out, mended)
    assert job.ended(BOUND) == 1
    assert "Slurm says that it is NODE_FAIL" in job.log()


def test_a_job_that_waits_for_its_node_is_cancelled(laid_out, mended, tmp_path):
    subprocess.run(["scontrol", "update", "NodeName=n2", "State=drain", "Reason=test"], check=True)
    job = Endless(laid_out, tmp_path, "merge", options="--nodelist n2")
    wait_for(lambda: any("PENDING" in line for line in mended.jobs()), "a job that waits")
    job.process.terminate()
    assert job.ended(15) == 143
    assert not mended.jobs() and not job.lines("told")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_job_on_two_nodes_is_asked_to_end_however_its_launcher_ends(laid_out, mended, tmp_path, number, code):
    """SIGINT as Ctrl-C sends it, to all processes of the terminal."""
    job = Endless(laid_out, tmp_path, "grpo", nodes=2)
    assert job.where().keys() == {"n1", "n2"}
    os.killpg(job.process.pid, number) if number == signal.SIGINT else job.process.send_signal(number)
    assert job.ended(15) == code
    assert job.lines("asked") == ["asked", "asked"]
    wait_for(lambda: not mended.jobs(), "no job left")


def test_what_ends_on_one_node_ends_on_the_other(laid_out, mended, tmp_path):
    job = Endless(laid_out, tmp_path, "grpo", nodes=2)
    os.kill(job.where()["n2"], signal.SIGKILL)
    assert job.ended(20) not in (0, None)
    assert not mended.jobs()


def test_the_processes_of_two_nodes_meet_over_their_network(laid_out, mended, tmp_path):
    (tmp_path / "meet.py").write_text(MEET)
    first = f"{sys.executable} {tmp_path}/meet.py > {tmp_path}/met.$SLURM_PROCID; exit $?"
    job = Endless(laid_out, tmp_path, "grpo", nodes=2, first=first)
    assert job.ended(60) == 0
    assert job.lines("met") == [f"0 met {NODES['n2']} by eth0", f"1 met {NODES['n1']} by eth0"]
