"""Passes without rows that teach nothing have the gradient of TRL's own passes, for every loss."""

import pytest
import torch

from jobs.grpo import batches
from jobs.grpo.rewards import Scorer
from jobs.plumbing.params import load
from tests import toy
from tests.program import ROOT

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo"]
SMALL = [
    "grpo.engine=transformers",
    "grpo.rollout=transformers",
    "grpo.optimizer=adamw_torch",
    "grpo.generations=4",
    "grpo.batch_size=4",
    "grpo.gradient_accumulation=3",
    "grpo.max_completion_length=12",
    "grpo.beta=0",
    "sft.lora.rank=4",
]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """TRL's trainer of a random model, which samples nothing here: its completions are given."""
    folder = toy.make_trained(tmp_path_factory.mktemp("batches"))
    return toy.grpo_trainer(folder, folder, load(ROOT / "params.yaml", SMALL), passes=3, tasks=3)


def step(seed: int = 0, dead_group: bool = True) -> dict:
    """Twelve completions in three groups, of unequal lengths; some, or one whole group, without an advantage."""
    draw = torch.Generator().manual_seed(seed)
    prompts = torch.tensor([3, 3, 3, 3, 7, 7, 7, 7, 5, 5, 5, 5])
    lengths = torch.randint(1, 12, (12,), generator=draw)
    advantages = torch.randn(12, generator=draw)
    advantages[[1, 10]] = 0.0
    if dead_group:
        advantages[4:8] = 0.0
    mask = (torch.arange(12) < lengths[:, None]).long()
    return {
        "prompt_ids": torch.randint(1, 500, (12, 7), generator=draw),
        "prompt_mask": (torch.arange(7) >= 7 - prompts[:, None]).long(),
        "completion_ids": torch.randint(1, 500, (12, 12), generator=draw),
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }


def gradient(trainer, parts: list[dict], loss: str) -> tuple[torch.Tensor, float, int]:
    """Of a whole step, flat; the loss that is logged; and how many tokens went through the model."""
    trainer.loss_type = loss
    trainer.model.zero_grad()
    total, tokens = 0.0, 0
    for part in parts:
        value = trainer.compute_loss(trainer.model, part)
        value.backward()
        total += value.item()
        if len(part["advantages"]):
            tokens += part["prompt_ids"].numel() + part["completion_ids"].numel()
    grads = [weight.grad.flatten() for weight in trainer.model.parameters() if weight.requires_grad]
    return torch.cat(grads), total, tokens


def theirs(output: dict, seed: int) -> list[dict]:
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    torch.manual_seed(seed)
    return split_tensor_dict(shuffle_sequence_dict(output), 3)


def ours(output: dict, loss: str, seed: int) -> list[dict]:
    torch.manual_seed(seed)
    return batches.passes(output, 3, loss, tokens_of_step=False)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_that_of_trls_passes_for_fewer_tokens(trainer, loss, seed):
    output = step(seed)
    expected, logged, tokens = gradient(trainer, theirs(output, seed), loss)
    found, logged_too, fewer = gradient(trainer, ours(output, loss, seed), loss)
    assert expected.norm() > 1e-3, "there is something to compare"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert logged_too == pytest.approx(logged, abs=1e-5)
    assert fewer < tokens


