"""What later stages refuse, told by config.json alone: before anything is trained."""

import ast
import json
import re
from pathlib import Path

import pytest

from jobs.common.errors import JobError
from jobs.plumbing.params import load
from jobs.weights import converted, families
from jobs.weights.attention import attention_for

LLAMA = {"model_type": "llama", "tie_word_embeddings": False, "max_position_embeddings": 8192}
MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 8, "norm_topk_prob": True}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def folder(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        MOE,
        LLAMA | {"model_type": "mistral", "sliding_window": None},
        LLAMA | {"model_type": "mistral", "sliding_window": 8192},
        LLAMA | {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        LLAMA | {"model_type": "gemma2", "sliding_window": 4096, "tie_word_embeddings": True},
        LLAMA | {"model_type": "gpt_oss", "rope_parameters": {"rope_type": "default"}},
    ],
    ids=lambda config: f"{config['model_type']}",
)
def test_what_every_stage_takes_is_not_refused(tmp_path, config):
    assert families.refusals(folder(tmp_path, **config), ATTENTION) == {}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LLAMA | {"model_type": "mistral", "sliding_window": 4096}, "sees 4096 tokens back"),
        (LLAMA | {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True}, "sees 512 tokens back"),
        ({**LLAMA, "model_type": "mistral", "max_position_embeddings": 32768}, "sees 4096 tokens back"),
        (LLAMA | {"model_type": "phi3", "sliding_window": 2047}, "sees 2047 tokens back"),
        (LLAMA | {"model_type": "starcoder2", "sliding_window": 4096}, "sees 4096 tokens back"),
        (MOE | {"norm_topk_prob": False}, "norm_topk_prob"),
        ({key: value for key, value in MOE.items() if key != "norm_topk_prob"}, "norm_topk_prob"),
        (LLAMA | {"model_type": "gpt_oss", "rope_scaling": {"rope_type": "yarn", "factor": 32.0}}, "YaRN"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_by_gguf_alone(tmp_path, config, says):
    base = folder(tmp_path, **config)
    found = families.refusals(base, ATTENTION)
    assert list(found) == ["gguf"]
    assert says in found["gguf"]
    with pytest.raises(JobError, match=says):
        families.require_taken("gguf", base)
    families.require_taken("sft", base, ATTENTION)


NO_CAP = "does not cap its logits"
NORMED = "norms queries and keys"


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        ("qwen3", {"attention_bias": True}, "adds a bias to its attention's output"),
        ("gemma2", {"attention_bias": True}, "adds a bias to its attention's output"),
        ("olmo2", {"attention_bias": True}, "adds a bias to its attention's output"),
        ("gemma2", {"attn_logit_softcapping": None}, NO_CAP),
        ("gemma2", {"final_logit_softcapping": None}, NO_CAP),
        ("gemma2", {"query_pre_attn_scalar": 144}, "scales its attention by query_pre_attn_scalar"),
        (
            "gemma3_text",
            {"num_hidden_layers": 62, "head_dim": 128, "query_pre_attn_scalar": 128},
            "scales its attention",
        ),
        ("qwen2_moe", {"norm_topk_prob": True}, "normalizes its experts' weights"),
        ("qwen2_moe", {"mlp_only_layers": [3]}, "has layers without experts"),
        ("qwen3_moe", {"norm_topk_prob": True, "decoder_sparse_step": 2}, "has layers without experts"),
        ("cohere", {"use_qk_norm": True}, NORMED),
        ("stablelm", {"qk_layernorm": True}, NORMED),
        ("phi", {"qk_layernorm": True}, NORMED),
        ("olmoe", {"num_key_value_heads": 4}, "shares keys among heads"),
        ("gpt_neox", {"attention_bias": False}, "has no biases in its attention"),
        ("starcoder2", {"use_bias": False, "sliding_window": None}, "has no biases"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "adds to what it has normed"),
        ("falcon", {"alibi": True}, "has another layout"),
        ("falcon", {"parallel_attn": False}, "has another layout"),
        ("deepseek_v3", {"q_lora_rank": None}, "has queries without a rank"),
        ("exaone4", {"sliding_window": 4096}, "has a window"),
        ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [0, 1, 1, 1]}, "leaves other layers without positions"),
        ("llama", {"hidden_act": "gelu"}, "is activated by gelu .hidden_act., where llama.cpp's llama is by silu"),
        ("smollm3", {"attention_bias": True}, "adds a bias to its attention's output"),
        ("olmoe", {"norm_topk_prob": True}, "normalizes its experts' weights"),
        ("olmoe", {"clip_qkv": 8.0}, "clips queries"),
        ("qwen3_next", {"norm_topk_prob": False}, "does not normalize its experts' weights"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "caps its attention or looks ahead"),
    ],
)
def test_what_a_familys_configuration_can_say_and_llama_cpp_does_not_compute_is_told(tmp_path, kind, config, says):
    found = families.refusals(folder(tmp_path, model_type=kind, tie_word_embeddings=False, **config))
    assert list(found) == ["gguf"]
    assert re.match(says, found["gguf"])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"hidden_act": "swish"}),
        ("gemma", {"hidden_activation": "gelu"}),
        (
            "gemma2",
            {"num_hidden_layers": 46, "hidden_size": 4608, "num_attention_heads": 32, "query_pre_attn_scalar": 144},
        ),
        ("gemma3_text", {}),
        ("cohere", {"use_qk_norm": True, "num_hidden_layers": 64}),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}),
        ("falcon", {"multi_query": True}),
        ("deepseek_v3", {"q_lora_rank": None, "num_hidden_layers": 27}),
        ("deepseek_v2", {"q_lora_rank": 1536}),
        ("exaone4", {"sliding_window": 4096, "num_hidden_layers": 64}),
        ("smollm3", {}),
        ("phi", {}),
        ("olmoe", {}),
        ("bloom", {}),
        ("stablelm", {}),
        ("gpt_neox", {}),
        ("a_family_of_tomorrow", {"attention_bias": True}),
    ],
)
def test_what_llama_cpp_computes_alike_is_not_refused(tmp_path, kind, config):
    assert families.refusals(folder(tmp_path, model_type=kind, tie_word_embeddings=False, **config)) == {}


