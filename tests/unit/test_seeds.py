"""Statements over seeds and tasks: how often their intervals hold the truth, and whether the planned studies suffice."""

import math

import pytest

from jobs.common.stats import of_differences
from jobs.compare.seeds import Scatter, crossed, detectable, least, needed, scatter
from jobs.compare.student import quantile, two_sided

np = pytest.importorskip("numpy")
LEVEL = {"confidence": 0.95, "bounds": (-1, 1), "weight": 0.05}


@pytest.mark.parametrize(
    ("confidence", "freedom", "value"),
    [
        (0.95, 1, 12.7062047),
        (0.95, 2, 4.30265273),
        (0.9, 5, 2.01504837),
        (0.99, 30, 2.74999565),
        (0.95, 1e6, 1.9599664),
    ],
)
def test_students_t_is_that_of_the_tables(confidence, freedom, value):
    assert quantile(confidence, freedom) == pytest.approx(value, rel=1e-6)
    assert two_sided(value, freedom) == pytest.approx(1 - confidence, rel=1e-5)


@pytest.mark.parametrize("freedom", [0.7, 2.5, 13.3, 400.5])
def test_students_t_is_the_integral_of_its_density(freedom):
    for t in (0.1, 1.0, 3.0):
        x = np.linspace(0, t, 20001)
        constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        within = 2 * np.trapezoid(constant * (1 + x * x / freedom) ** (-(freedom + 1) / 2), x)
        assert two_sided(t, freedom) == pytest.approx(1 - within, abs=1e-7)
        assert two_sided(-t, freedom) == two_sided(t, freedom)


def draw(rng, runs, tasks, of_runs, of_tasks=0.15, of_both=0.15, truth=0.03):
    shape = (runs, tasks)
    return (
        truth + rng.normal(0, of_runs, (runs, 1)) + rng.normal(0, of_tasks, tasks) + rng.normal(0, of_both, shape)
    ).clip(-1, 1)


def covered(studies, truth):
    held = [found.interval.low <= truth <= found.interval.high for found in studies]
    return sum(held) / len(held)


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("tasks", [20, 100])
@pytest.mark.parametrize("of_runs", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_intervals_over_seeds_and_tasks_cover_the_truth(runs, tasks, of_runs):
    """From runs that do not differ to runs whose scatter is all there is to see."""
    rng = np.random.default_rng(0)
    studies = [crossed([draw(rng, runs, tasks, of_runs)], **LEVEL) for _ in range(1000)]
    assert 0.93 <= covered(studies, 0.03) <= 0.985


@pytest.mark.parametrize(("old", "new"), [(3, 3), (1, 3), (5, 3)])
@pytest.mark.parametrize("of_runs", [0.0, 0.02, 0.05])
def test_intervals_of_independent_runs_cover_the_truth(old, new, of_runs):
    """Tasks of a difficulty that both methods share, runs that have nothing to do with each other. Of a single run, the
    truth is its own weights'."""
    rng = np.random.default_rng(1)
    studies = []
    for _ in range(800):
        hard = rng.normal(0, 0.3, 60)
        before = hard + draw(rng, old, 60, of_runs if old > 1 else 0.0, of_both=0.1 if old > 1 else 0.0, truth=0.0)
        studies.append(crossed([hard + draw(rng, new, 60, of_runs, of_both=0.1), -before], **LEVEL))
    assert 0.93 <= covered(studies, 0.03) <= 0.995, "of two methods with few runs each it is on the wide side"


def test_intervals_over_seeds_of_sampled_rates_cover_the_truth():
    """Pass rates of 10 samples a task, as they come: bounded, skewed, and of tasks that all runs pass or fail."""
    rng = np.random.default_rng(2)
    studies, truths = [], []
    for _ in range(600):
        hard = rng.beta(0.5, 0.5, 60)
        gains = 0.1 + rng.normal(0, 0.03, 3)
        rows = [
            (rng.binomial(10, hard + g * 4 * hard * (1 - hard)) - rng.binomial(10, hard)) / 10
            for g in gains.clip(0, 0.25)
        ]
        studies.append(crossed([np.array(rows)], **LEVEL))
        truths.append(0.1 * 4 * (0.25 - 0.25 / 2))
    assert 0.925 <= covered(studies, truths[0]) <= 0.985


def test_a_test_over_seeds_finds_nothing_in_nothing_as_often_as_it_says():
    rng = np.random.default_rng(3)
    for of_runs in (0.0, 0.05):
        p = np.array([crossed([draw(rng, 3, 60, of_runs, truth=0.0)], **LEVEL).p for _ in range(400)])
        assert np.mean(p < 0.05) <= 0.08
        assert np.mean(p < 0.5) <= 0.57


def test_an_interval_over_seeds_is_wider_where_seeds_differ():
    rng = np.random.default_rng(4)
    one = draw(rng, 3, 100, 0.0)
    one -= one.mean(axis=1, keepdims=True)
    apart = one + np.array([[-0.05], [0.0], [0.05]])
    narrow, wide = (crossed([rows], **LEVEL).interval for rows in (one, apart))
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    alone = of_differences(list(apart.mean(axis=0)), resamples=2000, confidence=0.95, seed=0)
    assert wide.high - wide.low > 2 * (alone.high - alone.low), "tasks alone know nothing of seeds"


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3])
def test_runs_and_tasks_that_all_agree_still_have_an_interval_with_width(value):
    found = crossed([np.full((3, 40), value)], confidence=0.95, bounds=(-1, 1), weight=1.0)
    assert found.interval.high - found.interval.low > 0.02
    assert -1 <= found.interval.low <= value <= found.interval.high <= 1 or abs(value) == 1


