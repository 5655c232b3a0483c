"""pass@k, intervals and paired tests. The unit of all resampling is the task: samples of one task are alike."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

EXACT = 16  # with as many differing tasks or fewer, all sign patterns are tried


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples passes, from c passes among n samples.

    1 - C(n - c, k) / C(n, k), as a product (Chen et al. 2021, arXiv:2107.03374, figure 3). Errors: ValueError unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} passes in {n} samples is not defined")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


@dataclass(frozen=True)
class Interval:
    """A mean over tasks with its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float],
    *,
    resamples: int,
    confidence: float,
    seed: int,
    bounds: tuple[float, float],
    weight: float = 1.0,
) -> Interval:
    """The mean of `values`, one a task, with its percentile bootstrap interval over tasks, cut at `bounds`.

    bounds: the least and greatest possible value. A pseudo-task of this `weight` at each is drawn from as well, as Agresti
    and Coull (1998) add them for proportions: otherwise 100 tasks that all pass would give an interval of no width. A task
    has weight 1. Of paired differences see `of_differences`.

    The quantiles lie further out than (1 - confidence) / 2, because resampling n tasks understates the variance by
    (n - 1) / n and knows no Student t (Hesterberg 2015, arXiv:1411.5279, section 4.2).
    """
    import numpy as np

    data = np.asarray(values, dtype=float)
    tasks, total = len(data), len(data) + 2 * weight
    n = max(2, round(total))
    place = np.random.default_rng(seed).random((resamples, n)) * total  # each task and end has its weight of the line
    drawn = np.append(data, bounds[0])[np.minimum(place.astype(int), tasks)]
    drawn[place >= tasks + weight] = bounds[1]
    normal = NormalDist()
    z = normal.inv_cdf((1 + confidence) / 2)
    t = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1) ** 2)  # Cornish and Fisher
    tail = normal.cdf(-t * math.sqrt(n / (n - 1)))
    low, high = np.quantile(drawn.mean(axis=1), [tail, 1 - tail])
    return Interval(float(data.mean()), float(max(low, bounds[0])), float(min(high, bounds[1])))


def of_differences(differences: Sequence[float], *, resamples: int, confidence: float, seed: int) -> Interval:
    """The mean of paired differences between -1 and 1, one a task, with its interval over tasks.

    Where all tasks agree there is nothing to resample. Then the share of tasks that would differ is bounded exactly, as
    none of n did (Clopper and Pearson 1934), and each of them may do so up to the end of the range.
    """
    if standing_out(differences) == 0:
        mean = sum(differences) / len(differences)
        share = 1 - ((1 - confidence) / 2) ** (1 / len(differences))
        return Interval(mean, mean - share * (mean + 1), mean + share * (1 - mean))
    weight = weight_of_ends(differences)
    return bootstrap(differences, resamples=resamples, confidence=confidence, seed=seed, bounds=(-1, 1), weight=weight)


def weight_of_ends(differences: Sequence[float]) -> float:
    """The weight that `bootstrap` gives to the ends -1 and 1 of paired differences: 1 / (1 + tasks that stand out).

    A task stands out if its difference is not the commonest one. Where one or two do, their scatter tells little, and the
    ends stand for what was not seen. Where many do, their own scatter decides: the ends, which
    are far away, would only widen it. tests/unit/test_stats.py simulates the coverage of both, and of what lies between.
    """
    return 1 / (1 + standing_out(differences))


def standing_out(differences: Sequence[float]) -> int:
    """How many differences are not the commonest one."""
    return len(differences) - max(Counter(round(d, 9) for d in differences).values())


def least_tasks(confidence: float) -> int:
    """The number of tasks below which no test can be significant: all agree in 2 of 2^n patterns of signs, by chance.

    At confidence 0.95 it is 6, as 2 / 2^5 is more than 0.05.
    """
    return 2 + math.floor(-math.log2(1 - confidence) + 1e-9)


def permutation_test(differences: Sequence[float], *, resamples: int, seed: int) -> float:
    """The two-sided p-value of a paired permutation test on `differences`, one a task.

    If two models are equally good on every task, the sign of a difference is a coin toss. p is the share of sign
    patterns whose sum is at least as far from 0 as the observed one: exact for up to 16 differing tasks, otherwise of
    `resamples` drawn patterns and the observed one, so that p is never 0.
    """
    import numpy as np

    data = np.asarray([d for d in differences if d], dtype=float)
    if len(data) <= EXACT:
        patterns = 1 - 2 * (np.arange(2 ** len(data))[:, None] >> np.arange(len(data)) & 1)
    else:
        drawn = np.random.default_rng(seed).integers(2, size=(resamples, len(data)), dtype=np.int8)
        patterns = np.vstack([np.ones(len(data), dtype=np.int8), 1 - 2 * drawn])
    sums = np.abs(patterns @ data)
    return float(np.mean(sums >= abs(data.sum()) - 1e-9))


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test: tasks that only one of two models passes, tossed as coins."""
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in their order (Holm 1979): compare each with the level as usual."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = worst
    return adjusted
