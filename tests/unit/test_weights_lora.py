"""The sum against exact arithmetic and PEFT's own merge, and every adapter that must be refused."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.common.errors import JobError
from jobs.weights.lora import updates, updates_of
from jobs.weights.safetensors import tensors_of
from jobs.weights.sum import Storage, write_model
from tests.exact import nearest
from tests.toy import make_adapter, make_model, with_keys

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
MLP = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "tied": make_model(folder / "tied"),
        "untied": make_model(folder / "untied", tie=False),
        "bf16": make_model(folder / "bf16", dtype="bfloat16"),
    }


def ours(base, adapters, dtype, out):
    out.mkdir()
    write_model(base, updates_of(base, adapters), Storage(dtype), out)
    return load_file(out / "model.safetensors")


def same(found, expected):
    """Every number is PEFT's rounded once, but for one in a thousand, which is the number next to it.

    PEFT sums in float32. Where base and update nearly cancel, its error may be more than one step of what is left.
    """
    assert found.keys() <= expected.keys()
    differ = count = 0
    for key, tensor in found.items():
        theirs = expected[key].to(tensor.dtype)
        steps = (tensor.view(torch.int16).int() - theirs.view(torch.int16).int()).abs()
        cancelled = (tensor.double() - theirs.double()).abs() <= 2.0**-26
        assert ((steps <= 1) | cancelled).all(), key
        differ += int((steps > 0).sum())
        count += tensor.numel()
    assert differ <= 0.001 * count


def pefts(base, adapters, dtype=torch.float32):
    """PEFT's merge, one adapter after the other, the base loaded in `dtype`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.state_dict()


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "mlp": {"target_modules": MLP, "rank": 32},
    "patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3, r"layers.1.self_attn.v_proj": 5},
        "alpha_pattern": {"layers.0.self_attn.k_proj": 40, r".*v_proj": 7},
    },
    "pattern_names_the_whole_path": {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "some_layers": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_sum_is_pefts(tmp_path, bases, name, dtype):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter", **OPTIONS[name])
    found = ours(bases["tied"], [adapter], dtype, tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[dtype]}
    same(found, pefts(bases["tied"], [adapter]))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_sum_is_pefts_on_a_bfloat16_base_in_its_own_dtype(tmp_path, bases, name):
    adapter = make_adapter(bases["bf16"], tmp_path / "adapter", scale=3e-3, **OPTIONS[name])
    found = ours(bases["bf16"], [adapter], "BF16", tmp_path / "out")
    base = load_file(bases["bf16"] / "model.safetensors")
    assert any(not torch.equal(found[key], base[key]) for key in found)
    same(found, pefts(bases["bf16"], [adapter], torch.bfloat16))


@pytest.mark.parametrize("stored", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("held", ["BF16", "F16", "F32"])
def test_the_sum_is_the_exact_one_rounded_once(tmp_path, held, stored):
    """Two adapters, one of them rsLoRA, and numbers that a sum in float32 would put on a tie."""
    rows, columns, ranks = 24, 16, (2, 3)
    draw = np.random.default_rng(3)
    name = "model.layers.0.self_attn.q_proj"
    weight = torch.from_numpy(draw.normal(0, 0.02, (rows, columns)).astype(np.float32)).to(DTYPES[held])
    weight[:8] = 1.0  # with 2^-8, 2^-9 and a little more or less: beside where float16 and bfloat16 turn
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"tie_word_embeddings": false}')
    save_file({f"{name}.weight": weight}, base / "model.safetensors")
    total = [[Fraction(float(x)) for x in row] for row in weight]
    for number, rank in enumerate(ranks):
        folder = tmp_path / f"adapter{number}"
        folder.mkdir()
        a = draw.normal(0, 0.1, (rank, columns)).astype(np.float32)
        b = draw.normal(0, 0.1, (rows, rank)).astype(np.float32)
        b[:8] = 0
        if number == 0:
            a[:, ::2], b[:8:2], b[1:8:2] = [[2.0**-8], [2.0**-40]], [1, 1], [0.125, -0.125]
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank - number, "use_rslora": number == 1}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        factors = {"A": torch.from_numpy(a), "B": torch.from_numpy(b)}
        save_file(
            {f"base_model.model.{name}.lora_{key}.weight": factor for key, factor in factors.items()},
            folder / "adapter_model.safetensors",
        )
        scale = Fraction(config["lora_alpha"] / (rank**0.5 if number else rank))
        for i, j, k in itertools.product(range(rows), range(columns), range(rank)):
            total[i][j] += scale * Fraction(float(b[i, k])) * Fraction(float(a[k, j]))
    found = ours(base, [tmp_path / "adapter0", tmp_path / "adapter1"], stored, tmp_path / "out")
    assert found[f"{name}.weight"].double().tolist() == [[nearest(x, stored) for x in row] for row in total]


def test_in_float32_equal_to_peft_up_to_the_order_of_its_sums(tmp_path, bases):
    """PEFT adds the products in float32, in an order that the linear algebra library chooses."""
    adapter = make_adapter(bases["tied"], tmp_path / "adapter")
    expected = pefts(bases["tied"], [adapter])
    for key, tensor in ours(bases["tied"], [adapter], "F32", tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2.0**-24 * 0.25)


