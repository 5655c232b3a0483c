"""A GGUF file as a model folder: weights dequantized into safetensors, configuration and tokenizer beside them.

The families are those whose GGUF files transformers reads. What a quantized file has lost stays lost: the folder holds
the numbers that llama.cpp computes with, no better ones.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs.common.errors import JobError, one_line
from jobs.weights import byte_level, gguf_config, pieces
from jobs.weights.ends import of_file
from jobs.weights.model import require_places
from jobs.weights.tokenizer import padding

ROWS = ("eos", "bos", "padding", "unknown")


def to_folder(path: Path, out: Path, dtype: str = "bfloat16") -> dict:
    """Writes the model of the GGUF file `path` into the folder `out`, its weights stored as `dtype`.

    The special tokens are those that the file's own metadata names: transformers guesses some of them otherwise. A file
    whose padding is its end of text, or that names none, gets another special token for padding, since a trainer that
    leaves padding out of the loss would never teach the end.

    Returns {"architecture", "quantization", "parameters", "eos", "ends", "pad"} for provenance and card.
    Errors: JobError naming the file, for one that cannot be read or whose family transformers does not know.
    """
    import torch

    facts = metadata(path)
    loaded, tokenizer = read(path, facts)
    special = dict(zip(ROWS, special_tokens(facts, tokenizer), strict=True))
    if special["eos"] is None:
        raise JobError(f"{path}: names no end-of-sequence token (tokenizer.ggml.eos_token_id)")
    pad = special["padding"]
    if pad in (None, special["eos"]):
        pad = padding(tokenizer, special["eos"], loaded.get_input_embeddings().weight.shape[0])
    tokenizer.eos_token, tokenizer.pad_token = special["eos"], pad
    if special["bos"] is not None:
        tokenizer.bos_token = special["bos"]
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the loaded weights are floats, and would refuse to be saved
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.dtype = getattr(torch, dtype)
    model: Any = type(loaded)(config)
    try:
        model.load_state_dict(loaded.state_dict())
    except RuntimeError as error:  # sizes that the file does not say
        raise JobError(f"{path}: cannot be read as a {config.model_type} ({one_line(error)})") from error
    model.tie_weights()
    ends = of_file(facts, tokenizer)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model = model.to(dtype=config.dtype)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {
        "architecture": facts.get("general.architecture"),
        "quantization": facts.get("general.file_type"),
        "parameters": model.num_parameters(),
        "eos": tokenizer.eos_token,
        "ends": [str(tokenizer.convert_ids_to_tokens(end)) for end in ends],
        "pad": tokenizer.pad_token,
    }


def read(path: Path, facts: dict) -> tuple[Any, Any]:
    """The file's model in float32, and its tokenizer. Errors: JobError naming the file."""
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        tokenizer = tokenizer_of(path, facts)  # refuses in a second what the weights take a minute for
        tensors = gguf.GGUFReader(path).tensors
        config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        others = {
            t.name: t.data for t in tensors if t.name.startswith("rope_")
        }  # numbers by which positions are scaled
        gguf_config.obey(config, facts, others, path)
        found: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        require_places(path, found[1])
        require_all_read(path, tensors, found[0])
    except JobError:
        raise
    except Exception as error:  # an unknown family, a broken header and a missing tensor surface as many types
        raise JobError(f"{path}: cannot be read as a model ({one_line(error)})") from error
    return found[0], tokenizer


def require_all_read(path: Path, tensors: Iterable[Any], model: Any) -> None:
    """Holds the model to the file's tensors. Errors: JobError for other sizes, or for weights that are not read."""
    layers = model.config.get_text_config().num_hidden_layers  # beyond them are those that predict further tokens
    beyond = re.compile(r"rope_|blk\.(\d+)\.")
    held = sum(
        int(t.n_elements)
        for t in tensors
        if not (match := beyond.match(t.name)) or (match[1] and int(match[1]) < layers)
    )
    if held != (taken := model.num_parameters()):
        raise JobError(
            f"{path}: holds {held:,} numbers, of which transformers' {type(model).__name__} would take {taken:,}; take the "
            "model from its folder"
        )


def tokenizer_of(path: Path, facts: dict) -> Any:
    """The tokenizer as the file itself says; one of neither kind that is read here, as transformers reads it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if reader := {"gpt2": byte_level, "llama": pieces}.get(facts.get("tokenizer.ggml.model", "")):
        return PreTrainedTokenizerFast(tokenizer_object=reader.tokenizer_of(path))
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)


def metadata(path: Path) -> dict:
    """The file's key-value pairs, without its tokenizer's arrays. Errors: JobError naming a file that is no GGUF file."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        return {
            name: field.contents()
            for name, field in reader.fields.items()
            if not (name.startswith("tokenizer.") and field.types and field.types[0] == gguf.GGUFValueType.ARRAY)
        }
    except Exception as error:  # numpy's and struct's errors, for a file cut short
        raise JobError(f"{path}: is not a whole GGUF file ({one_line(error)})") from error


def special_tokens(facts: dict, tokenizer) -> list[str | None]:
    numbers = [facts.get(f"tokenizer.ggml.{name}_token_id") for name in ROWS]
    return [tokenizer.convert_ids_to_tokens(int(number)) if number is not None else None for number in numbers]
