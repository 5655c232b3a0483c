"""The pipeline through a real Slurm: the bytes of one host, whatever breaks in between, and nothing left behind.

By tests/slurm/run.sh alone, which makes a place where a cluster may be broken.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from jobs.common.files import sha256
from tests.kill import SMALL, Pipeline
from tests.slurm.cluster import NODES, Cluster, wait_for

pytestmark = pytest.mark.skipif("JOBS_SLURM" not in os.environ, reason="breaks a cluster; make check-slurm runs it")

# Two processes. A run of GRPO is broken once after each of its checkpoints but the last.
EVERY = 2
PARAMS = {
    "sft": {"processes": 2},
    "grpo": {"processes": 2, "steps": 16, "patience": 0, "validate_every": 8},
    "checkpoints": {"every": EVERY},
}
TWO_PROCESSES = {**SMALL, **{section: SMALL.get(section, {}) | values for section, values in PARAMS.items()}}
AROUND = {"CLUSTER": "slurm", "NODES": "2", "CLUSTER_HERE": "", "CLUSTER_PATIENCE": "10"}
BOUND = 60  # seconds within which a stage has failed and nothing is left, whatever broke

# The first rank stops in the step after a checkpoint of its own, where its answers are sampled and not yet judged, for as
# long as the file named by HOLD is there: what breaks always breaks in the middle of a step, and no time is computed away
# until the controller has noticed.
HOLD = """
import os, sys, time
if os.environ.get("RANK") == "0" and os.environ.get("HOLD"):
    sys.path.insert(0, os.getcwd())
    from jobs.grpo import rewards
    from jobs.plumbing import checkpoint

    seal, scores = checkpoint.seal, rewards.Scorer.scores
    sealed = []

    def sealing(folder):
        seal(folder)
        sealed.append(folder)

    def holding(self, completions, task_ids):
        while sealed and os.path.exists(os.environ["HOLD"]):
            open(os.environ["HOLD"] + ".reached", "w").close()
            time.sleep(0.1)
        return scores(self, completions, task_ids)

    checkpoint.seal, rewards.Scorer.scores = sealing, holding
"""


class Run(Pipeline):
    """A pipeline whose stages go to the cluster if `around` says so."""

    def __init__(self, folder: Path, params: dict = TWO_PROCESSES, **around: str) -> None:
        super().__init__(folder)
        self.environment |= around
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.lay_out(params)

    def side_by_side(self, jobs: int) -> tuple[int, str]:
        words = [sys.executable, "-m", "jobs", "repro", "--jobs", str(jobs)]
        done = subprocess.run(words, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)  # fmt: skip
        return done.returncode, done.stdout

    def lock(self) -> dict:
        return yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]

    def last_sealed(self) -> int:
        """The step of GRPO's last whole checkpoint; 0 if there is none."""
        found = self.folder.glob(".checkpoints/grpo/*/checkpoint-*/MANIFEST.json")
        return max((int(path.parent.name.rpartition("-")[2]) for path in found), default=0)

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


def run_both(cluster, place: Path, params: dict) -> tuple[Run, Run]:
    """The pipeline on this host alone, a stage after the other, several processes over the loopback that the cluster has
    set up; and by the cluster, every stage a job, two at once, and two processes on two nodes. Both at the same time."""
    here, there = Run(place / "here", params), Run(place / "there", params, **AROUND)
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(here.repro)
        code, log = there.side_by_side(2)
        assert code == 0, log[-3000:] + cluster.logs()
        assert "Data and pipelines are up to date" in log, "DVC takes what jobs have made as what this host makes"
        code, log = alone.result()
    assert code == 0, log[-3000:]
    return here, there


@pytest.fixture(scope="module")
def both(cluster, tmp_path_factory):
    return run_both(cluster, tmp_path_factory.mktemp("both"), TWO_PROCESSES)


@pytest.mark.skipif("JOBS_SLURM_SMOKE" not in os.environ, reason="a quarter of an hour: JOBS_SLURM_SMOKE=1")
@pytest.mark.parametrize("processes", [1, 2])
def test_the_smoke_run_itself_has_the_bytes_of_one_host(cluster, tmp_path, processes):
    here, there = run_both(cluster, tmp_path, {name: {"processes": processes} for name in ("sft", "grpo")})
    assert there.lock() == here.lock()
    hashes = {stage: there.hashes(stage) for stage in there.stages()}
    print("\n".join(f"{stage}: {path} {md5}" for stage, outs in hashes.items() for path, md5 in outs.items()))


