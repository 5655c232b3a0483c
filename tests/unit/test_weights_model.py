"""Model folders that transformers would load as another model than their files hold: each is refused, and by all alike."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.common.errors import JobError
from jobs.inference import hf
from jobs.plumbing.params import Lora
from jobs.training import loop
from jobs.weights.adapter import weights_hash
from jobs.weights.lora import updates_of
from jobs.weights.model import require_whole
from jobs.weights.safetensors import shards
from tests.toy import make_adapter, make_model

LORA = Lora(rank=4, alpha=4, targets=["q_proj"])
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def kept(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base") / "base", tie=request.param)


@pytest.fixture
def model(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "model")


def edit(folder, add=(), drop=(), **config):
    weights = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if name not in drop}
    save_file(weights | dict(add), folder / WEIGHTS, metadata={"format": "pt"})
    held = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(held))
    return folder


def refused_by_all(folder, says):
    """By whatever loads a model: sampling, training, and the check that Unsloth and vLLM go through."""
    for load in (hf.load, lambda path: loop.load_model(path, LORA, None, 1), require_whole):
        with pytest.raises(JobError, match=says) as caught:
            load(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_a_tensor_that_is_not_there_is_no_random_one(model, name):
    refused_by_all(edit(model, drop=[name]), f"lacks .*{name.replace('.', '[.]')}")


def test_a_layer_that_the_config_counts_and_the_files_lack_is_missed(model):
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    refused_by_all(edit(model, num_hidden_layers=layers + 1, layer_types=None), r"lacks .*layers\.2\..* and \d+ more")


def test_a_tensor_without_a_place_is_not_left_out(model):
    bias = {"model.layers.0.self_attn.k_proj.bias": torch.ones(8)}
    refused_by_all(edit(model, add=bias), "k_proj.bias, for which the model that its config describes has no place")


def test_layers_that_a_shorter_config_leaves_out_are_missed(model):
    refused_by_all(edit(model, num_hidden_layers=1, layer_types=None), r"holds model\.layers\.1\.")


def test_a_tensor_of_another_shape_is_refused(model):
    name = "model.layers.0.mlp.up_proj.weight"
    odd = {name: load_file(model / WEIGHTS)[name][:-1]}
    refused_by_all(edit(model, add=odd), "cannot be loaded as a model")


def test_what_predicts_further_tokens_is_nobodys(model):
    require_whole(edit(model, add={"mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}))


def test_a_quantized_model_is_left_to_the_engines_that_know_it(model):
    packed = {"model.layers.0.self_attn.q_proj.qweight": torch.ones(2, 2, dtype=torch.int32)}
    edit(model, add=packed, drop=["model.layers.0.self_attn.q_proj.weight"])
    with pytest.raises(JobError, match="lacks"):
        require_whole(model)
    require_whole(edit(model, quantization_config={"quant_method": "awq"}))


def test_an_adapter_beside_the_model_is_not_loaded_with_it(model, tmp_path):
    adapter = make_adapter(model, tmp_path / "adapter")
    expected = weights_hash(model)
    for file in adapter.iterdir():
        shutil.copy(file, model)
    refused_by_all(model, "holds an adapter beside the model")
    with pytest.raises(JobError, match="holds an adapter beside the model"):
        updates_of(model, [adapter])
    (model / "adapter_config.json").unlink()
    assert weights_hash(model) == expected and shards(model) == [model / WEIGHTS]


def test_two_ends_that_differ_are_not_one(tmp_path):
    model = make_model(tmp_path / "model", tie=True)
    adapter = make_adapter(model, tmp_path / "adapter")
    same = {"lm_head.weight": load_file(model / WEIGHTS)["model.embed_tokens.weight"]}
    expected = weights_hash(model)
    edit(model, add=same)
    require_whole(model)
    assert updates_of(model, [adapter]) and weights_hash(model) == expected
    edit(model, add={"lm_head.weight": same["lm_head.weight"].flip(0)})
    refused_by_all(
        model, r"config\.json: says that model\.embed_tokens\.weight is the head too.* another lm_head\.weight"
    )
    with pytest.raises(JobError, match="is the head too"):
        updates_of(model, [adapter])
    require_whole(edit(model, tie_word_embeddings=False))


def test_a_family_that_goes_on_with_no_text_is_named_in_a_line(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(tmp_path)
    refused_by_all(tmp_path, "is a t5, of which transformers has no model that goes on with a text$")


def test_an_untied_model_without_a_head_has_no_random_one(tmp_path):
    refused_by_all(edit(make_model(tmp_path / "model", tie=True), tie_word_embeddings=False), r"lacks lm_head\.weight")
