"""Adapters as files: what other tools write, what is half there, and what belongs to another base."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.common.errors import JobError
from jobs.weights import adapter as adapters
from jobs.weights.identity import adapter_identity
from jobs.weights.lora import updates_of
from jobs.weights.sum import Storage, write_model
from tests.toy import TARGETS, make_adapter, make_model, with_keys


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base") / "base", tie=False)


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "plain", scale=0.1, lora_alpha=8)


@pytest.fixture
def copy(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "adapter")


def edit(folder, rename=None, drop=(), **config):
    file = folder / "adapter_config.json"
    held = json.loads(file.read_text()) | config
    file.write_text(json.dumps({key: value for key, value in held.items() if key not in drop}))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({(rename or str)(name): t for name, t in weights.items()}, folder / "adapter_model.safetensors")
    return folder


def merged(base, folder, out):
    out.mkdir()
    write_model(base, updates_of(base, [folder]), Storage("F32"), out)
    return load_file(out / "model.safetensors")


def attached(base, folder):
    from transformers import AutoModelForCausalLM

    return adapters.attach(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder, base)


def with_name(name):
    return name.replace(".weight", ".default.weight")


OLD = {  # PEFT 0.2's configuration, whole
    "base_model_name_or_path": "somewhere/else",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 8,
    "target_modules": TARGETS,
    "task_type": "CAUSAL_LM",
}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, with_name),
        lambda folder: edit(folder, drop=("r", "lora_alpha", "use_rslora", "peft_version")),
        lambda folder: (folder / "adapter_config.json").write_text(json.dumps(OLD)),
        lambda folder: edit(folder, unsloth_fixed=True, merge_weights=True, parent_library="transformers"),
        lambda folder: edit(folder, eva_config={"rho": 2.0}, loftq_config={}, runtime_config={"x": 1}),
    ],
    ids=["adapter_name", "defaults", "peft_0.2", "unsloth", "idle_settings"],
)
def test_what_other_tools_write_is_the_same_adapter(base, plain, copy, tmp_path, change):
    change(copy)
    expected = merged(base, plain, tmp_path / "expected")
    found = merged(base, copy, tmp_path / "found")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    weights = attached(base, copy).merge_and_unload().state_dict()
    assert any(not torch.equal(weights[n], t) for n, t in load_file(base / "model.safetensors").items())
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": "8"}, "r is '8'"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": {"q_proj(": 8}}, "no regular expression"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern gives 'q_proj' '8'"),
        ({"rank_pattern": [8]}, "rank_pattern is"),
        ({"target_modules": 7}, "target_modules is 7"),
        ({"use_rslora": "false"}, "use_rslora is 'false', neither true nor false"),
        ({"target_modules": [["q_proj"]]}, "target_modules is"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_one_line(base, copy, config, says):
    edit(copy, **config)
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match=says):
            use()


def test_an_adapter_of_numbers_that_are_none_is_not_answered_with(base, copy):
    weights = load_file(copy / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] * float("nan")}, copy / "adapter_model.safetensors")
    with pytest.raises(JobError, match="holds numbers that are not finite") as caught:
        attached(base, copy)
    assert name in str(caught.value)


def test_numbers_that_are_none_are_not_called_too_large_for_the_dtype(base, copy, tmp_path):
    file = copy / "adapter_model.safetensors"
    broken = {name: tensor * torch.inf if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(broken, file)
    with pytest.raises(JobError, match=r"_proj\.weight is not finite, by itself or with the adapters"):
        merged(base, copy, tmp_path / "out")


@pytest.mark.parametrize("storage", [Storage("BF16"), Storage("BF16", True, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("changed", [True, False])
def test_a_nan_whose_bits_are_all_ones_does_not_round_up_to_a_number(base, plain, tmp_path, dtype, storage, changed):
    folder = shutil.copytree(base, tmp_path / "base")
    held = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    name = f"model.layers.1.{'self_attn.q_proj' if changed else 'input_layernorm'}.weight"
    assert changed == (name in updates_of(base, [plain]))
    held[name].view(torch.int16 if dtype == torch.float16 else torch.int32).reshape(-1)[3] = -1
    save_file(held, folder / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(JobError, match=rf"{name} is not finite"):
        write_model(folder, updates_of(folder, [plain]), storage, tmp_path / "out")


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_a_pair_is_refused_by_its_name(base, copy, half):
    file = copy / "adapter_model.safetensors"
    held = load_file(file)
    held.pop(next(name for name in held if half in name))
    save_file(held, file)
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match=rf"_proj\.lora_[AB]\.weight has no {half}\.weight"):
            use()


def test_a_module_left_out_in_some_layers_is_refused_unless_the_adapter_says_so(base, copy):
    file = copy / "adapter_model.safetensors"
    held = load_file(file)
    save_file({name: tensor for name, tensor in held.items() if "layers.1.self_attn.q_proj" not in name}, file)
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match=r"holds no tensor for .*model\.layers\.1\.self_attn\.q_proj"):
            use()
    save_file({name: tensor for name, tensor in held.items() if "layers.1" not in name}, file)
    with pytest.raises(JobError, match=r"holds no tensor for .*layers\.1\..* and \d+ more, and does for other layers"):
        updates_of(base, [copy])
    for first in ([0], 0):  # as PEFT takes them
        edit(copy, layers_to_transform=first)
        for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
            use()
    edit(copy, layers_to_transform=None, target_modules=r".*layers\.0\.self_attn\.[qkvo]_proj")
    assert updates_of(base, [copy])


def test_an_adapter_on_the_ends_of_the_model_is_laid_over_it_as_it_is_summed(base, tmp_path):
    """PEFT keeps the base's own matrices beside its factors."""
    folder = make_adapter(base, tmp_path / "ends", scale=0.1, target_modules=["q_proj", "embed_tokens", "lm_head"])
    assert any(".base_layer." in name for name in load_file(folder / "adapter_model.safetensors"))
    summed = merged(base, folder, tmp_path / "out")
    laid = attached(base, folder).merge_and_unload().state_dict()
    for name, tensor in summed.items():
        torch.testing.assert_close(laid[name], tensor, atol=1e-6, rtol=0)
    assert not torch.equal(summed["lm_head.weight"], load_file(base / "model.safetensors")["lm_head.weight"])


