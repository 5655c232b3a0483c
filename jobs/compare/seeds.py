"""Differences over seeds and tasks: an interval for methods, and what more seeds, samples or tasks would show.

Every run answers every task, so runs and tasks are crossed. A difference scatters by task, by run, by both together, and
by the samples that were drawn. A bootstrap over three runs cannot know how far a fourth would lie: the truth lies outside
of all three in a quarter of cases. The interval is therefore from the two-way analysis of variance. The variances of runs
and of tasks have few and many degrees of freedom, so each has a Student t of its own, and the half widths are added in
squares (Howe 1974, doi:10.1080/01621459.1974.10480206). How often it holds the truth is simulated in
tests/unit/test_seeds.py, and beside bootstraps in tests/bench/seeds.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from jobs.common.stats import Interval
from jobs.compare.student import quantile

if TYPE_CHECKING:
    import numpy as np

LEAST = 3  # runs from which on they tell how far runs scatter; intervals over two hold the truth too seldom
POWER = 0.8
NORMAL = NormalDist()
POINTS = (1, 2, 3, 5, 10)  # differences, in points, that `needed` is told for
MOST = {"seeds": 1000, "samples": 10_000, "tasks": 1_000_000}  # more than these is not a plan


@dataclass(frozen=True)
class Crossed:
    """A mean over runs and tasks. parts: the variances of its middle, each with its degrees of freedom."""

    interval: Interval
    middle: float
    parts: list[tuple[float, float]]

    @property
    def p(self) -> float:
        """Two-sided, against 0: the share p for which the interval at confidence 1 - p ends there, down to 1e-9."""
        low, high = math.log(1e-9), 0.0
        while high - low > 1e-6:
            between = (low + high) / 2
            short = half_width(self.parts, 1 - math.exp(between)) <= abs(self.middle)
            low, high = (low, between) if short else (between, high)
        return math.exp(high)


def crossed(
    factors: "Sequence[np.ndarray]", *, confidence: float, bounds: tuple[float, float], weight: float
) -> Crossed:
    """The sum of the factors' means, each a matrix (runs, tasks), with its interval over runs and tasks.

    factors: one of paired differences, or those of two methods whose runs are independent, the old one's negative. One
    with a single run is a given set of weights. bounds, weight: pseudo-tasks at the ends, as in `stats.bootstrap`.
    Errors: ValueError for a factor of two runs, which do not tell how far runs scatter.
    """
    import numpy as np

    if any(len(rows) == 2 for rows in factors):
        raise ValueError("two runs do not tell how far runs scatter")
    by_task = sum(rows.mean(axis=0) for rows in factors)
    tasks = len(by_task)
    values, weights = np.append(by_task, bounds), np.append(np.ones(tasks), [weight, weight])
    total = weights.sum()
    middle = float(values @ weights / total)
    parts = [(float(weights @ (values - middle) ** 2 / (total - 1) / total), float(total - 1))]
    for seen, noise, runs in (components(rows) for rows in factors if len(rows) >= LEAST):
        parts.append((max(0.0, seen - noise) / runs, float(runs - 1)))
    half = half_width(parts, confidence)
    interval = Interval(float(by_task.mean()), max(bounds[0], middle - half), min(bounds[1], middle + half))
    return Crossed(interval, middle, parts)


def half_width(parts: Sequence[tuple[float, float]], confidence: float) -> float:
    """Of the sum of independent parts, each with its variance and the degrees of freedom that it was found with."""
    return math.sqrt(sum(variance * quantile(confidence, freedom) ** 2 for variance, freedom in parts if variance))


def components(rows: "np.ndarray") -> tuple[float, float, int]:
    """Of a matrix (runs, tasks): the variance of the runs' means, the part of it that is noise, and the runs."""
    return float(rows.mean(axis=1).var(ddof=1)), residual(rows) / rows.shape[1], len(rows)


