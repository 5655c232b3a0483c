"""The importance correction out of the pass with the gradient is the one that a forward pass of its own gives."""

from types import SimpleNamespace

import pytest
import torch

from jobs.grpo import correction
from jobs.plumbing.params import load
from tests import toy
from tests.program import ROOT

SETTINGS = [
    "grpo.engine=transformers", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch", "grpo.generations=4",
    "grpo.batch_size=4", "grpo.gradient_accumulation=3", "grpo.max_completion_length=12", "grpo.beta=0", "grpo.top_p=1",
    "sft.lora.rank=4", "grpo.importance_correction=true", "grpo.log_completions_every=0", "grpo.loss=dapo",
]  # fmt: skip
MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.make_trained(tmp_path_factory.mktemp("correction"))


@pytest.fixture
def trainer_with(folder):
    """(settings) -> a trainer whose twelve completions, their rewards and what a rollout makes of them are given."""

    def number_of_tokens(completion_ids, **_):
        return [float(len(ids) % 3) for ids in completion_ids]

    def trainer_with(*settings):
        params = load(ROOT / "params.yaml", [*SETTINGS, *settings])
        trainer = toy.grpo_trainer(folder, folder, params, passes=3, tasks=3, reward=number_of_tokens)
        trainer.use_vllm, trainer._generate = True, completions
        trainer.passes_without_gradient = 0
        counted = trainer._get_per_token_logps_and_entropies

        def counting(*arguments, **options):
            trainer.passes_without_gradient += not torch.is_grad_enabled()
            return counted(*arguments, **options)

        trainer._get_per_token_logps_and_entropies = counting
        return trainer

    return trainer_with


