"""Which tasks a run takes, in which order: the shares of sources, how often a task comes, and when the hard ones do."""

import random
from collections import Counter
from pathlib import Path

import pytest

from jobs.common.errors import UsageError
from jobs.grpo import order
from jobs.plumbing.params import load

ROOT = Path(__file__).parents[2]
PATH = Path("data/graded.jsonl")


def settings(*changes):
    """Steps of 4 tasks."""
    small = ("grpo.generations=2", "grpo.batch_size=8", "grpo.gradient_accumulation=1", "grpo.steps=50")
    return load(ROOT / "params.yaml", (*small, *changes)).grpo


def tasks(**counts):
    return [
        {"task_id": f"{name}/{i}", "source": name, "pass_rate": 1 - i / count}
        for name, count in counts.items()
        for i in range(count)
    ]


def drawn(rows, chosen, seed=7):
    return [rows[i]["task_id"] for i in order.plan(rows, chosen, seed, PATH)]


def sources(names):
    return [name.partition("/")[0] for name in names]


@pytest.mark.parametrize("number", range(2, 7))
def test_every_source_has_its_share_at_every_place_to_less_than_one(number):
    rng = random.Random(number)
    for _ in range(20):
        shares = order.normalised({f"s{i}": rng.choice([0.1, 1, rng.random() * 5 + 0.01]) for i in range(number)})
        given = Counter()
        for place, name in enumerate(order.turns(shares, 400), 1):
            given[name] += 1
            for other, share in shares.items():
                assert abs(given[other] - share * place) < 1, (shares, place)


def test_a_mix_is_drawn_in_its_weights_whatever_the_sizes_of_the_sources():
    rows = tasks(large=400, small=9, unused=30)
    chosen = order.chosen(rows, {"large": 1, "small": 3}, PATH)
    names = drawn(chosen, settings("grpo.mix={large: 1, small: 3}"))
    assert len(names) == 4 * 50
    assert Counter(sources(names)) == {"large": 50, "small": 150}
    for start in range(0, 200, 4):
        assert Counter(sources(names[start : start + 4])) == {"large": 1, "small": 3}
    assert len({name for name in names if name.startswith("large")}) == 50, "none twice before all have come"
    often = Counter(name for name in names if name.startswith("small"))
    assert len(often) == 9 and max(often.values()) - min(often.values()) <= 1


def test_no_task_comes_twice_in_a_step():
    for rows in (tasks(a=5, b=4), tasks(a=6)):
        chosen = settings("grpo.mix={a: 3, b: 2}") if len(rows) > 6 else settings("grpo.curriculum=1.0")
        names = drawn(rows, chosen)
        for start in range(0, len(names), 4):
            assert len(set(names[start : start + 4])) == 4


def test_a_source_with_as_many_tasks_as_a_step_takes_is_enough_and_with_fewer_is_refused():
    chosen = settings("grpo.mix={a: 1, b: 3}")
    names = drawn(tasks(a=1, b=3), chosen)
    assert Counter(names) == {"a/0": 50, "b/0": 50, "b/1": 50, "b/2": 50}
    with pytest.raises(UsageError, match=r"grpo\.mix: a step takes 3 tasks of b, and data/graded\.jsonl has 2"):
        drawn(tasks(a=1, b=2), chosen)


def test_a_source_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UsageError, match=r"no task of the source taco to train on; it has apps, lcb"):
        order.chosen(tasks(apps=2, lcb=3), {"apps": 1, "taco": 1}, PATH)


def test_the_order_hangs_on_the_seed_alone():
    rows, chosen = tasks(a=40, b=40), settings("grpo.mix={a: 1, b: 1}")
    assert drawn(rows, chosen) == drawn(rows, chosen)
    assert drawn(rows, chosen) != drawn(rows, chosen, seed=8)


def test_a_curriculum_begins_with_the_easiest_and_opens_the_rest_over_its_share_of_the_run():
    rows = tasks(a=100)  # a/0 is the easiest
    random.Random(1).shuffle(rows)
    names = drawn(rows, settings("grpo.curriculum=0.5"))
    ranks = [int(name.partition("/")[2]) for name in names]
    for place, rank in enumerate(ranks):
        share = min(1, order.START + (1 - order.START) * place / 100)
        assert rank <= 100 * share, (place, rank)
    assert max(ranks[:10]) < 35 and max(ranks[90:110]) > 90
    often = Counter(ranks)
    assert len(often) == 100 and set(often.values()) <= {1, 2, 3}, "in the end all have come"


def test_a_curriculum_of_a_mix_is_one_in_every_source():
    rows = tasks(a=80, b=80)
    names = drawn(rows, settings("grpo.mix={a: 1, b: 3}", "grpo.curriculum=1.0"))
    for name, per_step in (("a", 1), ("b", 3)):
        ranks = [int(task[2:]) for task in names if task.startswith(name)]
        assert len(ranks) == 50 * per_step
        assert all(rank < 80 * (0.25 + 0.75 * (place + 1) / len(ranks)) + 1 for place, rank in enumerate(ranks))


def test_a_curriculum_wants_pass_rates():
    rows = tasks(a=8)
    del rows[3]["pass_rate"]
    with pytest.raises(UsageError, match=r"a/3 has no pass_rate, which grpo\.curriculum goes by; set grade\.samples"):
        drawn(rows, settings("grpo.curriculum=0.5"))


def test_batches_that_are_trained_on_more_than_once_take_fewer_tasks():
    rows = tasks(a=9, b=9)
    assert len(drawn(rows, settings("grpo.mix={a: 1, b: 1}", "grpo.iterations=4"))) == 4 * 13


def test_without_mix_and_curriculum_nothing_is_planned():
    assert order.plan(tasks(a=5), settings(), 7, PATH) is None
    assert order.chosen(rows := tasks(a=5), None, PATH) is rows


def test_the_metrics_say_what_a_mix_takes():
    rows = tasks(a=9, b=3)
    planned = order.plan(rows, settings("grpo.mix={a: 1, b: 1}"), 7, PATH)
    assert order.shares_of(rows, planned) == {"a": {"tasks": 9, "groups": 100}, "b": {"tasks": 3, "groups": 100}}
