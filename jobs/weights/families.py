"""What a later stage refuses a model for, as far as its configuration tells: said by `base`, before anything is trained.

What a configuration does not tell is found by the stages themselves, `gguf` comparing its files with the model.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError
from jobs.common.files import read_json
from jobs.weights.converted import ARCHITECTURES, ENDINGS
from jobs.weights.safetensors import config_of, is_tied
from jobs.weights.unlike import unlike_llama_cpp

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
WINDOW_ALWAYS = {"mistral", "mixtral", "phi3", "starcoder2"}  # wherever sliding_window is a number
WINDOW_IF_USED = {"qwen2", "qwen3", "qwen2_moe", "qwen3_moe"}  # where use_sliding_window is true too
NO_FLOAT16 = {"gemma2", "gemma3", "gemma3_text", "glm4", "plamo2"}  # whose activations leave it: vLLM refuses them
OF_GRPO = "grpo.max_prompt_length and grpo.max_completion_length"
FLOAT16_ROLLOUTS = ("vllm_merged", "vllm_merged_fp8")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# PEFT lays an adapter over the experts and their router where one of these is named, whatever else is called so.
EXPERT_TARGETS = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "gate", "experts"}
ENDS = {"embed_tokens", "lm_head", "wte", "embed_in", "word_embeddings", "embeddings", "embed_out"}
TRAINING = ("sft", "grpo", "merge")


def refusals(base: Path, targets: Iterable[str] = ()) -> dict[str, str]:
    """By stage, why it refuses the model in `base`; with `targets`, why an adapter on these modules is refused.

    Errors: JobError for a config.json that cannot be read.
    """
    config = read_json(base / "config.json")
    text = config.get("text_config") or config
    found: dict[str, str] = {}
    if reason := untrainable(config, text) or bad_targets(base, text, set(targets)):
        found |= dict.fromkeys(TRAINING, reason)
    if reason := unknown_to_llama_cpp(config, text) or computed_otherwise(text):
        found["gguf"] = reason
    if config.get("quantization_config"):
        found |= dict.fromkeys((*TRAINING, "gguf"), "is quantized; adapters are only added to the original weights")
    return found


def untrainable(config: dict, text: dict) -> str | None:
    kind = config.get("model_type")
    named = config.get("architectures") or []
    if named and not any(name.endswith(ENDINGS) for name in named):
        return f"is a {', '.join(named)}, which does not write text"
    if kind in CONV1D:
        return f"is a {kind}, whose layers are stored transposed (Conv1D); adapters of these are not summed"
    if "text_config" in config and ("vision_config" in config or "audio_config" in config):
        return (
            f"is a {kind} of text and images, whose modules have other names in its files than in memory; "
            f"save its text part as a model of its own ({text.get('model_type')})"
        )
    return None


def bad_targets(base: Path, text: dict, targets: set[str]) -> str | None:
    experts = sorted(on_experts(text, targets))
    if experts:
        return (
            f"has experts, and adapters on theirs are not summed: sft.lora.targets must leave out {', '.join(experts)}"
        )
    ends = sorted(targets & ENDS)
    if ends and is_tied(base):
        return (
            f"shares its embedding with its head (tie_word_embeddings): an adapter on {', '.join(ends)} would change one "
            "of the two; leave it out of sft.lora.targets"
        )
    return None


def on_experts(text: dict, targets: set[str]) -> set[str]:
    """Those of the targets that are on a model's experts, by the configuration of its text part."""
    return targets & EXPERT_TARGETS if any(text.get(key) for key in EXPERTS) else set()


def unknown_to_llama_cpp(config: dict, text: dict) -> str | None:
    named = {name for part in (config, text) for name in part.get("architectures") or []}
    if named and not named & ARCHITECTURES:
        return f"is a {', '.join(sorted(named))}, which llama.cpp's converter does not know"
    return None


def computed_otherwise(text: dict) -> str | None:
    """Why llama.cpp does not compute the model as transformers does, by its configuration with its family's defaults."""
    from transformers import AutoConfig

    kind = text.get("model_type")
    try:
        config: Any = AutoConfig.for_model(**text)
    except Exception:  # values of a wrong type surface as one of many types; `base` tells of them by the weights
        return None
    window = config.to_dict().get("sliding_window")
    used = kind in WINDOW_ALWAYS or (kind in WINDOW_IF_USED and config.use_sliding_window)
    if used and window and window < config.max_position_embeddings:
        return f"sees {window} tokens back (sliding_window), where llama.cpp's {kind} sees all"
    return unlike_llama_cpp(config)


def unfit(base: Path, params: "Params") -> dict[str, str]:
    """By stage, why the params that it will run with do not fit the model in `base`. Errors: JobError as `config_of`."""
    found: dict[str, str] = {}
    room, longest = positions(base), params.grpo.max_prompt_length + params.grpo.max_completion_length
    if reason := beyond(room, OF_GRPO, longest):
        found["grpo"] = reason
    if reason := beyond(room, "a prompt and evaluate.max_tokens", params.evaluate.max_tokens + 1):
        found["sample"] = reason
    if kind := without_float16(base):
        if params.grpo.rollout in FLOAT16_ROLLOUTS:
            found["grpo"] = f"is a {kind}, whose activations do not fit in float16 (grpo.rollout); set vllm"
        if (params.evaluate.engine, params.evaluate.dtype) == ("vllm", "float16"):
            found["sample"] = f"is a {kind}, whose activations do not fit in float16 (evaluate.dtype); set bfloat16"
    return found


def positions(base: Path) -> int | None:
    """How many tokens the model was made for; None where it names no end of them, as Bloom and Mamba."""
    return getattr(config_of(base).get_text_config(), "max_position_embeddings", None)


def beyond(room: int | None, what: str, tokens: int) -> str | None:
    """Why a text of `tokens` tokens is too long for a model, if it is; what: names it."""
    return f"has {room} positions, fewer than the {tokens} of {what}" if room and tokens > room else None


def require_room(base: Path, what: str, tokens: int) -> None:
    """Errors: JobError for a text of `tokens` tokens, named by `what`, that is longer than the model was made for."""
    if reason := beyond(positions(base), what, tokens):
        raise JobError(f"{base}: {reason}")


def without_float16(base: Path) -> str | None:
    config = read_json(base / "config.json")
    kinds = {part.get("model_type") for part in (config, config.get("text_config") or {})}
    return min(NO_FLOAT16 & kinds, default=None)


def require_float16(base: Path, key: str) -> None:
    """Errors: JobError for a model that vLLM does not run in float16, as the value `key` of the params would have it."""
    if kind := without_float16(base):
        raise JobError(f"{key}: {base} is a {kind}, whose activations do not fit in float16; set vllm")


def require_taken(stage: str, base: Path, targets: Iterable[str] = ()) -> None:
    """Errors: JobError if `stage` refuses the model."""
    if reason := refusals(base, targets).get(stage):
        raise JobError(f"{base}: {reason}")