def residual(rows: "np.ndarray") -> float:
    """The mean square of what neither run nor task explains."""
    left = rows - rows.mean(axis=1, keepdims=True) - rows.mean(axis=0) + rows.mean()
    return float((left**2).sum() / ((len(rows) - 1) * (rows.shape[1] - 1)))


@dataclass(frozen=True)
class Scatter:
    """Variances of a difference of two methods. runs: None where one run of each cannot tell it."""

    tasks: float
    runs: float | None
    both: float  # of task and run together, beyond what sampling explains
    samples: float  # of one sample of each method to one task


def scatter(factors: "Sequence[np.ndarray]", noise: float, samples: int) -> Scatter:
    """factors: as in `crossed`. noise: `Scatter.samples`, from the samples themselves. samples: a task's, of one run."""
    by_task = sum(rows.mean(axis=0) for rows in factors)
    several = [rows for rows in factors if len(rows) >= LEAST]
    left = sum(residual(rows) for rows in several)
    explained = sum(residual(rows) / len(rows) for rows in several) + noise / samples * sum(
        1 / len(rows) for rows in factors if len(rows) < LEAST
    ) / len(factors)
    between = [max(0.0, seen - part) for seen, part, _ in map(components, several)]
    return Scatter(
        max(0.0, float(by_task.var(ddof=1)) - explained) if len(by_task) > 1 else 0.0,
        sum(between) if several else None,
        max(0.0, left - noise / samples) if several else 0.0,
        noise,
    )


def detectable(found: Scatter, runs: int, tasks: int, samples: float, confidence: float) -> float:
    """The smallest true difference, as a share, whose interval leaves out 0 in POWER of all studies of this size.

    The middle of an interval is normal, and its width is drawn with the variance between the runs that a study sees.
    """
    cell = found.both + found.samples / samples
    of_tasks = ((found.tasks + cell / runs) / tasks, tasks - 1.0)
    between, noise = found.runs or 0.0, cell / tasks
    widths = [half_width([of_tasks], confidence)]
    if found.runs is not None:
        seen = [max(0.0, (between + noise) * part - noise) / runs for part in chi_squared(runs - 1)]
        widths = [half_width([of_tasks, (one, runs - 1.0)], confidence) for one in seen]
    error = math.sqrt(of_tasks[0] + between / runs)
    if not error:
        return 0.0
    low, high = 0.0, max(widths) + 4 * error
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        enough = sum(NORMAL.cdf((middle - width) / error) for width in widths) >= POWER * len(widths)
        low, high = (low, middle) if enough else (middle, high)
    return high


@cache
def chi_squared(freedom: int, number: int = 20) -> list[float]:
    """Evenly likely values of a chi-squared variable over its degrees of freedom (Wilson and Hilferty 1931)."""
    step = 2 / (9 * freedom)
    return [max(0.0, 1 - step + NORMAL.inv_cdf((i + 0.5) / number) * math.sqrt(step)) ** 3 for i in range(number)]


def needed(found: Scatter, runs: int, tasks: int, samples: int, confidence: float) -> dict[str, dict[str, int | None]]:
    """For each of POINTS, how many seeds, samples a task or tasks show it in POWER of all studies, the other two staying
    as they are; None where not even MOST do. Without Holm's correction, by which more comparisons ask for more."""

    def row(points: int) -> dict[str, int | None]:
        def shows(seeds: int = runs, n: int = samples, many: int = tasks) -> bool:
            return points / 100 >= detectable(found, seeds, many, n, confidence)

        return {
            "seeds": least(shows, LEAST, MOST["seeds"]) if found.runs is not None else None,
            "samples": least(lambda n: shows(n=n), 1, MOST["samples"]),
            "tasks": least(lambda many: shows(many=many), 2, MOST["tasks"]),
        }

    return {str(points): row(points) for points in POINTS}


def least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest whole number from `low` to `high` that is enough, of a condition that holds from somewhere on."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