def test_what_the_converter_does_not_know_is_told_before_anything_is_trained(tmp_path):
    base = folder(tmp_path, **LLAMA, architectures=["CodeGenForCausalLM"])
    assert families.refusals(base) == {
        "gguf": "is a CodeGenForCausalLM, which llama.cpp's converter does not know",
    }
    for text in ({}, {"text_config": {"architectures": ["LlamaForCausalLM"]}}):
        assert families.refusals(folder(tmp_path, architectures=["LlamaForCausalLM"], **LLAMA | text)) == {}


def test_the_architectures_are_those_of_the_pinned_converter():
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    file = Path(llama_cpp.__file__).parent / "converter/conversion/__init__.py"
    known = next(
        ast.literal_eval(node.value)
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP"
    )
    assert {name for name in known if name.endswith(converted.ENDINGS) and "." not in name} == converted.ARCHITECTURES


@pytest.mark.parametrize(
    ("config", "targets", "says"),
    [
        ({"model_type": "gpt2"}, ["c_attn"], "Conv1D"),
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, ATTENTION, "does not write text"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ["query"], "does not write text"),
        ({"model_type": "gemma3", "text_config": LLAMA, "vision_config": {}}, ATTENTION, "text and images"),
        (MOE, [*ATTENTION, "up_proj"], "must leave out up_proj"),
        (MOE, ["q_proj", "gate"], "must leave out gate"),
        (LLAMA | {"model_type": "mixtral", "num_local_experts": 4}, ["q_proj", "w1", "w3"], "must leave out w1, w3"),
        (LLAMA | {"tie_word_embeddings": True}, ["q_proj", "lm_head"], "an adapter on lm_head"),
        (LLAMA | {"tie_word_embeddings": True}, ["embed_tokens"], "an adapter on embed_tokens"),
        ({"model_type": "mamba", "tie_word_embeddings": True}, ["embeddings"], "an adapter on embeddings"),
        (LLAMA | {"quantization_config": {"quant_method": "mxfp4"}}, ATTENTION, "is quantized"),
    ],
)
def test_what_merge_cannot_sum_is_refused_before_training(tmp_path, config, targets, says):
    base = folder(tmp_path, **config)
    for stage in ("sft", "grpo", "merge"):
        with pytest.raises(JobError, match=says) as caught:
            families.require_taken(stage, base, targets)
        assert "\n" not in str(caught.value)


