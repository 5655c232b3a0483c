"""The case `nodes` of tests/bench/scaling.py: two ranks on two 'machines', and what a sum over their network takes."""

import argparse
import re

from tests.bench.allreduce import reduced
from tests.bench.limited import Case, two_machines
from tests.bench.scaling_grpo import beside_unbroken, facts_of, grpo_words, toy_settings
from tests.bench.scaling_inputs import JOBS, PORT, toy_inputs

# NCCL between two 'machines' of one host: over TCP, as it would talk between two hosts without InfiniBand.
TCP = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_IB_DISABLE": "1", "NCCL_DEBUG": "INFO"}


def nodes(case: Case, options: argparse.Namespace) -> dict:
    words = [*JOBS, *grpo_words(toy_inputs(options), [*toy_settings(2, 64), *options.set])]
    with two_machines() as machines:
        enter = [machines.enter(number) for number in (0, 1)]
        around = TCP | {"NCCL_SOCKET_IFNAME": machines.INTERFACE, "GLOO_SOCKET_IFNAME": machines.INTERFACE}
        around |= {"MASTER_ADDR": machines.ADDRESS, "NCCL_DEBUG_FILE": str(case.logs / "nccl-nodes.%p.log")}
        found = {"network": machines.kind, "allreduce": reduced(case, enter, PORT + 1, **around)}
        logs = [case.log(str(number)) for number in (0, 1)]
        own = [{"NODE_RANK": str(i), "CUDA_VISIBLE_DEVICES": str(i), "NCCL_HOSTID": f"bench{i}"} for i in (0, 1)]
        here = around | {"NODES": "2", "MASTER_PORT": str(PORT)}
        started = [case.start([*enter[i], *words], logs[i], **here | own[i]) for i in (0, 1)]
        for process, log in zip(started, logs, strict=True):
            case.wait(process, log)
    said = "".join(path.read_text(errors="replace") for path in case.logs.glob("nccl-nodes.*"))
    return found | {"nccl_via": transports(said), "left_at_end": case.settled()} | facts_of(case.folder) | \
        beside_unbroken(case, options)  # fmt: skip


def transports(log: str) -> list[str]:
    """By what NCCL's channels between ranks go, of its log: `NET/Socket/0`, `P2P/CUMEM`, `SHM/direct/direct` ..."""
    return sorted(set(re.findall(r"Channel \S+ : \d+\[\w+\] -> \d+\[\w+\].* via (\S+)", log)))