def without(folder, *parts):
    file = folder / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if not any(part in name for part in parts)}, file)
    return folder


@pytest.mark.parametrize("names", [None, r"model\.layers\.\d+\..*_proj"], ids=["list", "expression"])
def test_a_kind_of_module_that_the_config_names_and_no_layer_holds_is_missed(base, copy, names):
    edit(without(copy, "down_proj"), target_modules=names or TARGETS)
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match=r"holds no tensor for .*down_proj"):
            use()
    assert updates_of(base, [edit(copy, target_modules=[name for name in TARGETS if name != "down_proj"])])


def test_names_that_this_model_has_no_module_of_are_no_loss(base, copy):
    """Tools list the modules of every family that they know, and PEFT passes over those that match nothing."""
    assert updates_of(base, [edit(copy, target_modules=[*TARGETS, "qkv_proj", "c_attn"], modules_to_save=["score"])])


def test_a_saved_module_that_was_not_saved_is_missed(base, copy):
    edit(copy, modules_to_save=["lm_head"])
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match="lm_head"):
            use()


def test_an_adapter_without_a_tensor_is_not_the_base_under_another_name(base, copy):
    without(copy, "")
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match="holds no tensor for"):
            use()


def trained_from(folder, before):
    identity, run = adapter_identity(before), None
    if (before / "trainer.json").exists():
        run = json.loads((before / "trainer.json").read_text())["run"]
    (folder / "trainer.json").write_text(json.dumps({"run": {"continues": {"identity": identity, "run": run}}}))


def test_an_adapter_is_added_once(base, copy, tmp_path):
    first, second, third, other = (
        make_adapter(base, tmp_path / name, seed=seed)
        for seed, name in enumerate(("first", "second", "third", "other"))
    )
    trained_from(second, first)
    trained_from(third, second)
    assert updates_of(base, [third, other]) and updates_of(base, [third])
    with pytest.raises(JobError, match=f"{first}: is given twice"):
        updates_of(base, [first, other, first])
    for before in (first, second):
        for order in ([before, third], [third, before]):
            with pytest.raises(JobError, match=f"{third}: was trained further from another of these"):
                updates_of(base, order)


def test_another_bases_name_is_told_where_nothing_else_tells(copy, tmp_path, caplog):
    base = make_model(tmp_path / "base", tie=False)
    mark = {"files": {}, "record": {"source": {"repo": "Someone/Small", "revision": "1"}}}
    (base / ".job.json").write_text(json.dumps(mark))
    for named, told in (("someone/small", False), (None, False), ("Someone/Large", True)):
        caplog.clear()
        updates_of(base, [edit(copy, base_model_name_or_path=named)])
        assert ("names Someone/Large as its base" in caplog.text) is told
    (copy / "trainer.json").write_text(json.dumps({adapters.BASE_KEY: adapters.weights_hash(base)}))
    caplog.clear()
    updates_of(base, [copy])
    assert not caplog.text, "its weights are known"


