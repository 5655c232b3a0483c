"""Two answers as one completion: which answers are told something, what is in the loss, and what passes make of it."""

from types import SimpleNamespace

import pytest

from jobs.common import answer_format
from jobs.grpo import turns
from jobs.grpo.rewards import Scorer
from jobs.plumbing.params import load
from jobs.sandbox import Sandbox
from jobs.sandbox.verdict import Verdict
from tests.program import ROOT

TASK = {"task_id": "t", "prompt": "Do it.", "entry_point": "f", "setup": "", "tests": ["assert f(3) == 4"]}


def answer(body):
    return answer_format.render("Think.", f"def f(x):\n    return {body}\n")


def test_only_whole_answers_that_failed_are_told_something():
    rewards = load(ROOT / "params.yaml").grpo.rewards
    texts = [answer("x + 1"), answer("x"), "no format", answer("x * 2")]
    with Sandbox(workers=1, timeout=10) as sandbox:
        scorer = Scorer(sandbox, rewards, {"t": TASK}, 64)
        said = turns.told(scorer, texts, ["t"] * 4, [True, True, True, False])
        assert [bool(text) for text in said] == [False, True, True, False]
        assert "The call: f(3)" in said[1] and "does not obey the format" in said[2]
        final = [texts[0], answer("x + 1"), answer("x - 1"), texts[3]]
        assert [one.correctness for one in scorer.scores(final, ["t"] * 4)] == [1.0, 1.0, 0.0, 0.0]
        assert not scorer.pending, "nothing of the first answers is kept"


def test_nothing_is_said_where_the_sandbox_failed():
    verdicts = [Verdict("infrastructure_error", 0, 0), Verdict("unsupported", 0, 0), Verdict("failed", 0, 1)]
    broken = SimpleNamespace(tasks={"t": TASK}, verdicts=lambda texts, names: verdicts)
    said = turns.told(broken, [answer("1")] * 3, ["t"] * 3, [True] * 3)
    assert [bool(text) for text in said] == [False, False, True]


def test_both_answers_are_in_the_loss_and_what_is_said_between_is_not():
    first, said = [[1, 2], [3, 4, 5], [6]], {1: [10, 11], 2: [12]}
    whole = turns.joined(first, said, [[20, 21], [22]], [[0.1, 0.2], [0.3] * 3, [0.4]], [[0.5, 0.6], [0.7]])
    assert whole.ids == [[1, 2], [3, 4, 5, 10, 11, 20, 21], [6, 12, 22]]
    assert whole.mask == [[1, 1], [1, 1, 1, 0, 0, 1, 1], [1, 0, 1]]
    assert whole.logps == [[0.1, 0.2], [0.3, 0.3, 0.3, 0.0, 0.0, 0.5, 0.6], [0.4, 0.0, 0.7]]
    assert first == [[1, 2], [3, 4, 5], [6]], "the first answers are left alone"
    assert turns.joined(first, {}, [], None, None).logps is None


@pytest.mark.parametrize("loss", ["bnpo", "grpo", "dapo"])
def test_passes_of_our_own_count_the_tokens_in_the_loss(loss):
    """The sum of the passes' losses is that of TRL's, which divide by the tokens that are in the loss."""
    import torch

    from jobs.grpo import batches

    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    tool = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]])
    output = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long), "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.ones(4, 4, dtype=torch.long), "completion_mask": mask, "tool_mask": tool,
        "advantages": torch.tensor([1.0, -2.0, 0.5, 0.25]), "num_items_in_batch": (mask * tool).sum(),
    }  # fmt: skip
    assert batches.loss_mask(output).tolist() == (mask * tool).tolist()

    def total(passes):
        parts = []
        for part in passes:
            kept = batches.loss_mask(part)
            rows = part["advantages"][:, None] * kept
            if loss == "bnpo":
                parts.append(rows.sum() / kept.sum().clamp(min=1))
            elif loss == "grpo":
                parts.append((rows.sum(1) / kept.sum(1).clamp(min=1)).mean())
            else:
                parts.append(rows.sum() / output["num_items_in_batch"])
        return sum(parts)

    state = torch.random.get_rng_state()
    theirs = [batches.taken(output, rows.tolist()) for rows in torch.randperm(4).split(2)]
    torch.random.set_rng_state(state)
    ours = batches.passes(output, 2, loss, tokens_of_step=False)
    assert total(ours) == pytest.approx(total(theirs))