def test_targets_of_an_untied_model_and_of_dense_layers_are_free(tmp_path):
    base = folder(tmp_path, **LLAMA)
    assert families.refusals(base, ["embed_tokens", "lm_head", "up_proj"]) == {}
    assert families.refusals(folder(tmp_path, **MOE)) == {}, "targets alone do not refuse a model"


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (LLAMA, "sdpa"),
        (LLAMA | {"attn_logit_softcapping": None}, "sdpa"),
        (LLAMA | {"attn_logit_softcapping": 50.0}, "eager"),
        ({"model_type": "gemma3", "text_config": {"attn_logit_softcapping": 50.0}}, "eager"),
        ({"model_type": "gemma2"}, "eager"),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, "sdpa"),
        ({"model_type": "granite_swa"}, "eager"),
        ({"model_type": "bloom"}, "eager"),
        (LLAMA | {"model_type": "gpt_oss"}, "eager"),
    ],
)
def test_what_sdpa_does_not_compute_is_computed_eagerly(tmp_path, config, attention):
    assert attention_for(folder(tmp_path, **config), "sdpa") == attention


@pytest.mark.parametrize(
    "config", [{"model_type": "gemma2"}, {"model_type": "other", "text_config": {"model_type": "gemma3_text"}}]
)
def test_what_float16_cannot_hold_is_refused_by_the_key_that_wants_it(tmp_path, config):
    base = folder(tmp_path, **config)
    with pytest.raises(JobError, match=r"^grpo.rollout: vllm_merged: .* is a gemma.*set vllm$"):
        families.require_float16(base, "grpo.rollout: vllm_merged")


def test_what_float16_can_hold_is_taken(tmp_path):
    families.require_float16(folder(tmp_path, model_type="qwen3", text_config={}), "grpo.rollout")


PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.mark.parametrize(
    ("config", "settings", "found"),
    [
        ({"max_position_embeddings": 1025}, [], {}),
        ({"max_position_embeddings": 1024}, [], {"sample": "1024 positions, fewer than the 1025 of a prompt and evaluate"}),
        ({"max_position_embeddings": 1024}, ["evaluate.max_tokens=1023", "grpo.max_prompt_length=513"],
         {"grpo": "1024 positions, fewer than the 1025 of grpo.max_prompt_length"}),
        ({"model_type": "gemma2"}, [], {"grpo": "gemma2, .*float16 .grpo.rollout.; set vllm$",
                                        "sample": "gemma2, .*float16 .evaluate.dtype.; set bfloat16$"}),
        ({"model_type": "gemma2"}, ["grpo.rollout=vllm", "evaluate.dtype=bfloat16"], {}),
        ({"model_type": "bloom"}, ["evaluate.max_tokens=4096"], {}),
    ],
)  # fmt: skip
def test_params_of_later_stages_that_do_not_fit_the_model_are_known_at_once(tmp_path, config, settings, found):
    told = families.unfit(folder(tmp_path, **LLAMA | config), load(PARAMS, settings))
    assert told.keys() == found.keys()
    for stage, says in found.items():
        assert re.search(says, told[stage])


def test_a_text_longer_than_the_model_was_made_for_is_refused(tmp_path):
    base = folder(tmp_path, **LLAMA)
    families.require_room(base, "row 3", 8192)
    with pytest.raises(JobError, match="has 8192 positions, fewer than the 8193 of row 3"):
        families.require_room(base, "row 3", 8193)
