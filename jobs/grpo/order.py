"""In which order GRPO takes its tasks, where params say so: sources by weight (grpo.mix), the easy first (grpo.curriculum).

The order of the whole run is made before its first step, of the tasks, the params and the seed alone. So a resumed run
takes the tasks that an unbroken one takes.
"""

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.errors import UsageError

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Grpo

START = 0.25  # the share of the tasks, the easiest, that a curriculum begins with
ROUNDING = 1e-9  # by which shares may miss a whole number of tasks
ALL = ""  # the one pool where there is no mix


def chosen(rows: "list[Task]", mix: Mapping[str, float] | None, path: Path) -> "list[Task]":
    """The tasks of the sources in `mix`; all of them for None. Errors: UsageError for a source that has no task."""
    if mix is None:
        return rows
    counts = Counter(source(row) for row in rows)
    for name in mix:
        if not counts[name]:
            there = ", ".join(sorted(counts))
            raise UsageError(f"grpo.mix: {path} has no task of the source {name} to train on; it has {there}")
    return [row for row in rows if source(row) in mix]


def source(row: "Task") -> str:
    return row.get("source") or "unknown"


def plan(rows: "list[Task]", settings: "Grpo", seed: int, path: Path) -> list[int] | None:
    """The numbers of the tasks of all steps, in order; None where neither mix nor curriculum is set.

    Of a mix every source has its share of any number of tasks from the first on, to less than one task. Within a source,
    or without a mix, a task comes again only when every other that is open has come as often, and not twice in a step. A
    curriculum opens the tasks from the most solved to the least, over its share of the run.
    Errors: UsageError for tasks without a pass rate, or a source with fewer tasks than a step takes of it.
    """
    if settings.mix is None and not settings.curriculum:
        return None
    if settings.curriculum:
        for row in rows:
            if row.get("pass_rate") is None:
                raise UsageError(
                    f"{path}: {row['task_id']} has no pass_rate, which grpo.curriculum goes by; set grade.samples, or "
                    "grpo.curriculum to 0"
                )
    step = settings.batch_size * settings.gradient_accumulation // settings.generations
    count = step * math.ceil(settings.steps / settings.iterations)
    names = [source(row) if settings.mix else ALL for row in rows]
    shares = normalised(settings.mix or {ALL: 1.0})
    pools = {}
    for name, share in shares.items():
        members, least = [i for i, of in enumerate(names) if of == name], math.ceil(share * step - ROUNDING)
        if len(members) < least:
            raise UsageError(f"grpo.mix: a step takes {least} tasks of {name}, and {path} has {len(members)}")
        if settings.curriculum:
            members.sort(key=lambda i: (-(rows[i].get("pass_rate") or 0.0), i))
        pools[name] = Pool(members, least, step, random.Random(f"order {seed} {name}"))
    found = []
    for number, name in enumerate(turns(shares, count)):
        done = number / (settings.curriculum * count) if settings.curriculum else 1.0
        found.append(pools[name].draw(START + (1 - START) * done))
    return found


def shares_of(rows: "list[Task]", planned: list[int]) -> dict[str, dict[str, int]]:
    """For the metrics: by source how many tasks there are, and how many groups of them the run's steps take."""
    there, taken = Counter(map(source, rows)), Counter(source(rows[i]) for i in planned)
    return {name: {"tasks": there[name], "groups": taken[name]} for name in sorted(there)}


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def turns(shares: Mapping[str, float], count: int) -> list[str]:
    """`count` names, so that each has come as often as its share says, to less than one, at every place.

    Tijdeman's rule (The chairman assignment problem, 1980): of those that are behind by 1 / (2 k - 2) of k, the one that
    must come soonest to stay within the bound.
    """
    slack = 1 / (2 * len(shares) - 2) if len(shares) > 1 else 0.0
    given = dict.fromkeys(shares, 0)
    found = []
    for number in range(1, count + 1):
        behind = {name: share * number - given[name] for name, share in shares.items()}
        able = [name for name in shares if behind[name] >= slack - ROUNDING]
        name = min(able, key=lambda name: (1 - slack - behind[name]) / shares[name])
        given[name] += 1
        found.append(name)
    return found


class Pool:
    """The tasks of a source, those to open first in front: of the open ones, one that has come least often comes next."""

    def __init__(self, members: list[int], least: int, step: int, rng: random.Random) -> None:
        """least: so many are open from the first on. step: tasks of a step, in which none is to come twice."""
        self.members, self.least, self.rng = members, least, rng
        self.heap: list[tuple[int, float, int]] = []  # how often it has come, a random number, the task
        self.recent: deque[int] = deque(maxlen=step - 1)
        self.opened = 0

    def draw(self, share: float) -> int:
        """The next task, of the first `share` of the members."""
        wanted = min(len(self.members), max(self.least, math.ceil(share * len(self.members))))
        while self.opened < wanted:
            heapq.heappush(self.heap, (0, self.rng.random(), self.members[self.opened]))
            self.opened += 1
        passed = []
        while self.heap[0][2] in self.recent and len(self.heap) > 1:
            passed.append(heapq.heappop(self.heap))
        times, key, task = heapq.heappop(self.heap)
        if task in self.recent:  # as all that are open
            passed.append((times, key, task))
            times, _, task = passed.pop(0)
        for entry in [*passed, (times + 1, self.rng.random(), task)]:
            heapq.heappush(self.heap, entry)
        self.recent.append(task)
        return task
