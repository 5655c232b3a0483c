"""Which of transformers' attentions a model can be computed with."""

import logging
from pathlib import Path
from typing import Any

from jobs.weights.safetensors import config_of

log = logging.getLogger("jobs")


def attention_for(folder: Path, usual: str | None) -> str | None:
    """`usual`, or "eager" for a model whose attention SDPA does not compute.

    Capped logits (Gemma 2's attn_logit_softcapping) it leaves out without a word: it would be another model than vLLM's,
    llama.cpp's, and the one that was pre-trained. Where config.json does not name the cap, its family's default holds. For
    attention sinks (gpt-oss) SDPA has no place, and such families say that they do not support it.
    Errors: JobError for a config.json that is no model's.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config_of(folder)
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if any(getattr(part, "attn_logit_softcapping", None) for part in (config, config.get_text_config())):
        log.info("%s: caps its attention logits, so eager attention computes it, which takes more memory", folder)
        return "eager"
    if usual is not None and not getattr(family, "_supports_sdpa", True):
        return "eager"
    return usual
