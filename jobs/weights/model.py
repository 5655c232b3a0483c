"""Loading a model folder by transformers: safetensors alone, no code of the folder's, and no fault that comes late."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line
from jobs.weights.attention import attention_for
from jobs.weights.safetensors import shards
from jobs.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch


def load_model(folder: Path, dtype: "torch.dtype | str", attention: str | None) -> tuple[Any, Any]:
    """Tokenizer and model of `folder`, on the CPU.

    attention: transformers' name of the usual one, None for its own choice; see `attention_for`.
    Errors: JobError naming the folder that is not a model, or whose tokenizer has more tokens than the model embeds.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    shards(folder)
    tokenizer = load_tokenizer(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention_for(folder, attention),
        )
    except Exception as error:  # a truncated file surfaces as one of many types
        raise JobError(f"{folder}: cannot be loaded as a model ({one_line(error)})") from error
    if len(tokenizer) > (rows := model.get_input_embeddings().weight.shape[0]):
        raise JobError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}")
    return tokenizer, model
