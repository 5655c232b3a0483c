"""What a family's configuration can say, and llama.cpp does not compute: found by tiny models of each, and told by `base`.

The rules are of the pinned llama.cpp (src/models of its sources, and the converter's classes).
"""

from collections.abc import Callable
from typing import Any

Rule = tuple[
    set[str], Callable[[Any], bool], str
]  # families, whether the configuration is such, and what is said of it

GEMMA_27B = (46, 62)  # layers of Gemma 2's and 3's, by which llama.cpp knows how they scale their attention
GELU = {"gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_accurate"}
SILU = {"silu", "swish"}
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
LITE = (26, 27)  # layers of the DeepSeeks whose queries llama.cpp takes without a rank


def one_head_a_key(config: Any) -> bool:
    return config.num_key_value_heads == config.num_attention_heads


def gemma_scale(config: Any) -> int:
    """The query_pre_attn_scalar that llama.cpp has for a Gemma 2 or 3 of this size, since no GGUF file says it."""
    whole = config.num_hidden_layers == GEMMA_27B[config.model_type != "gemma2"]
    return config.hidden_size // config.num_attention_heads if whole else config.head_dim


def dense_layers(config: Any) -> bool:
    return bool(config.mlp_only_layers) or config.decoder_sparse_step != 1


RULES: tuple[Rule, ...] = (
    (
        {
            *(
                "arcee",
                "cohere",
                "cohere2",
                "deepseek_v2",
                "deepseek_v3",
                "gemma",
                "gemma2",
                "gemma3_text",
                "hunyuan_v1_dense",
            ),
            *("olmo", "olmo2", "olmo3", "olmoe", "qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "smollm3"),
        },
        lambda config: config.attention_bias,
        "adds a bias to its attention's output (attention_bias), for which llama.cpp's {kind} has no place",
    ),
    (
        {"qwen2_moe", "qwen3_moe"},
        dense_layers,
        "has layers without experts (mlp_only_layers, decoder_sparse_step), where llama.cpp's {kind} has none",
    ),
    (
        {"qwen3_moe", "qwen3_next"},
        lambda config: not config.norm_topk_prob,
        "does not normalize its experts' weights (norm_topk_prob), as llama.cpp's {kind} always does",
    ),
    (
        {"olmoe", "qwen2_moe"},
        lambda config: config.norm_topk_prob,
        "normalizes its experts' weights (norm_topk_prob), as llama.cpp's {kind} never does",
    ),
    (
        {"gemma2"},
        lambda config: config.attn_logit_softcapping is None or config.final_logit_softcapping is None,
        "does not cap its logits (attn_logit_softcapping, final_logit_softcapping), as llama.cpp's {kind} always does",
    ),
    (
        {"gemma2", "gemma3_text"},
        lambda config: config.query_pre_attn_scalar != gemma_scale(config),
        "scales its attention by query_pre_attn_scalar, where llama.cpp's {kind} goes by the size of a head",
    ),
    (
        {"gemma3_text"},
        lambda config: config.attn_logit_softcapping or config.use_bidirectional_attention,
        "caps its attention or looks ahead (attn_logit_softcapping, use_bidirectional_attention), as llama.cpp's {kind} "
        "does not",
    ),
    (
        {"olmoe"},
        lambda config: config.clip_qkv,
        "clips queries, keys and values (clip_qkv), as llama.cpp's {kind} does not",
    ),
    (
        {"gpt_bigcode"},
        lambda config: not config.multi_query,
        "has keys for every head (multi_query), where llama.cpp's converter writes a {kind} with one",
    ),
    (
        {"cohere"},
        lambda config: config.use_qk_norm and config.num_hidden_layers < 64,
        "norms queries and keys (use_qk_norm), which llama.cpp's {kind} does from 64 layers on",
    ),
    (
        {"phi", "stablelm"},
        lambda config: config.qk_layernorm,
        "norms queries and keys (qk_layernorm), which llama.cpp's converter does not take of a {kind}",
    ),
    (
        {"dots1", "olmoe", "phi"},
        lambda config: not one_head_a_key(config),
        "shares keys among heads (num_key_value_heads), as llama.cpp's {kind} does not",
    ),
    (
        {"gpt_neox"},
        lambda config: not config.attention_bias,
        "has no biases in its attention (attention_bias), without which llama.cpp's {kind} does not load",
    ),
    (
        {"starcoder2"},
        lambda config: not config.use_bias,
        "has no biases (use_bias), without which llama.cpp's {kind} does not load",
    ),
    (
        {"bloom"},
        lambda config: config.apply_residual_connection_post_layernorm,
        "adds to what it has normed (apply_residual_connection_post_layernorm), where llama.cpp's {kind} adds before",
    ),
    (
        {"falcon"},
        lambda config: config.alibi or not (config.parallel_attn or config.new_decoder_architecture),
        "has another layout (alibi, parallel_attn) than llama.cpp's {kind}, whose positions are rotary and layers parallel",
    ),
    (
        {"deepseek_v2", "deepseek_v3"},
        lambda config: not config.q_lora_rank and config.num_hidden_layers not in LITE,
        "has queries without a rank (q_lora_rank), which llama.cpp's {kind} takes of 26 or 27 layers alone",
    ),
    (
        {"exaone4"},
        lambda config: config.sliding_window and config.num_hidden_layers != 64,
        "has a window (sliding_window), which llama.cpp's {kind} has of 64 layers alone",
    ),
    (
        {"smollm3"},
        lambda config: list(config.no_rope_layers) != [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)],
        "leaves other layers without positions (no_rope_layers) than every fourth, as llama.cpp's {kind} does",
    ),
    (
        {"gpt_oss"},
        lambda config: config.rope_parameters.get("rope_type") == "yarn",
        "scales its rotary positions by YaRN, where llama.cpp's {kind} computes other ones",
    ),
)


def unlike_llama_cpp(config: Any) -> str | None:
    """Why llama.cpp does not compute what transformers does by the configuration of a text model; None if it does, as far
    as is known."""
    kind = config.model_type
    for kinds, applies, says in RULES:
        if kind in kinds and applies(config):
            return says.format(kind=kind)
    return other_activation(config)


def other_activation(config: Any) -> str | None:
    """llama.cpp computes a family with one activation, which is that of the family's own default."""
    for key in ACTIVATIONS:
        usual, ours = getattr(type(config)(), key, None), getattr(config, key, None)
        same = ours == usual or any({ours, usual} <= alike for alike in (GELU, SILU))
        if isinstance(ours, str) and isinstance(usual, str) and not same:
            return f"is activated by {ours} ({key}), where llama.cpp's {config.model_type} is by {usual}"
    return None
