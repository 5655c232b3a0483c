"""Rollouts in 8 bits: how far a weight is off, and where a stand-in of vLLM's model has it."""

import copy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.common.errors import JobError, UsageError
from jobs.grpo import fp8
from jobs.grpo.rollout import Fp8Rollout
from jobs.plumbing.params import load

ROOT = Path(__file__).parents[2]
FP8 = ["grpo.rollout=vllm_merged_fp8", "grpo.importance_correction=true", "grpo.top_p=1.0"]
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def padded(size: int) -> int:
    return -(-size // 16) * 16


class Layer(torch.nn.Module):
    """A linear layer of vLLM's in 8 bits: (inputs, outputs), inputs next to each other, padded to a multiple of 16."""

    def __init__(self, inputs: int, widths: list[int], dtype=torch.float8_e4m3fn) -> None:
        super().__init__()
        self.logical_widths = widths
        outputs = sum(widths)
        empty = torch.zeros(padded(outputs), padded(inputs)).to(dtype)
        self.weight = torch.nn.Parameter(empty.t(), requires_grad=False)
        self.weight_scale = torch.nn.Parameter(torch.ones(padded(outputs), 1), requires_grad=False)


def stand_in(config: LlamaConfig) -> torch.nn.Module:
    """vLLM's model of these sizes, as far as its linear layers go."""
    model = torch.nn.Module()
    model.packed_modules_mapping = FUSED
    model.head = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    model.model = torch.nn.Module()
    model.model.layers = torch.nn.ModuleList()
    width, feed = config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    for _ in range(config.num_hidden_layers):
        layer = torch.nn.Module()
        layer.self_attn, layer.mlp = torch.nn.Module(), torch.nn.Module()
        layer.self_attn.qkv_proj, layer.self_attn.o_proj = Layer(width, [width, keys, keys]), Layer(width, [width])
        layer.mlp.gate_up_proj, layer.mlp.down_proj = Layer(width, [feed, feed]), Layer(feed, [width])
        model.model.layers.append(layer)
    return model


def held(layer: Layer, rows: slice, columns: int) -> torch.Tensor:
    """(outputs, inputs) float32: what the layer multiplies by, for these outputs."""
    return (layer.weight.float() * layer.weight_scale.t()).t()[rows, :columns]


def test_a_weight_in_8_bits_is_off_by_a_sixteenth_of_itself_at_most():
    torch.manual_seed(0)
    weight = torch.randn(33, 257) * torch.logspace(-7, 3, 33)[:, None]
    weight[5], weight[6, 1:] = 0.0, 0.0
    values, scale = fp8.quantized(weight)
    assert values.dtype == torch.float8_e4m3fn and scale.shape == (33, 1) and scale.dtype == torch.float32
    off = (values.float() * scale - weight).abs()
    assert (off <= torch.maximum(weight.abs() / 16, scale * 2**-10) * (1 + 1e-5)).all()
    assert off.max() > 0
    largest = weight.abs().argmax(dim=1)
    rows = torch.arange(33)
    torch.testing.assert_close((values.float() * scale)[rows, largest], weight[rows, largest], rtol=1e-5, atol=0)


def test_each_output_has_a_scale_of_its_own_and_numbers_round_as_torch_rounds_them():
    weight = torch.tensor([[448.0, -17.0, 1.03125, 0.0], [0.448, -0.017, 0.00103125, 0.0]])
    values, scale = fp8.quantized(weight)
    torch.testing.assert_close(scale[:, 0], torch.tensor([1.0, 0.001]))
    assert torch.equal(values[0].float(), weight[0].to(torch.float8_e4m3fn).float())
    assert values[0].float().tolist() == [448.0, -16.0, 1.0, 0.0]  # 17 lies halfway between 16 and 18
    assert values[1, 0] == 448.0


@pytest.fixture
def adapted():
    """A tiny Llama, keys of half the width and a hidden size that vLLM has to pad, with an adapter on some layers."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    shape = LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]
    )
    return get_peft_model(LlamaForCausalLM(config), shape)


@pytest.fixture
def rollout(adapted, monkeypatch, tmp_path):
    """An Fp8Rollout over the stand-in, that model, and what vLLM was built with."""
    model, asked = stand_in(adapted.config), {}

    class LLM:
        def __init__(self, *_, **options) -> None:
            asked.update(options)

        def apply_model(self, function):
            return [function(model)]

        def reset_prefix_cache(self):
            asked["forgotten"] = asked.get("forgotten", 0) + 1

    package = ModuleType("vllm")
    package.LLM = LLM
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    return Fp8Rollout(load(ROOT / "params.yaml", FP8), tmp_path, adapted), model, asked


def test_every_sum_is_where_the_engine_has_that_layer_and_nothing_else_changes(rollout, adapted):
    _, model, asked = rollout
    assert (asked["quantization"], asked["dtype"], asked["forgotten"]) == ("fp8_per_channel", "float16", 1)
    whole = copy.deepcopy(adapted).merge_and_unload().state_dict()
    places = {
        "self_attn.q_proj": ("self_attn.qkv_proj", slice(0, 24)),
        "self_attn.v_proj": ("self_attn.qkv_proj", slice(36, 48)),
        "mlp.up_proj": ("mlp.gate_up_proj", slice(40, 80)),
        "mlp.down_proj": ("mlp.down_proj", slice(0, 24)),
    }
    for number in range(2):
        for name, (fused, rows) in places.items():
            weight = whole[f"model.layers.{number}.{name}.weight"]
            layer = model.get_submodule(f"model.layers.{number}.{fused}")
            values, scale = fp8.quantized(weight)
            torch.testing.assert_close(held(layer, rows, weight.shape[1]), values.float() * scale)
            assert not layer.weight[weight.shape[1] :].float().any()  # the padding
        attention = model.get_submodule(f"model.layers.{number}.self_attn")
        assert (
            not held(attention.qkv_proj, slice(24, 36), 24).any() and not held(attention.o_proj, slice(0, 24), 24).any()
        )


def test_a_step_writes_where_cuda_graphs_read_and_starts_from_the_base(rollout, adapted):
    made, model, _ = rollout
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.named_parameters()}
    factors = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    kept = [weight.detach().clone() for weight in factors]
    for weight in factors:
        weight.data.mul_(3)
    made.sync_weights()
    assert any(
        not torch.equal(t.view(torch.uint8), before[n][1].view(torch.uint8)) for n, t in model.named_parameters()
    )
    for weight, value in zip(factors, kept, strict=True):
        weight.data.copy_(value)
    made.sync_weights()
    for name, tensor in model.named_parameters():
        pointer, value = before[name]
        assert tensor.data_ptr() == pointer
        assert torch.equal(tensor.view(torch.uint8), value.view(torch.uint8))


def test_the_check_of_the_base_leaves_out_what_steps_change_and_takes_8_bits(rollout):
    made, model, _ = rollout
    before = made.fingerprint()
    assert "head" in before and "model.layers.0.self_attn.o_proj.weight" in before
    assert not set(before) & {f"model.layers.0.self_attn.qkv_proj.{part}" for part in ("weight", "weight_scale")}
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = 1.0
    assert made.fingerprint() != before


@pytest.mark.parametrize("kind", ["missing", "16 bits", "other shape"])
def test_layers_that_are_not_as_expected_are_refused(rollout, kind):
    made, model, _ = rollout
    attention = model.model.layers[1].self_attn
    if kind == "missing":
        del attention.qkv_proj
    else:
        attention.qkv_proj = Layer(24, [24, 24, 24] if kind == "other shape" else [24, 12, 12], *(
            [torch.float16] if kind == "16 bits" else []
        ))  # fmt: skip
    with pytest.raises(
        JobError, match=r"grpo.rollout: vllm_merged_fp8 cannot put.*; set vllm_merged \(.*(q|v|qkv)_proj"
    ):
        made.sync_weights()


def test_a_card_without_8_bits_is_told_of(monkeypatch, adapted, tmp_path):
    def refuse(*_, **options):
        raise ValueError("needs compute capability 8.9")

    package = ModuleType("vllm")
    package.LLM = refuse
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    with pytest.raises(JobError, match=r"vllm_merged_fp8: vLLM cannot hold.*set vllm_merged .*needs compute"):
        Fp8Rollout(load(ROOT / "params.yaml", FP8), tmp_path, adapted)


def test_8_bits_want_importance_correction():
    load(ROOT / "params.yaml", FP8)
    with pytest.raises(UsageError, match=r"grpo.*vllm_merged_fp8.*importance_correction to true"):
        load(ROOT / "params.yaml", FP8[:1])
