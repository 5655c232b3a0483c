"""The pre-forked server of stages, from which whole programs come: as server.py, with the same layers of isolation.

A stage has one submission and forks a process for each run of it, which has no right to fork (stage.py). What it leaves
when it is killed comes to this process, which ends it before the next stage is made.
"""

from jobs.sandbox import isolation, stage
from jobs.sandbox.server import fork_for_ever, prepared


def main() -> None:
    isolation.prctl(isolation.PR_SET_CHILD_SUBREAPER, 1)
    fork_for_ever(*prepared(), stage.run)