def test_p_is_where_the_interval_ends_at_nothing():
    rng = np.random.default_rng(8)
    for truth in (0.0, 0.05, 0.1):
        rows = draw(rng, 3, 60, 0.02, truth=truth)
        p = crossed([rows], **LEVEL).p
        interval = crossed([rows], **LEVEL | {"confidence": 1 - p}).interval
        assert min(abs(interval.low), abs(interval.high)) < 1e-6


def test_two_runs_are_refused():
    with pytest.raises(ValueError, match="two runs"):
        crossed([np.zeros((2, 30))], **LEVEL)


def test_the_scatter_is_found_in_its_parts():
    rng = np.random.default_rng(5)
    noise, samples, found = 0.2, 10, []
    for _ in range(60):
        rows = draw(rng, 4, 400, 0.04, of_tasks=0.2, of_both=math.sqrt(0.01 + noise / samples), truth=0.0)
        found.append(scatter([rows], noise, samples))
    assert np.mean([f.tasks for f in found]) == pytest.approx(0.04, rel=0.1)
    assert np.mean([f.runs for f in found]) == pytest.approx(0.0016, rel=0.3)
    assert np.mean([f.both for f in found]) == pytest.approx(0.01, rel=0.1)
    one = scatter([rows[:1]], noise, samples)
    assert one.runs is None
    assert one.tasks == pytest.approx(0.05, rel=0.3), "task and run together, of one run"


@pytest.mark.parametrize(
    ("found", "runs"),
    [(Scatter(0.02, 0.0006, 0.005, 0.15), 4), (Scatter(0.02, 0.0, 0.0, 0.3), 3), (Scatter(0.03, None, 0.0, 0.3), 1)],
)
def test_a_detectable_difference_is_detected_four_times_in_five(found, runs):
    rng = np.random.default_rng(6)
    size = detectable(found, runs, 100, 10, 0.95)
    both = math.sqrt(found.both + found.samples / 10)
    studies = [draw(rng, runs, 100, math.sqrt(found.runs or 0), math.sqrt(found.tasks), both, size) for _ in range(500)]
    if runs == 1:
        lows = [of_differences(list(rows[0]), resamples=300, confidence=0.95, seed=0).low for rows in studies]
    else:
        lows = [crossed([rows], **LEVEL).interval.low for rows in studies]
    assert 0.7 <= np.mean(np.array(lows) > 0) <= 0.9


def test_what_is_needed_is_the_least_that_shows_it():
    found = Scatter(tasks=0.02, runs=0.0006, both=0.005, samples=0.15)
    table = needed(found, 3, 100, 10, 0.95)
    assert list(table) == ["1", "2", "3", "5", "10"]
    many = table["5"]["seeds"]
    assert many > 3
    assert detectable(found, many, 100, 10, 0.95) <= 0.05 < detectable(found, many - 1, 100, 10, 0.95)
    for kind in ("seeds", "samples", "tasks"):
        counts = [row[kind] for row in table.values()]
        known = [count for count in counts if count is not None]
        assert known == sorted(known, reverse=True), "a smaller difference needs more"
        assert counts[: len(counts) - len(known)] == [None] * (len(counts) - len(known))


def test_what_no_number_can_show_is_said():
    few_tasks = Scatter(tasks=0.05, runs=0.0004, both=0.0, samples=0.1)
    assert needed(few_tasks, 3, 30, 10, 0.95)["1"]["seeds"] is None, "30 tasks are too few, whatever the seeds"
    wild_runs = Scatter(tasks=0.001, runs=0.01, both=0.0, samples=0.1)
    row = needed(wild_runs, 3, 100, 10, 0.95)["2"]
    assert row["tasks"] is None and row["samples"] is None and row["seeds"] > 100
    assert needed(Scatter(0.02, None, 0.0, 0.1), 1, 100, 10, 0.95)["2"]["seeds"] is None, (
        "one run tells nothing of seeds"
    )


def test_least():
    assert [least(lambda n, wanted=wanted: n >= wanted, 1, 100) for wanted in (0, 1, 7, 100, 101)] == [
        1,
        1,
        7,
        100,
        None,
    ]