def test_tensors_without_a_place_and_layers_without_a_tensor_are_refused(base, copy):
    edit(copy, lambda name: name.replace("model.layers.1", "model.language_model.layers.1"))
    with pytest.raises(JobError, match="no place for"):
        attached(base, copy)
    with pytest.raises(JobError, match=r"no place for .*language_model"):
        adapters.check_modules(copy, base)
    held = load_file(copy / "adapter_model.safetensors")
    save_file({n: t for n, t in held.items() if "language" not in n}, copy / "adapter_model.safetensors")
    with pytest.raises(JobError, match="holds no tensor for"):
        attached(base, copy)


def test_nothing_but_safetensors_is_read(base, copy):
    held = load_file(copy / "adapter_model.safetensors")
    torch.save(held, copy / "adapter_model.bin")
    (copy / "adapter_model.safetensors").rename(copy / "other.safetensors")
    for use in (lambda: updates_of(base, [copy]), lambda: attached(base, copy)):
        with pytest.raises(JobError, match=r"no safetensors file adapter_model\.safetensors"):
            use()


def test_an_adapter_is_held_to_its_base(base, copy, tmp_path):
    (copy / "trainer.json").write_text(json.dumps({adapters.BASE_KEY: adapters.weights_hash(base)}))
    assert updates_of(base, [copy])
    other = make_model(tmp_path / "other", seed=1, tie=False)
    for use in (lambda: updates_of(other, [copy]), lambda: attached(other, copy)):
        with pytest.raises(JobError, match="trained on other weights"):
            use()


def config_changed(base, **keys):
    return with_keys(base / "config.json", keys)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, r"rope_parameters .*500000\.0"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-06, not 1e-05"),
        ({"num_attention_heads": 8, "head_dim": 32, "num_key_value_heads": 4}, "head_dim 64, not 32; num_attention"),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "sliding_window None, not 16"),
    ],
)
def test_an_adapter_is_held_to_how_its_base_is_computed(base, copy, tmp_path, keys, says):
    record = {adapters.BASE_KEY: adapters.weights_hash(base), adapters.CONFIG_KEY: adapters.computation(base)}
    (copy / "trainer.json").write_text(json.dumps(record))
    other = config_changed(shutil.copytree(base, tmp_path / "other"), **keys)
    assert adapters.weights_hash(other) == record[adapters.BASE_KEY]
    with pytest.raises(JobError, match=f"with another config.json: .*{says}.*base_config in trainer.json"):
        updates_of(other, [copy])
    (copy / "trainer.json").write_text(json.dumps({adapters.BASE_KEY: record[adapters.BASE_KEY]}))
    assert updates_of(other, [copy]), "a record from before has no such key"


def test_what_does_not_bear_on_the_computation_makes_no_other_base(base, copy, tmp_path):
    known = adapters.computation(base)
    assert {"rope_parameters", "rms_norm_eps", "head_dim", "hidden_act"} <= known.keys()
    record = {adapters.BASE_KEY: adapters.weights_hash(base), adapters.CONFIG_KEY: known | {"of_another_version": 1}}
    (copy / "trainer.json").write_text(json.dumps(record))
    idle = {
        "transformers_version": "4.1", "torch_dtype": "float16", "dtype": "float16", "_name_or_path": "a/b",
        "attention_dropout": 0.5, "use_cache": False, "eos_token_id": [0, 3], "max_position_embeddings": 4096,
        "unsloth_fixed": True, "architectures": None, "initializer_range": 0.5,
    }  # fmt: skip
    assert updates_of(config_changed(shutil.copytree(base, tmp_path / "other"), **idle), [copy])


def test_how_many_positions_a_base_has_bears_on_those_that_are_scaled(base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    known = [
        adapters.computation(config_changed(other, rope_parameters=rope, max_position_embeddings=number))
        for number in (1024, 2048)
    ]
    assert known[0] != known[1]


def test_a_base_is_known_again_whatever_its_files(tmp_path):
    one = make_model(tmp_path / "one", dtype="bfloat16")
    first = adapters.weights_hash(one)
    shards = make_model(tmp_path / "shards", dtype="bfloat16", shard="1MB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert adapters.weights_hash(shards) == first
    held = load_file(one / "model.safetensors")
    save_file({name: t.float() for name, t in held.items()}, one / "model.safetensors")
    assert adapters.weights_hash(one) == first
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, one / "model.safetensors")
    assert adapters.weights_hash(one) == first
    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        save_file(held | {name: held[name] * 1.01}, one / "model.safetensors")
        assert adapters.weights_hash(one) != first, name
