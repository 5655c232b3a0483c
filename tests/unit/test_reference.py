"""What GRPO's KL term is measured against: the model that the run began with, whatever the engine makes of it."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.trainer.utils import use_adapter

from jobs.common.errors import JobError
from jobs.grpo.reference import ReferenceCheck
from jobs.training.unsloth import keep_reference

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model():
    """A tiny model with an adapter that has learned something."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    peft = get_peft_model(Qwen3ForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    moved(peft)
    return peft


def moved(model) -> None:
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.add_(torch.randn_like(weights))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_without_its_adapter_the_model_is_the_one_that_was_kept(model):
    with model.disable_adapter():
        base = logits(model)
    given = logits(model)
    keep_reference(model)
    moved(model)
    trained = logits(model)
    with use_adapter(model, adapter_name=None):  # as TRL asks for the reference where it has no copy
        reference = logits(model)
    assert torch.equal(reference, given)
    assert not torch.allclose(reference, trained, atol=1e-2) and not torch.allclose(reference, base, atol=1e-2)
    assert torch.equal(logits(model), trained)


def test_the_trained_weights_come_back_after_an_error_and_still_learn(model):
    keep_reference(model)
    moved(model)
    trained = logits(model)
    with pytest.raises(RuntimeError, match="broken"), model.disable_adapter():
        raise RuntimeError("broken")
    assert torch.equal(logits(model), trained)
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=1.0)
    with model.disable_adapter():
        reference = logits(model)
    (model(IDS).logits - reference).square().mean().backward()
    optimizer.step()
    assert not torch.equal(logits(model), trained)
    with model.disable_adapter():
        assert torch.equal(logits(model), reference)


@pytest.mark.parametrize(("step", "logs"), [(1, {"kl": 0.0004}), (2, {"kl": 0.4}), (1, {"loss": 1.0}), (1, None)])
def test_a_small_kl_a_later_one_and_none_go_on(step, logs):
    ReferenceCheck().on_log(None, SimpleNamespace(global_step=step), None, logs=logs)


@pytest.mark.parametrize("kl", [0.02, 3.0, -0.5])
def test_another_reference_ends_the_run_in_its_first_step(kl):
    with pytest.raises(JobError, match=r"step 1: the KL to the reference is .* grpo\.beta"):
        ReferenceCheck().on_log(None, SimpleNamespace(global_step=1), None, logs={"kl": kl})
