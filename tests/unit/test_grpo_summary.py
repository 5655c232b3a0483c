"""What GRPO's metrics say of a run: means over its first and its last steps, which are never the same ones."""

from pathlib import Path

import pytest

from jobs.grpo.job import summary, trained_on
from jobs.plumbing.params import load


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(1, 0.0, 0.0), (2, 0.0, 1.0), (5, 1.0, 3.0), (6, 1.0, 4.0), (20, 4.5, 14.5), (50, 4.5, 44.5)],
)
def test_first_and_last_are_ten_steps_each_or_halves(steps, first, last):
    """Step n earned n; of an odd number the middle one belongs to both."""
    found = summary([{"step": n + 1, "reward": float(n), "signal": n % 2} for n in range(steps)])
    assert (found["first"]["reward"], found["last"]["reward"]) == (first, last)
    assert (found["steps"], found["steps_without_signal"]) == (steps, (steps + 1) // 2)


def test_steps_that_draw_no_batch_are_passed_over():
    """As those of several iterations on one batch are: they have no reward."""
    rows = [{"step": n + 1} | ({"reward": float(n)} if n % 3 == 0 else {}) for n in range(9)]
    found = summary(rows)
    assert (found["first"]["reward"], found["last"]["reward"], found["steps"]) == (1.5, 4.5, 9)
    assert summary(rows[:3])["last"]["reward"] == 0.0


@pytest.mark.parametrize(("beta", "entropy", "skipped"), [(0.0, 0.0, 48), (0.1, 0.0, 0), (0.0, 0.1, 0)])
def test_completions_without_a_signal_cost_no_pass_where_nothing_else_is_learned_from_them(beta, entropy, skipped):
    """Of 4 x 8 completions a step: half of them, then all; a step on the same batch again draws none."""
    root = Path(__file__).parents[2]
    sets = ["grpo.batch_size=4", "grpo.gradient_accumulation=8", "grpo.generations=8"]
    settings = load(root / "params.yaml", [*sets, f"grpo.beta={beta}", f"grpo.entropy={entropy}"]).grpo
    found = trained_on(settings, [{"signal": 0.5}, {}, {"signal": 0.0}, {"signal": None}])
    assert found == {"in_batches": 64, "without_signal": 48, "without_a_pass": skipped}