@pytest.mark.parametrize("loss", LOSSES)
def test_dropped_groups_count_in_no_divisor(trainer, loss):
    """As `equal_groups: drop` masks them: 8 of 12 completions are left."""
    output = step(3)
    live = (output["advantages"].view(3, 4) != 0).any(dim=1).repeat_interleave(4).unsqueeze(1)
    output["completion_mask"] = output["completion_mask"] * live
    output["num_items_in_batch"] = output["completion_mask"].sum()
    expected, _, _ = gradient(trainer, theirs(output, 5), loss)
    found, _, _ = gradient(trainer, ours(output, loss, 5), loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


def test_a_step_without_any_signal_costs_nothing_and_gives_every_weight_a_zero(trainer):
    output = step()
    output["advantages"] = torch.zeros(12)
    found, logged, tokens = gradient(trainer, ours(output, "bnpo", 0), "bnpo")
    assert (tokens, logged) == (0, 0.0)
    assert not found.any(), "and none is None, for the optimizer goes on as after a zero gradient"


def test_answers_of_the_transformers_rollout_are_sent_off_whole_while_others_are_written(trainer, monkeypatch):
    sent, scorer = [], Scorer(None, None, {}, 0)
    monkeypatch.setattr(scorer, "start", lambda texts, tasks, pending: sent.append((*texts, *tasks)))
    prompts = [trainer.processing_class(text).input_ids for text in ("def add(a, b):", "def first(items):", "two")]
    rows = [prompts[0], prompts[0], prompts[1], prompts[2], prompts[2]]
    judge = scorer.judging(trainer.processing_class, rows, ["a", "a", "b", "c", "d"])
    completions = trainer.sampled(rows, judge)
    texts = trainer.processing_class.batch_decode(completions, skip_special_tokens=True)
    expected = sorted(zip(texts[:3], "aab", strict=True))
    assert sorted(sent) == expected, "the prompt of two tasks waits for the whole batch"


def test_rows_are_sorted_each_pass_is_as_wide_as_its_longest_and_nothing_is_lost():
    output = step()
    first, second, third = batches.passes(output, 3, "dapo", tokens_of_step=False)
    assert [len(part["advantages"]) for part in (first, second, third)] == [4, 2, 0]
    lengths = [part["prompt_mask"].sum(1) + part["completion_mask"].sum(1) for part in (first, second)]
    assert lengths[0].min() >= lengths[1].max()
    for part in (first, second):
        for name in ("prompt", "completion"):
            assert part[f"{name}_ids"].shape[1] == part[f"{name}_mask"].sum(1).max()
    kept = sorted(torch.cat([first["advantages"], second["advantages"]]).tolist())
    assert kept == sorted(a for a in output["advantages"].tolist() if a)


def uneven(seed: int = 0) -> dict:
    """As `step`, with a prompt and a completion that are much longer than the others, and all but one with an advantage."""
    output = step(seed, dead_group=False)
    prompts, completions = torch.tensor([2] * 11 + [7]), torch.tensor([12, *[2, 3, 1, 2] * 2, 3, 2, 2])
    output["prompt_mask"] = (torch.arange(7) >= 7 - prompts[:, None]).long()
    output["completion_mask"] = (torch.arange(12) < completions[:, None]).long()
    output["num_items_in_batch"] = output["completion_mask"].sum()
    return output


@pytest.mark.parametrize("loss", LOSSES)
def test_short_rows_share_a_pass_of_no_more_tokens_than_trls_and_the_gradient_is_its(trainer, loss):
    output = uneven()
    parts = ours(output, loss, 1)
    shapes = [
        (len(part["advantages"]), part["prompt_ids"].shape[1], part["completion_ids"].shape[1])
        for part in parts
        if len(part["advantages"])
    ]
    assert len(shapes) < 3 and max(rows for rows, *_ in shapes) > 4, "TRL has three passes of four rows"
    for rows, prompt, completion in shapes:
        assert rows * completion <= 4 * 12 and rows * (prompt + completion) <= 4 * (7 + 12)
    found, logged, fewer = gradient(trainer, parts, loss)
    expected, logged_too, tokens = gradient(trainer, theirs(output, 1), loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert logged == pytest.approx(logged_too, abs=1e-5) and fewer < tokens / 2


@pytest.mark.parametrize("change", [{}, {"old_per_token_logps": torch.zeros(12, 16)}])
def test_no_pass_has_more_rows_than_trls_where_it_would_be_wider_than_they_are(change):
    """Another rank's rows may be longer, and what cannot be trimmed is as wide as the step."""
    by_rank = None if change else lambda sizes: [sizes, [1, 1, 1]]
    parts = batches.passes(uneven() | change, 3, "dapo", tokens_of_step=True, by_rank=by_rank)
    assert [len(part["advantages"]) for part in parts] == [4, 4, 2]


def test_tensors_of_an_unknown_layout_keep_every_width():
    output = step() | {"old_per_token_logps": torch.randn(12, 15)}
    first, *_ = batches.passes(output, 3, "dapo", tokens_of_step=True)
    assert [first[name].shape[1] for name in ("prompt_ids", "completion_ids", "old_per_token_logps")] == [7, 12, 15]


def test_log_probabilities_of_rows_that_are_packed_to_the_left_stay_those_of_their_tokens():
    """Unsloth's have a column for every place from the end of the step's shortest prompt on. From their number it finds a
    pass's first place."""
    output = step(dead_group=False)
    prompts, answers = output["prompt_mask"].sum(1).tolist(), output["completion_mask"].sum(1).tolist()
    packed = torch.full((12, 12 + 7 - 3), -1.0)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        packed[row, prompt - 3 : prompt - 3 + answer] = 100.0 * row + torch.arange(answer)
    parts = batches.passes(output | {"ref_per_token_logps": packed}, 3, "dapo", tokens_of_step=True, kl=True)
    narrower = 0
    found = []
    for part in parts:
        width = part["prompt_ids"].shape[1], part["completion_ids"].shape[1]
        first = (
            sum(width) - part["ref_per_token_logps"].shape[1]
        )  # the place in a packed row that the first column is of
        for row in range(len(part["advantages"])):
            prompt, answer = int(part["prompt_mask"][row].sum()), int(part["completion_mask"][row].sum())
            of_tokens = part["ref_per_token_logps"][row, prompt - first : prompt - first + answer]
            number = int(of_tokens[0]) // 100
            assert of_tokens.tolist() == [100.0 * number + k for k in range(answers[number])]
            found.append(number)
        narrower += part["ref_per_token_logps"].shape[1] < packed.shape[1]
    assert sorted(found) == list(range(12)) and narrower


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("make", [step, uneven])
def test_with_a_kl_term_every_row_has_its_pass_and_the_gradient_is_that_of_trls(trainer, monkeypatch, make, loss):
    monkeypatch.setattr(trainer, "beta", 0.3)
    draw = torch.Generator().manual_seed(3)
    output = make() | {"ref_per_token_logps": -3 * torch.rand(12, 12, generator=draw) - 5}
    torch.manual_seed(1)
    parts = batches.passes(output, 3, loss, tokens_of_step=False, kl=True)
    assert sum(len(part["advantages"]) for part in parts) == 12
    expected, logged, _ = gradient(trainer, theirs(output, 1), loss)
    found, logged_too, _ = gradient(trainer, parts, loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert logged_too == pytest.approx(logged, rel=1e-5)
    without, _, _ = gradient(trainer, ours(output, loss, 1), loss)
    assert (without - expected).norm() > 0.01 * expected.norm(), "rows without an advantage have a part in it"


@pytest.mark.parametrize(("loss", "own"), [("dapo", True), ("bnpo", False)])
def test_with_a_kl_term_a_mean_over_a_passs_tokens_keeps_trls_passes(trainer, monkeypatch, loss, own):
    output = step() | {"ref_per_token_logps": torch.zeros(12, 12)}
    monkeypatch.setattr(trainer, "grpo", trainer.grpo.model_copy(update={"beta": 0.1, "loss": loss}))
    monkeypatch.setattr(trainer, "_generate_and_score_completions", lambda _: output)
    monkeypatch.setattr(trainer, "_buffered_inputs", None)
    trainer.model.train()
    assert ("share" in trainer._prepare_inputs({})) == own
    if not own:
        with pytest.raises(ValueError, match="bnpo with a KL term"):
            batches.passes(output, 3, loss, tokens_of_step=False, kl=True)


def test_a_loss_that_is_not_known_to_sum_is_refused():
    with pytest.raises(ValueError, match="vespo"):
        batches.passes(step(), 3, "vespo", tokens_of_step=False)


def of_two_ranks(output: dict, loss: str, others: list[int]) -> list[dict]:
    torch.manual_seed(4)
    return batches.passes(output, 3, loss, tokens_of_step=False, by_rank=lambda sizes: [sizes, others])


@pytest.mark.parametrize("loss", LOSSES)
def test_ranks_have_as_many_rows_in_each_pass_and_those_that_are_added_teach_nothing(trainer, loss):
    """TRL gathers a number a row in each pass, and the ranks would wait for each other in different places."""
    output = step(2)
    alone, shared = ours(output, loss, 4), of_two_ranks(output, loss, [2, 4, 0])
    assert [len(part["advantages"]) for part in alone] == [4, 2, 0]
    assert [len(part["advantages"]) for part in shared] == [4, 4, 1]
    assert [part["taught"] for part in shared] == [True, True, False]
    expected, logged, _ = gradient(trainer, alone, loss)
    found, logged_too, _ = gradient(trainer, shared, loss)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert logged_too == pytest.approx(logged, abs=1e-5)


def test_a_pass_that_teaches_no_rank_measures_nothing(trainer):
    output = step()
    output["advantages"] = torch.zeros(12)
    trainer._metrics["train"].clear()
    found, logged, _ = gradient(trainer, of_two_ranks(output, "dapo", [0, 0, 0]), "dapo")
    assert logged == 0.0
    assert not found.any()
    assert not any(trainer._metrics["train"].values())
