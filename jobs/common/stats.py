"""pass@k, intervals and paired tests. The unit of all resampling is the task: samples of one task are alike."""

import math
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
    values: Sequence[float], *, resamples: int, confidence: float, seed: int, bounds: tuple[float, float] | None = None
) -> Interval:
    """The mean of `values`, one a task, with its percentile bootstrap interval over tasks.

    The quantiles lie further out than (1 - confidence) / 2, because resampling n tasks understates the variance by
    (n - 1) / n and knows no Student t (Hesterberg 2015, arXiv:1411.5279, section 4.2).

    bounds: the least and greatest possible value. Then one task at each is added before resampling, as Agresti and
    Coull (1998) do for proportions: otherwise 100 tasks that all pass would give an interval of no width. For
    differences leave it out: they are centred, and the ends of their range are far away.
    """
    import numpy as np

    data = np.asarray(values, dtype=float)
    drawn = data if bounds is None else np.append(data, bounds)
    n = len(drawn)
    if n < 2:
        return Interval(float(data.mean()), -math.inf, math.inf)
    rng = np.random.default_rng(seed)
    means = drawn[rng.integers(n, size=(resamples, n))].mean(axis=1)
    normal = NormalDist()
    z = normal.inv_cdf((1 + confidence) / 2)
    t = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1) ** 2)  # Cornish and Fisher
    tail = normal.cdf(-t * math.sqrt(n / (n - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high))


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


def detectable(differences: Sequence[float], confidence: float, power: float = 0.8) -> float:
    """The smallest true mean difference that as many tasks with as much scatter would show with this `power`."""
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)) * math.sqrt(variance / n)
