"""Loading a model folder by transformers: safetensors alone, no code of the folder's, and no fault that comes late."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line
from jobs.common.files import read_json
from jobs.weights.adapter import more
from jobs.weights.attention import attention_for
from jobs.weights.safetensors import is_tied, shards, tensors_of
from jobs.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

FURTHER = re.compile(r"(^|\.)mtp")  # layers that predict further tokens, which nobody loads


def load_model(folder: Path, dtype: "torch.dtype | str", attention: str | None) -> tuple[Any, Any]:
    """Tokenizer and model of `folder`, on the CPU.

    attention: transformers' name of the usual one, None for its own choice; see `attention_for`.
    Errors: JobError naming the folder that is not a model, or whose tokenizer has more tokens than the model embeds, and as
    `require_whole`.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    require_whole(folder)
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


def require_whole(folder: Path) -> Any:
    """Holds a folder's tensors to the model that its config.json describes, by name and shape; none is read.

    transformers goes on with random numbers for what the files lack, and without what has no place. A quantized model's
    tensors have the names of its quantization, by which the engines that know it hold them.
    Returns the model without its numbers, or None for a quantized one.
    Errors: JobError naming such tensors, for a folder that is no model, and as `shards` and `is_tied`.
    """
    from transformers import AutoModelForCausalLM

    shards(folder)
    is_tied(folder)
    if read_json(folder / "config.json").get("quantization_config"):
        return None
    require_writer(folder)
    with quiet():
        try:
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # an unknown family, a shape that does not fit: one of many types
            raise JobError(f"{folder}: cannot be loaded as a model ({one_line(error)})") from error
    require_places(folder, found[1])
    return found[0]


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers of a model by their names, but for its head.

    Some have a forward pass of their own: Falcon's, which gives what a linear layer gives, and routers, which give more.
    """
    import torch

    def plain(layer: torch.nn.Linear) -> bool:
        if type(layer).forward is torch.nn.Linear.forward:
            return True
        with torch.inference_mode():
            found = layer(torch.zeros(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device))
        return isinstance(found, torch.Tensor) and found.shape == (1, layer.out_features)

    head = model.get_output_embeddings()
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear))
    return {name: layer for name, layer in layers if layer is not head and plain(layer)}


def require_names(folder: Path, modules: Iterable[str]) -> None:
    """Errors: JobError for modules whose weights the files hold under other names than the model has in memory.

    transformers puts a prefix before the names of a model that was saved without its head, as Bloom and embedding models
    were, and knows older names of some families. An adapter has the names in memory, and would fit nothing in the files.
    """
    held = tensors_of(folder)
    if odd := sorted(name for name in modules if f"{name}.weight" not in held):
        raise JobError(
            f"{folder}: holds {', '.join(odd[:3])}{more(odd)} under other names than transformers gives them, and no "
            "adapter could be added; load it by AutoModelForCausalLM and save it anew"
        )


def require_writer(folder: Path) -> None:
    """Errors: JobError for a family of which transformers has no model that goes on with a text."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a value of a wrong type surfaces as one of many types
        raise JobError(f"{folder}/config.json: cannot be read as a model's ({one_line(error)})") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise JobError(
            f"{folder}: is a {config.model_type}, of which transformers has no model that goes on with a text"
        )


def require_places(path: Path, info: dict) -> None:
    """Errors: JobError for tensors that a model lacks or has no place for, by what transformers says of its loading."""
    if lost := sorted(info["missing_keys"]):
        raise JobError(f"{path}: lacks {', '.join(lost[:3])}{more(lost)}, which would be random numbers")
    if odd := sorted(name for name in info["unexpected_keys"] if not FURTHER.search(name)):
        raise JobError(
            f"{path}: holds {', '.join(odd[:3])}{more(odd)}, for which the model that its config describes has no place"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers shows no progress, and tells of nothing less than an error."""
    from transformers.utils import logging

    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
