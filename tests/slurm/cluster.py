"""A Slurm of one controller and two nodes on this machine: each node a network namespace, joined by a bridge.

To be started where processes, mounts and network are of one's own (tests/slurm/run.sh): it names namespaces, and ends
whatever lives in them.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

BRIDGE, HOST = "slurm0", "10.77.0.1"
NODES = {"n1": "10.77.0.11", "n2": "10.77.0.12"}
GIVEN_UP = 10  # seconds without a word of its slurmd after which the controller gives a node up
CONFIG = """\
ClusterName=check
SlurmctldHost={name}({host})
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
SlurmdTimeout={given_up}
MessageTimeout=5
KillWait=10
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
{nodes}
PartitionName=check Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:8
"""


class Cluster:
    """The daemons, their files in the folder `place`, and what breaks them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.daemons: dict[str, subprocess.Popen] = {}
        os.environ["SLURM_CONF"] = str(place / "slurm.conf")

    def start(self) -> None:
        self.place.mkdir(parents=True)
        (self.place / "state").mkdir()
        cores = os.cpu_count()
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={address} CPUs={cores} State=UNKNOWN" for name, address in NODES.items()
        )
        (self.place / "slurm.conf").write_text(
            CONFIG.format(name=os.uname().nodename, host=HOST, place=self.place, given_up=GIVEN_UP, nodes=nodes)
        )
        self.network()
        key = self.place / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = [f"--{kind}-file={self.place}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        self.daemon("munged", "munged", "--foreground", "--force", f"--socket={self.place}/munge.socket", *files)
        wait_for(lambda: (self.place / "munge.socket").exists(), "munged")
        self.daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait_idle()

    def network(self) -> None:
        ip("link set lo up")
        ip(f"link add {BRIDGE} type bridge")
        ip(f"address add {HOST}/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        for name, address in NODES.items():
            ip(f"netns add {name}")
            ip(f"link add {name} type veth peer name eth0 netns {name}")
            ip(f"link set {name} master {BRIDGE} up")
            ip(f"-n {name} address add {address}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")

    def daemon(self, name: str, *words: str) -> None:
        with open(self.place / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def start_node(self, node: str) -> None:
        (self.place / f"spool-{node}").mkdir(exist_ok=True)
        self.daemon(node, "nsenter", f"--net=/run/netns/{node}", "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kills the slurmd, as the machine's failure would, and leaves what it has started."""
        self.daemons.pop(node).kill()

    def link(self, node: str, state: str) -> None:
        """state: "up" or "down"."""
        ip(f"link set {node} {state}")

    def wait_idle(self, seconds: float = 60.0) -> None:
        """Until both nodes are free for jobs."""
        wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), f"idle nodes: {self.states()}", seconds)

    def states(self) -> dict[str, str]:
        done = subprocess.run(["sinfo", "--noheader", "--Node", "--format", "%N %T"], capture_output=True, text=True)
        return dict(line.split() for line in done.stdout.splitlines())

    def jobs(self) -> list[str]:
        done = subprocess.run(["squeue", "--noheader", "--format", "%i %j %T"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def stop(self) -> None:
        for daemon in reversed(self.daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.place.glob("*.log")))


def ip(words: str) -> None:
    subprocess.run([shutil.which("ip") or "ip", *words.split()], check=True)


def wait_for(true, what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
