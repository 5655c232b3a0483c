"""Which of transformers' attentions a model can be computed with."""

import logging
from pathlib import Path

from jobs.common.files import read_json

SINKS = {"gpt_oss"}
log = logging.getLogger("jobs")


def attention_for(folder: Path, usual: str | None) -> str | None:
    """`usual`, or "eager" for a model whose attention SDPA does not compute.

    Capped logits (Gemma 2's attn_logit_softcapping) it leaves out without a word: it would be another model than vLLM's,
    llama.cpp's, and the one that was pre-trained. For attention sinks (gpt-oss) it has no place.
    """
    config = read_json(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any(part.get("model_type") in SINKS for part in parts):
        return "eager"
    if any(part.get("attn_logit_softcapping") for part in parts):
        log.info("%s: caps its attention logits, so eager attention computes it, which takes more memory", folder)
        return "eager"
    return usual