def test_every_stage_has_the_bytes_of_one_host(both, cluster):
    here, there = both
    assert there.lock() == here.lock()
    stages = there.stages()
    assert there.lock().keys() == set(stages)
    learnt = [there.folder / f"models/adapters/{name}/adapter_model.safetensors" for name in ("sft", "grpo/last")]
    assert sha256(learnt[0]) != sha256(learnt[1]), (
        "GRPO has a signal, else a run that lost its steps would end the same"
    )
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
    subprocess.run("scancel --user root", shell=True, capture_output=True)
    for node in NODES:
        cluster.link(node, "up")
        if node not in cluster.daemons:
            cluster.start_node(node)
        if cluster.states().get(node) != "idle":
            subprocess.run(["scontrol", "update", f"NodeName={node}", "State=resume"], capture_output=True)
    cluster.wait_idle()


@pytest.fixture(scope="module")
def again(both, tmp_path_factory):
    """GRPO from its start, by the cluster, in the folder that has what it needs; and the hashes that it had."""
    there = both[1]
    expected = there.hashes("grpo")
    there.forget("grpo")
    shutil.rmtree(there.folder / ".checkpoints/grpo", ignore_errors=True)
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(HOLD)
    there.environment |= {"PYTHONPATH": str(site), "HOLD": str(site / "hold")}
    return there, expected


@pytest.mark.parametrize("broken", BREAKS)
def test_what_breaks_fails_the_stage_in_time_and_leaves_a_checkpoint_and_nothing_that_runs(again, mended, broken):
    """Each run goes on from the checkpoint that the one before it left."""
    run, _ = again
    hold, before = Path(run.environment["HOLD"]), run.last_sealed()
    reached = hold.with_name("hold.reached")
    reached.unlink(missing_ok=True)
    hold.touch()
    log = run.folder / ".checkpoints/kill.log"
    written = log.stat().st_size if log.exists() else 0
    run.process = run.start("--single-item", "--no-run-cache", "grpo")
    wait_for(lambda: reached.exists() or run.process.poll() is not None, "a step after a checkpoint", 120)
    BREAKS[broken](run, mended)
    began = time.monotonic()
    assert run.process.wait(timeout=BOUND) != 0
    wait_for(lambda: not run.processes(), f"no process left: {run.processes()}", BOUND)
    print(f"{broken}: failed and gone after {time.monotonic() - began:.1f} s")
    said = log.read_text()[written:]
    assert not before or f"checkpoint-{before}" in said.partition("resuming from")[2], said[-3000:]
    assert run.last_sealed() == before + EVERY, said[-3000:]
    assert "grpo" not in run.lock()
    mend(mended)
    assert not mended.jobs()


def test_a_run_that_broke_so_often_ends_with_the_bytes_of_an_undisturbed_one(again):
    run, expected = again
    Path(run.environment["HOLD"]).unlink(missing_ok=True)
    before = run.last_sealed()
    code, log = run.repro("--single-item", "--no-run-cache", "grpo")
    assert code == 0, log[-3000:]
    assert not before or f"checkpoint-{before}" in log.partition("resuming from")[2]
    assert run.hashes("grpo") == expected
    assert not run.left_over()


ENDLESS = """#!/bin/bash
[ "$1" != docker/param.py ] || exec {python} "$@"
{first}
trap 'kill -KILL $!; echo asked > {place}/asked.$SLURM_PROCID; exit 143' TERM
# Slurm asks every process of a step. Were the sleeper to end first, this would end with it, and say nothing.
setpriv --pdeathsig KILL sh -c 'trap "" TERM; exec sleep 600' &
echo "$$ $SLURMD_NODENAME" > {place}/told.$SLURM_PROCID  # last: who reads it may ask at once
wait
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


def test_a_job_does_not_go_on_where_slurm_has_given_it_up(laid_out, mended, tmp_path):
    """It would write beside its own second try. On one node the slurmd is killed, on the other the link is taken down."""
    for node in NODES:
        (tmp_path / node).mkdir()
    jobs = {node: Endless(laid_out, tmp_path / node, "merge", options=f"--nodelist {node}") for node in NODES}
    for node, job in jobs.items():
        assert job.where().keys() == {node}
    mended.kill_node("n1")
    mended.link("n2", "down")
    for job in jobs.values():
        assert job.process.wait(timeout=BOUND) == 1
        assert "Slurm says that it is NODE_FAIL" in job.log()
    for job in jobs.values():
        assert job.ended(BOUND) == 1


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