def completions(prompts: list) -> tuple:
    """What TRL's `_generate` returns. The rollout's log-probabilities are near a random model's, which are about -6."""
    draw = torch.Generator().manual_seed(4)
    ids = [torch.randint(1, 500, (n,), generator=draw).tolist() for n in (3, 7, 2, 11, 4, 8, 1, 5, 9, 6, 12, 10)]
    sampled = [(torch.randn(len(row), generator=draw) * 0.7 - 6.2).tolist() for row in ids]
    sampled[1][2] = None  # type: ignore[index]  # where vLLM could not say
    prompt_ids = [torch.randint(1, 500, (3 + i // 4,), generator=draw).tolist() for i in range(12)]
    return prompt_ids, ids, None, [""] * 12, sampled, {}, None, None


def trained(trainer) -> tuple[torch.Tensor, list[float], dict[str, list[float]]]:
    """The gradient of a step, flat; each pass's loss; what is logged of the correction."""
    rows = [{"prompt": f"task {i // 4}", "task_id": str(i // 4)} for i in range(12)]
    torch.manual_seed(0)
    losses = []
    for _ in range(3):
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(rows))
        loss.backward()
        losses.append(loss.item())
        trainer._step += 1
    grads = [weight.grad.flatten() for weight in trainer.model.parameters() if weight.requires_grad]
    logged = {k: v for k, v in trainer._metrics["train"].items() if k.startswith("sampling/")}
    return torch.cat(grads), losses, logged


@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_are_those_of_a_forward_pass_of_its_own(trainer_with, mode):
    settings = f"grpo.importance_mode={mode}", "grpo.importance_cap=1.5"
    with_a_pass, without = trainer_with(*settings), trainer_with(*settings)
    with_a_pass.trains_once = lambda: False
    expected, losses, logged = trained(with_a_pass)
    found, same_losses, logged_too = trained(without)
    assert with_a_pass.passes_without_gradient and not without.passes_without_gradient
    assert expected.norm() > 1e-3, "there is something to compare"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert same_losses == pytest.approx(losses, abs=1e-6)
    assert logged.keys() == logged_too.keys() and len(logged) == 5
    for name in ("sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/max"):
        assert max(logged_too[name]) == pytest.approx(
            logged[name][0], abs=1e-4
        )  # of all passes, and of the step at once


def test_the_correction_is_not_nothing(trainer_with):
    expected, _, _ = trained(trainer_with("grpo.importance_correction=false"))
    found, _, _ = trained(trainer_with())
    assert (found - expected).norm() > 0.05 * expected.norm()


def test_with_a_kl_term_trls_own_passes_are_corrected_likewise(trainer_with):
    """Those are not laid out anew, and the reference's pass stays."""
    settings = "grpo.beta=0.05", "grpo.importance_mode=token_mask"
    with_a_pass, without = trainer_with(*settings), trainer_with(*settings)
    with_a_pass.trains_once = lambda: False
    expected, losses, _ = trained(with_a_pass)
    found, same_losses, _ = trained(without)
    assert with_a_pass.passes_without_gradient == 2 * without.passes_without_gradient > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert same_losses == pytest.approx(losses, abs=1e-6)


def test_several_iterations_keep_their_old_log_probabilities(trainer_with):
    trainer = trainer_with("grpo.iterations=2")
    trained(trainer)
    assert trainer.passes_without_gradient


def test_no_numbers_of_a_pass_without_tokens_and_none_that_are_not_known():
    logps, sampled = torch.tensor([[-1.0, -2.0]]), torch.tensor([[float("nan"), -3.0]])
    mask = torch.tensor([[1, 1]])
    ratio = correction.importance_ratio(logps, sampled, mask, "token_truncate", 2.0)
    torch.testing.assert_close(ratio, torch.tensor([[1.0, 2.0]]))
    found = correction.statistics(logps, sampled, mask, ratio)
    assert found["sampling/sampling_logp_difference/mean"] == 1.0
    assert found["sampling/importance_sampling_ratio/mean"] == 1.5
    assert correction.statistics(logps, sampled, 0 * mask, ratio) == {}
    assert correction.statistics(logps, sampled, 0 * mask, ratio[:, :1]) == {}


def trainer_of_unsloth() -> type:
    """A class as Unsloth writes it to a file: the loss is a global of its `compute_loss`, and computes its own gradient."""
    written: dict = {"torch": torch}
    exec(UNSLOTH, written)
    return written["UnslothTrainer"]


UNSLOTH = """
class UnslothEfficientGRPO(torch.autograd.Function):
    @staticmethod
    def forward(ctx, new, old, reference, sampled, mask, advantages):
        def loss(new):
            ratio = 1.0 if sampled is None else torch.exp((old - sampled) * mask).clamp(max=2.0).detach()
            log_ratio = new - (new.detach() if old is None else old)
            return (-torch.exp(log_ratio) * advantages * ratio * mask).sum()
        gradient, value = torch.func.grad_and_value(loss)(new)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0], None, None, None, None, None

class UnslothTrainer:
    def compute_loss(self, *arguments):
        return UnslothEfficientGRPO.apply(*arguments)
"""


@pytest.mark.parametrize("corrected", [True, False])
def test_unsloths_loss_without_old_log_probabilities_is_that_with_its_own_as_old(corrected):
    trainer = trainer_of_unsloth()
    draw = torch.Generator().manual_seed(1)
    new = torch.randn(3, 5, generator=draw) - 3
    sampled = new + 0.5 * torch.randn(3, 5, generator=draw) if corrected else None
    mask, advantages = torch.ones(3, 5), torch.randn(3, 1, generator=draw)

    def gradient(old) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = new.clone().requires_grad_()
        loss = trainer().compute_loss(leaf, old, None, sampled, mask, advantages)
        loss.backward()
        return loss.detach(), leaf.grad

    expected = gradient(new.clone())
    if corrected:
        with pytest.raises(TypeError):
            gradient(None)
    correction.take_own_for_old(trainer)
    correction.take_own_for_old(type("Ours", (trainer,), {}))  # once is enough
    torch.testing.assert_close(gradient(None), expected)


def test_an_unsloth_without_that_loss_is_named():
    with pytest.raises(LookupError, match="UnslothEfficientGRPO"):
        correction.take_own_for_old(SimpleNamespace)
