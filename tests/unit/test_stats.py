"""The statistics against published formulas, exhaustive counts, and simulated truths."""

import itertools
import math
import random

import pytest

from jobs.common.stats import (
    bootstrap,
    holm,
    least_tasks,
    mcnemar,
    of_differences,
    pass_at_k,
    permutation_test,
    weight_of_ends,
)

SETTINGS = {"resamples": 1000, "confidence": 0.95, "seed": 0}


def test_pass_at_k_is_the_share_of_subsets_with_a_pass():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_equals_the_official_estimators_on_random_counts():
    np = pytest.importorskip("numpy")
    evaluate = pytest.importorskip("evalplus.eval")
    rng = random.Random(0)
    for _ in range(500):
        n = rng.randint(1, 300)
        c, k = rng.randint(0, n), rng.randint(1, n)
        official = evaluate.estimate_pass_at_k([n], [c], k)[0]
        published = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
        binomial = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert pass_at_k(n, c, k) == pytest.approx(official, abs=1e-12)
        assert pass_at_k(n, c, k) == pytest.approx(published, abs=1e-12)
        assert pass_at_k(n, c, k) == pytest.approx(binomial, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(10, 11, 1), (10, -1, 1), (10, 3, 11), (10, 3, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_is_not_defined(n, c, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, c, k)


def coverage(draw, truth, bounds, trials=600):
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(trials):
        settings = {**SETTINGS, "resamples": 400, "seed": trial}
        values = draw(rng)
        interval = bootstrap(values, **settings, bounds=bounds) if bounds else of_differences(values, **settings)
        inside += interval.low - 1e-12 <= truth <= interval.high + 1e-12
    return inside / trials


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.8, 0.97])
def test_intervals_of_greedy_pass_rates_cover_the_truth(truth):
    assert 0.93 <= coverage(lambda rng: rng.random(164) < truth, truth, (0, 1)) <= 0.99


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.9])
def test_intervals_of_sampled_pass_rates_cover_the_truth(truth):
    def draw(rng):  # tasks of very different difficulty, 10 samples each
        return rng.binomial(10, rng.beta(truth, 1 - truth, 100)) / 10

    assert 0.93 <= coverage(draw, truth, (0, 1)) <= 0.98


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.1])
def test_intervals_of_paired_differences_cover_the_truth(gain):
    def draw(rng):
        difficulty = rng.beta(0.8, 0.8, 120)
        better = difficulty + gain * 4 * difficulty * (1 - difficulty)
        return (rng.binomial(10, better) - rng.binomial(10, difficulty)) / 10

    mean_product = 0.25 - 0.25 / (2 * 0.8 + 1)  # E[x(1 - x)] of a symmetric beta
    assert 0.93 <= coverage(draw, gain * 4 * mean_product, None) <= 0.975


def test_an_interval_has_width_even_where_all_tasks_pass():
    interval = bootstrap([1.0] * 100, **SETTINGS, bounds=(0, 1))
    assert interval.mean == 1
    assert 0.94 < interval.low < 0.98
    assert interval.high == 1


@pytest.mark.parametrize("tasks", [6, 20, 60, 164])
@pytest.mark.parametrize(("won", "lost"), [(0.01, 0.0), (0.03, 0.0), (0.03, 0.03), (0.1, 0.05), (0.97, 0.0)])
def test_intervals_of_differences_cover_the_truth_where_few_tasks_stand_out(tasks, won, lost):
    """Greedy answers to tasks of which most agree. Without the ends as few as 7 % of these intervals hold the truth."""

    def draw(rng):
        place = rng.random(tasks)
        return (place < won).astype(float) - (place > 1 - lost)

    assert coverage(draw, won - lost, None, trials=1200) >= 0.925


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.1])
@pytest.mark.parametrize("tasks", [1, 5, 6, 100])
def test_differences_that_all_agree_have_an_interval_with_width(value, tasks):
    interval = of_differences([value] * tasks, **SETTINGS)
    assert interval.mean == pytest.approx(value)
    assert -1 <= interval.low <= value <= interval.high <= 1
    for end, edge in ((interval.low, -1), (interval.high, 1)):
        share = (end - value) / (edge - value) if value != edge else 1 - 0.025 ** (1 / tasks)
        assert (1 - share) ** tasks == pytest.approx(0.025), "were more tasks to differ, all would agree too seldom"