def test_several_adapters_are_one_sum_in_float32(tmp_path, bases):
    """PEFT merges one after the other; in float32 that is the same sum, up to the last bit of its products."""
    adapters = [
        make_adapter(bases["bf16"], tmp_path / str(seed), seed=seed, scale=1e-2, rank=4 + seed) for seed in range(3)
    ]
    expected = pefts(bases["bf16"], adapters)
    for key, tensor in ours(bases["bf16"], adapters, "F32", tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2.0**-24)
    one_by_one = bases["bf16"]
    for number, adapter in enumerate(adapters):
        ours(one_by_one, [adapter], "BF16", tmp_path / f"step{number}")
        one_by_one = tmp_path / f"step{number}"
        (one_by_one / "config.json").write_bytes((bases["bf16"] / "config.json").read_bytes())
    at_once = ours(bases["bf16"], adapters, "BF16", tmp_path / "at_once")
    cast = load_file(one_by_one / "model.safetensors")
    error = {
        name: sum(float((t[key].float() - expected[key]).square().sum()) for key in t)
        for name, t in (("at once", at_once), ("cast between", cast))
    }
    assert error["at once"] < 0.5 * error["cast between"]  # three roundings have three times the error of one


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ],
    ids=["lora_on_embeddings", "saved_head", "saved_embeddings_and_norm"],
)
def test_embeddings_and_saved_modules_as_peft_does(tmp_path, bases, options):
    adapter = make_adapter(bases["untied"], tmp_path / "adapter", **options)
    expected = pefts(bases["untied"], [adapter])
    found = ours(bases["untied"], [adapter], "BF16", tmp_path / "out")
    base = load_file(bases["untied"] / "model.safetensors")
    changed = {key for key in found if not torch.equal(found[key], base[key].bfloat16())}
    assert "lm_head.weight" in changed
    same(found, expected)


def test_biases_as_peft_does(tmp_path):
    from transformers import AutoModelForCausalLM

    base = make_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, attention_bias=True, dtype=torch.float32)
    model.save_pretrained(base)
    for bias in ("all", "lora_only"):
        adapter = make_adapter(base, tmp_path / bias, bias=bias)
        names = [key for key in load_file(adapter / "adapter_model.safetensors") if key.endswith("bias")]
        assert names, "PEFT saved no biases: this test says nothing"
        same(ours(base, [adapter], "F16", tmp_path / f"out-{bias}"), pefts(base, [adapter]))


def test_a_tied_matrix_saved_whole_under_both_names_is_taken_once(tmp_path, bases):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    new = torch.randn(512, 256)
    extra = {f"base_model.model.{name}.weight": new.clone() for name in ("model.embed_tokens", "lm_head")}
    save_file(load_file(file) | extra, file)
    found = ours(bases["tied"], [adapter], "F32", tmp_path / "out")
    assert torch.equal(found["model.embed_tokens.weight"], new)
    assert "lm_head.weight" not in found


def edited(adapter, **changed):
    return with_keys(adapter / "adapter_config.json", changed)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora"),
        ({"a_key_of_next_year": 3}, "a_key_of_next_year"),
        ({"r": 16}, "rank 8"),
    ],
)
def test_what_the_sum_does_not_obey_is_refused_by_name(tmp_path, bases, changed, says):
    adapter = edited(make_adapter(bases["tied"], tmp_path / "adapter"), **changed)
    with pytest.raises(JobError, match=says):
        updates(adapter, tensors_of(bases["tied"]), tied=True)


def test_a_real_dora_adapter_is_refused(tmp_path, bases):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter", use_dora=True)
    with pytest.raises(JobError, match="DoRA"):
        updates(adapter, tensors_of(bases["tied"]), tied=True)
    with pytest.raises(JobError, match="DoRA"):  # even if its configuration denies it
        updates(edited(adapter, use_dora=False), tensors_of(bases["tied"]), tied=True)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
    ],
    ids=["lora", "saved"],
)
def test_one_half_of_a_tied_pair_is_refused(tmp_path, bases, options):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter", **options)
    file = adapter / "adapter_model.safetensors"
    held = {key: tensor for key, tensor in load_file(file).items() if "lm_head" not in key}
    save_file(held, file)
    with pytest.raises(JobError, match="share their weights"):
        updates(adapter, tensors_of(bases["tied"]), tied=True)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", (8, 256), "has no lora_B.weight beside"),
        ("base_model.model.model.layers.0.mlp.extra.weight", (2, 2), "does not have"),
        ("base_model.model.model.norm.weight", (3,), "shape"),
        ("model.norm.weight", (256,), "not a tensor of a PEFT adapter"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", (256,), "not supported"),
    ],
)
def test_a_tensor_that_fits_nothing_is_refused(tmp_path, bases, name, shape, says):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.zeros(shape)}, file)
    with pytest.raises(JobError, match=says):
        updates(adapter, tensors_of(bases["tied"]), tied=True)


def test_shapes_that_do_not_make_the_bases_are_refused(tmp_path, bases):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    held = load_file(file)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(held | {key: torch.zeros(8, 255)}, file)
    with pytest.raises(JobError, match="do not make"):
        updates(adapter, tensors_of(bases["tied"]), tied=True)


def test_the_sum_does_not_depend_on_how_rows_are_cut(tmp_path, bases, monkeypatch):
    adapter = make_adapter(bases["tied"], tmp_path / "adapter", rank=19)
    whole = ours(bases["tied"], [adapter], "F32", tmp_path / "whole")
    monkeypatch.setattr("jobs.weights.sum.UNIT", 1000)
    monkeypatch.setattr("jobs.weights.safetensors.blocks.__defaults__", (300,))
    cut = ours(bases["tied"], [adapter], "F32", tmp_path / "cut")
    assert all(np.array_equal(whole[key].numpy(), cut[key].numpy()) for key in whole)
