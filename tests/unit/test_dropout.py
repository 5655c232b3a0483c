"""What a base's configuration leaves to chance in training is off, whichever engine has loaded the model."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jobs.plumbing.params import load  # noqa: E402
from jobs.training import dropout, unsloth  # noqa: E402
from tests.toy import make_tokenizer  # noqa: E402

PARAMS = Path(__file__).parents[2] / "params.yaml"
SIZE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None,
}  # fmt: skip
# Where each keeps them: a module's number, a layer of torch's, the configuration at every pass.
KINDS = {
    "a number of a module": ("Qwen2", {"attention_dropout": 0.5}),
    "layers, and numbers beside": (
        "Starcoder2", {"attention_dropout": 0.5, "residual_dropout": 0.25, "embedding_dropout": 0.25},
    ),
    "layers alone": ("Phi", {"resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    "the configuration": ("Falcon", {"hidden_dropout": 0.5, "attention_dropout": 0.5}),
    "layers that are passed by": ("OPT", {"layerdrop": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 64}),
    "a router's noise": ("Mixtral", {"router_jitter_noise": 0.5, "num_local_experts": 4, "output_router_logits": True}),
}  # fmt: skip


def made(kind):
    family, keys = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZE | keys)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def passes(model):
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        return [model.train()(ids).logits for _ in range(3)] + [model.eval()(ids).logits]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_in_training_is_that_of_sampling(kind, caplog):
    model = made(kind)
    torch.manual_seed(1)
    assert any(not torch.equal(found, passes(model)[0]) for found in passes(model)), "the family has such chance"
    with caplog.at_level("INFO"):
        dropout.turn_off(model, Path("base"))
    *trained, sampled = passes(model)
    assert all(torch.equal(found, sampled) for found in trained)
    named = [key for key in KINDS[kind][1] if "drop" in key or "noise" in key]
    assert all(f"{name} 0." in caplog.text for name in named) and caplog.text.count("base: is trained without") == 1


def test_the_loss_of_experts_is_off():
    model = made("a router's noise")
    dropout.turn_off(model, Path("base"))
    assert not model.config.output_router_logits and not model.config.router_aux_loss_coef
    assert not model.router_aux_loss_coef, "the model's own copy"


def test_a_model_without_any_is_left_alone(caplog):
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZE))
    with caplog.at_level("INFO"):
        dropout.turn_off(model, Path("base"))
    assert not caplog.text


@pytest.mark.parametrize("kind", ["a number of a module", "the configuration", "layers, and numbers beside"])
def test_unsloths_model_is_trained_without_dropout_too(tmp_path, monkeypatch, kind):
    """Its place is taken by transformers and PEFT, which it patches: modules and configuration are transformers'."""
    from peft import LoraConfig, get_peft_model

    def from_pretrained(folder, *, dtype, **_):
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), None

    def with_adapter(model, *, r, lora_alpha, target_modules, **_):
        return get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules))

    fast = SimpleNamespace(from_pretrained=from_pretrained, get_peft_model=with_adapter)
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=fast))
    made(kind).save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    params = load(PARAMS, ["sft.lora={rank: 4, alpha: 4, targets: [all-linear]}"])
    *trained, sampled = passes(unsloth.load(params, tmp_path, None, params.sft))
    assert all(torch.equal(found, sampled) for found in trained)
