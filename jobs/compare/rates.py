"""What one evaluation does on the tasks of a view: pass rates by task, and how its samples fail."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.common import stats

if TYPE_CHECKING:
    from jobs.plumbing.params import Compare


@dataclass(frozen=True)
class Rates:
    """By task: greedy 0 or 1, the share of its samples that pass, and pass@k. samples: of a task, the greedy one apart.

    noise: the variance of one sample within its task, the mean over tasks, unbiased.
    """

    greedy: dict[str, float]
    mean: dict[str, float]
    at_k: dict[str, float]
    k: int
    samples: int
    noise: float


def rates(rows: list[dict], field: str) -> Rates:
    greedy = {row["task_id"]: float(bool(row[field])) for row in rows if not row["sample"]}
    passes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["sample"]:
            passes[row["task_id"]].append(bool(row[field]))
    n = min(map(len, passes.values()))
    k = min(10, n)
    mean = {task: sum(p) / len(p) for task, p in passes.items()}
    noise = sum(share * (1 - share) for share in mean.values()) / len(mean) * n / max(1, n - 1)
    at_k = {task: stats.pass_at_k(len(p), sum(p), k) for task, p in passes.items()}
    return Rates(greedy, mean, at_k, k, n, noise)


def failures(rows: list[dict], field: str) -> dict[str, dict[str, float]]:
    """Of the greedy and of the sampled answers apart: the share that passes this view, and of each outcome that fails it.

    An answer that passes the benchmark's own inputs and fails evalplus's is a pass of one view and a failure of the other.
    """
    found = {}
    for part, chosen in (
        ("greedy", [row for row in rows if not row["sample"]]),
        ("sampled", [row for row in rows if row["sample"]]),
    ):
        kinds = Counter("passed" if row[field] else failure(row) for row in chosen)
        found[part] = {kind: count / len(chosen) for kind, count in sorted(kinds.items())} if chosen else {}
    return found


def failure(row: dict) -> str:
    """The outcome of an answer that fails a view. An answer passed by a looser rule than the view's has just failed."""
    return "failed" if row["outcome"] == "passed" else str(row["outcome"])


def resampled(
    values: Iterable[float], settings: "Compare", bounds: tuple[float, float], weight: float
) -> stats.Interval:
    """`stats.bootstrap` with the params' level, number of resamples and seed."""
    return stats.bootstrap(
        [float(value) for value in values],
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
        bounds=bounds,
        weight=weight,
    )
