"""Whether a model goes on with a text from transformers' key-value cache, as sampling in batches needs it."""

import logging
from typing import Any

from jobs.common.errors import JobError, one_line

log = logging.getLogger("jobs")


def first_pass(model: Any, cache: Any, **inputs: Any) -> Any:
    """What `model` gives for `inputs`, its first tokens, whose keys, values and states then are in `cache`.

    Errors: JobError for a model that refuses the cache, that puts nothing into it, or that is recurrent and has its state
    elsewhere: there it is neither copied to a prompt's samples nor freed of the padding, so they would be of other texts.
    """
    kind = f"the model is a {model.config.model_type}"
    try:
        found = model(past_key_values=cache, use_cache=True, **inputs)
    except ValueError as error:  # by which models refuse a cache
        raise JobError(f"{kind}, which does not go on from transformers' cache ({one_line(error)})") from error
    filled = [getattr(layer, "is_initialized", True) for layer in cache.layers]
    if model._is_stateful and not all(filled):
        raise JobError(
            f"{kind}, which keeps its state outside of transformers' cache, so it cannot be sampled in batches; vLLM can, "
            "if it knows the model"
        )
    if filled and not any(filled):
        raise JobError(f"{kind}, which makes no use of transformers' cache, and is not sampled without")
    return found


def refusal(model: Any) -> str | None:
    """Why `first_pass` refuses a model that is loaded without its numbers (device "meta"); None if it does not.

    The model has no token for padding afterwards.
    None too for one whose computation asks for numbers: nothing is known of it then.
    """
    import torch
    from transformers import DynamicCache

    for part in (model.config, model.config.get_text_config()):
        part.pad_token_id = None  # by which some models look through the tokens for padding, to warn of it
    tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            first_pass(model, DynamicCache(config=model.config), input_ids=tokens)
    except JobError as error:
        return str(error).removeprefix("the model ")
    except Exception as error:  # what a model asks of numbers surfaces as one of many types
        log.debug("%s: is not computed without its numbers (%s)", model.config.model_type, one_line(error))
    return None