def test_the_ends_fade_as_tasks_stand_out():
    assert weight_of_ends([0.0] * 50) == 1
    assert weight_of_ends([0.0] * 50 + [1.0, -0.1, 0.3]) == 1 / 4
    assert weight_of_ends([0.1 * 3, 0.3]) == 1, "equal but for rounding"
    scattered = [i / 200 for i in range(-100, 100)]
    plain = bootstrap(scattered, **SETTINGS, bounds=(-1, 1), weight=0)
    faded = of_differences(scattered, **SETTINGS)
    assert faded.high - faded.low == pytest.approx(plain.high - plain.low, rel=0.05)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_fewer_tasks_than_the_least_can_show_nothing(confidence):
    least = least_tasks(confidence)
    assert permutation_test([1.0] * least, resamples=0, seed=0) < 1 - confidence
    assert permutation_test([1.0] * (least - 1), resamples=0, seed=0) >= 1 - confidence - 1e-9
    assert mcnemar(0, least - 1) >= 1 - confidence - 1e-9


def test_the_bootstrap_depends_on_its_seed_alone():
    rng = random.Random(0)
    values = [rng.random() for _ in range(50)]
    one, same = (bootstrap(values, **SETTINGS, bounds=(0, 1)) for _ in range(2))
    assert one == same
    assert one != bootstrap(values, **{**SETTINGS, "seed": 1}, bounds=(0, 1))


def test_the_permutation_test_is_exact_for_few_differences():
    assert permutation_test([], resamples=100, seed=0) == 1
    assert permutation_test([0.0] * 50, resamples=100, seed=0) == 1
    assert permutation_test([0.5] + [0.0] * 50, resamples=100, seed=0) == 1  # one task proves nothing
    assert permutation_test([0.1] * 6, resamples=100, seed=0) == 2 / 2**6
    assert permutation_test([0.3, 0.2, -0.1], resamples=100, seed=0) == 4 / 8  # sums 6, 4, 2, 0 in tenths, both signs


def test_the_permutation_test_by_sampling_agrees_with_the_exact_one(monkeypatch):
    rng = random.Random(3)
    differences = [rng.randint(-3, 5) / 10 for _ in range(15)]
    exact = permutation_test(differences, resamples=0, seed=0)
    monkeypatch.setattr("jobs.common.stats.EXACT", 0)
    assert permutation_test(differences, resamples=20000, seed=0) == pytest.approx(exact, abs=0.015)


def test_the_permutation_test_is_right_as_often_as_it_says():
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(0)
    p_values = []
    for trial in range(400):
        difficulty = rng.beta(0.8, 0.8, 60)
        differences = (rng.binomial(10, difficulty) - rng.binomial(10, difficulty)) / 10
        p_values.append(permutation_test(differences, resamples=300, seed=trial))
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.085
    assert 0.40 <= np.mean(np.array(p_values) <= 0.50) <= 0.60


def test_a_sampled_p_value_is_never_zero():
    assert permutation_test([1.0] * 100, resamples=999, seed=0) == 1 / 1000


def test_mcnemar_on_the_published_claim():
    # 131 against 127 of 164, with 20 tasks won and 16 lost: +2.4 points that a coin gives in 62 of 100 cases.
    assert mcnemar(16, 20) == pytest.approx(0.618, abs=0.001)
    assert mcnemar(20, 16) == mcnemar(16, 20)
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 6) == 2 / 2**6
    assert mcnemar(10, 10) == 1
    assert mcnemar(400, 600) < 1e-9


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as in R's p.adjust
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
