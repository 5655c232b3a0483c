"""What a GGUF file says of a model's computation and transformers, which reads such files, leaves out.

transformers takes the sizes and goes on with the family's defaults for the rest: Llama 3's positions would not be scaled,
and Gemma 2's caps and StarCoder 2's frequencies would be those of another model, without a word. Here each of a family's
keys is one that transformers reads, is obeyed, or does not bear on the numbers; any other is refused by its name.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError
from jobs.weights.families import WINDOW_ALWAYS
from jobs.weights.unlike import gemma_scale

if TYPE_CHECKING:
    import numpy as np

# Keys of a family that are attributes of transformers' configuration by another name, or by the same.
ATTRIBUTES = {
    "attention.key_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# Sizes, which the tensors' shapes tell as well, and what says how the file was made.
IDLE = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "context_length",
    "feed_forward_length",
    "rope.scaling.finetuned",
    "ssm.dt_b_c_rms",
    "tensor_data_layout",
    "use_parallel_residual",
    "vocab_size",
}
LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of every Llama since 3.1
FREQUENCIES = "rope_freqs.weight"


def obey(config: Any, facts: dict, tensors: dict[str, "np.ndarray"], path: Path) -> None:
    """Makes `config`, as transformers reads it from the file, say what the file says.

    facts: the file's metadata. tensors: its tensors that are no weights, by name.
    Errors: JobError naming a key or a tensor that is neither read nor obeyed.
    """
    from transformers.integrations import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    family = facts["general.architecture"]
    if family in GGUF_CONFIG_ARCHS:  # read whole
        return
    said = {key.removeprefix(f"{family}."): value for key, value in facts.items() if key.startswith(f"{family}.")}
    mapping: Any = GGUF_CONFIG_MAPPING
    read = mapping.get(config.model_type.removesuffix("_text")) or mapping.get(family) or {}
    left = {key: value for key, value in said.items() if not read.get(key)}
    for key, name in ATTRIBUTES.items():
        if key in left:
            setattr(config, name, left.pop(key))
    window = left.pop("attention.sliding_window", 0)
    if window and config.model_type not in WINDOW_ALWAYS:  # in which llama.cpp sees all
        config.sliding_window = window
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = gemma_scale(config)
    set_positions(config, left, path)
    if FREQUENCIES in tensors:
        scale_as_llama_3(config, tensors[FREQUENCIES], path)
    if odd := sorted({f"{family}.{key}" for key in left.keys() - IDLE} | tensors.keys() - {FREQUENCIES}):
        raise JobError(f"{path}: says {', '.join(odd)}, which is not read here; take the model from its folder")


def set_positions(config: Any, left: dict, path: Path) -> None:
    """Rotary positions, by those keys in `left` that tell of them, which are taken out of it."""
    rope: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    whole: dict[str, Any] = rope.get("full_attention", rope)  # a family whose layers differ has one for each kind
    if base := left.pop("rope.freq_base", None):
        whole["rope_theta"] = base
    if base := left.pop("rope.freq_base_swa", None):
        rope.get("sliding_attention", rope)["rope_theta"] = base
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = left.pop("rope.dimension_count", None)
    if turned and turned != int(head * whole.get("partial_rotary_factor", 1.0)):
        if "partial_rotary_factor" not in whole:
            raise JobError(f"{path}: turns {turned} of a head's {head} numbers, and a {config.model_type} turns all")
        whole["partial_rotary_factor"] = turned / head
    kind, before = left.pop("rope.scaling.type", "none"), left.pop("rope.scaling.original_context_length", None)
    if kind in ("linear", "yarn"):
        whole |= {"rope_type": kind, "factor": left.pop("rope.scaling.factor")}
        if kind == "yarn" and before:
            whole["original_max_position_embeddings"] = before
    elif kind != "none":
        raise JobError(
            f"{path}: scales its positions by {kind}, which is not read here; take the model from its folder"
        )


def scale_as_llama_3(config: Any, divisors: "np.ndarray", path: Path) -> None:
    """Sets the scaling of positions from the file's divisors of their frequencies, one of each pair of a head's numbers.

    The file does not say by which parameters they were computed. Those of Llama 3's rule are found by trial.
    """
    import numpy as np
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain, found = config.rope_parameters, np.asarray(divisors, np.float64).reshape(-1)
    theta, pairs = plain["rope_theta"], len(found)
    frequencies = theta ** (-np.arange(pairs) / pairs)
    for power in range(7, 21):
        tried = {"factor": float(found.max()), "original_max_position_embeddings": 2**power}
        config.rope_parameters = plain | LLAMA_3 | tried
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        if len(scaled) == pairs and np.allclose(frequencies / scaled.double().numpy(), found, rtol=1e-4):
            return
    raise JobError(
        f"{path}: {FREQUENCIES} scales positions by no rule that is known here; take the model from its folder"
    )
