"""PEFT LoRA adapters as files: what their configuration says, whose tensors they hold, and which base they belong to.

Adapters come from many tools. Keys that a tool leaves out have PEFT's defaults, and names with the adapter's own name in
them (`lora_A.default.weight`) are read as those without.
"""

import dataclasses
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs.common.errors import JobError, one_line
from jobs.common.files import read_json, record_of
from jobs.weights.floats import FLOATS
from jobs.weights.safetensors import Tensor, header, is_head, is_tied, module_of, tensors_of
from jobs.weights.safetensors import config_of as model_config

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
RECORD = "trainer.json"  # beside a trained adapter, what it was trained with and on
BASE_KEY = "base_weights"
CONFIG_KEY = "base_config"
# Keys of configurations that do not bear on what a forward pass without dropout gives, or that the weights tell as well.
# How many positions a model was made for does where they are scaled.
IDLE = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "max_window_layers",  # of which layer_types is made
    "num_mtp_layers",
    "output_router_logits",
    "pretraining_tp",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "tie_word_embeddings",
    "use_cache",
    "use_mambapy",
    "vocab_size",
}
DEFAULTS = {"r": 8, "lora_alpha": 8}  # PEFT's LoraConfig
FACTOR = re.compile(r"(.*\.lora_(?:embedding_)?)([AB])(\.weight)?")
log = logging.getLogger("jobs")
SAMPLED = 16  # rows of each tensor that tell one base from another


def config_of(folder: Path) -> dict[str, Any]:
    """adapter_config.json with PEFT's defaults. Errors: JobError naming the key whose value cannot be meant."""
    file = folder / "adapter_config.json"
    config = DEFAULTS | read_json(file)
    rank = config["r"]
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise JobError(f"{file}: r is {rank!r}, not a positive whole number")
    if not is_number(config["lora_alpha"]):
        raise JobError(f"{file}: lora_alpha is {config['lora_alpha']!r}, not a number")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key), bool | None):
            raise JobError(f"{file}: {key} is {config[key]!r}, neither true nor false")
    targets = config.get("target_modules")
    names = targets if isinstance(targets, list) else [] if targets is None else [targets]
    if not all(isinstance(name, str) for name in names):
        raise JobError(f"{file}: target_modules is {targets!r}, neither a list of names nor a regular expression")
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise JobError(f"{file}: {key} is {patterns!r}, not an object of patterns and numbers")
        for pattern, value in patterns.items():
            if not is_number(value):
                raise JobError(f"{file}: {key} gives {pattern!r} {value!r}, not a number")
            try:
                re.compile(pattern)
            except re.error as error:
                raise JobError(f"{file}: {key} holds {pattern!r}, which is no regular expression ({error})") from None
    return config


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def tensors_by_module(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names without PEFT's prefix, the adapter's name and the layer that LoRA wraps.

    Errors: JobError if there is no adapter_model.safetensors, for a name that is no adapter's, and for one half of a
    pair of factors: the module would be left as it is in the base, or PEFT would take random numbers for the other.
    """
    if not (folder / WEIGHTS).is_file():
        raise JobError(f"{folder}: has no safetensors file {WEIGHTS}; nothing else is loaded")
    found: dict[str, Tensor] = {}
    for tensor in header(folder / WEIGHTS)[1]:
        name = plain_name(tensor.name)
        if not tensor.name.startswith(PREFIX) or name in found:
            raise JobError(f"{folder}: {tensor.name} is not a tensor of a PEFT adapter")
        found[name] = tensor
    for name in found:
        if factor := FACTOR.fullmatch(name):
            other = factor[1] + ("B" if factor[2] == "A" else "A") + (factor[3] or "")
            if other not in found:
                raise JobError(f"{folder}: {name} has no lora_{other.rpartition('.lora_')[2]} beside it")
    return found


def plain_name(name: str) -> str:
    name = name.removeprefix(PREFIX).replace(".base_layer.", ".")
    name = re.sub(r"\.(lora_(?:A|B|magnitude_vector|embedding_A|embedding_B))\.default(?=\.|$)", r".\1", name)
    return re.sub(r"\.modules_to_save(?:\.default)?\.", ".", name)


def weights_hash(base: Path) -> str:
    """A hash by which a base's weights are known again, whatever their shards and, if nothing was lost, their dtype.

    Of each tensor it takes name, shape and up to 16 rows, spread evenly: all of a model in a second. The head of a tied
    model is left out, which some tools store and others do not.
    """
    digest = hashlib.sha256()
    tied = is_tied(base)
    for name, tensor in sorted(tensors_of(base).items()):
        if tied and is_head(name):
            continue
        digest.update(f"{name} {tensor.shape}\n".encode())
        for i in sorted({tensor.rows * k // SAMPLED for k in range(SAMPLED)} if tensor.rows else ()):
            row = slice(i, i + 1)
            digest.update(tensor.values(row).tobytes() if tensor.dtype in FLOATS.values() else tensor.read(row))
    return digest.hexdigest()


def computation(base: Path) -> dict[str, Any]:
    """How a base's weights are computed with, by its configuration and its family's defaults, as JSON has it.

    Keys that transformers does not know of the family do not bear on it; nor do those of IDLE, and dropouts.
    Errors: JobError as `config_of` of a model folder.
    """
    from transformers import PreTrainedConfig

    config = model_config(base).get_text_config()
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = {field.name for field in dataclasses.fields(config)} - general - IDLE
    kinds = re.findall(r"'rope_type': '(\w+)'", str(getattr(config, "rope_parameters", None)))
    if set(kinds) <= {"default"}:
        names.discard("max_position_embeddings")
    said = {name: value for name, value in config.to_dict().items() if name in names and "drop" not in name}
    return json.loads(json.dumps(said, sort_keys=True, default=str))


def check_base(adapter: Path, base: Path) -> None:
    """Errors: JobError if the adapter records a base of other weights than those in `base`, or computed with otherwise.

    Of the keys of their configurations, those that both have are compared: another version of transformers may have others.
    """
    file = adapter / RECORD
    record = read_json(file) if file.is_file() else {}
    trained_on = record.get(BASE_KEY)
    if trained_on is not None and trained_on != weights_hash(base):
        raise JobError(f"{adapter}: was trained on other weights than those in {base} ({BASE_KEY} in {RECORD})")
    if isinstance(then := record.get(CONFIG_KEY), dict):
        now = computation(base)
        if odd := [f"{key} {then[key]}, not {now[key]}" for key in sorted(then.keys() & now) if then[key] != now[key]]:
            raise JobError(
                f"{adapter}: was trained on the weights in {base} with another config.json: {'; '.join(odd)} "
                f"({CONFIG_KEY} in {RECORD})"
            )
    named, ours = config_of(adapter).get("base_model_name_or_path"), (record_of(base).get("source") or {}).get("repo")
    if trained_on is None and named and ours and str(named).lower() != ours.lower():
        log.warning(
            "%s: names %s as its base, and %s is %s; no record tells whether it fits", adapter, named, base, ours
        )


def check_modules(adapter: Path, base: Path) -> None:
    """Errors: JobError for a tensor of the adapter whose module the base does not have, by the names in their files.

    For engines that load an adapter by themselves. A model of text and images has other names in files than in memory,
    so there only what comes after the layers' own name is compared.
    """
    whole = "text_config" not in read_json(base / "config.json")
    known = {module_of(name) for name in tensors_of(base)}
    known |= {name.rpartition(".layers.")[2] for name in known}
    lost = [
        name
        for name in map(module_of, tensors_by_module(adapter))
        if (name if whole else name.rpartition(".layers.")[2]) not in known and not (is_head(name) and is_tied(base))
    ]
    if lost:
        raise JobError(f"{adapter}: {base} has no place for {', '.join(lost[:3])}{more(lost)}")


def attach(model, adapter: Path, base: Path, trainable: bool = False):
    """`model`, loaded from `base`, as a PEFT model with the adapter's weights.

    PEFT itself warns where a tensor finds no place, or a layer no tensor, and goes on with the base or random numbers.
    Errors: JobError for such an adapter, and for one that was trained on another base.
    """
    import warnings

    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    held = tensors_by_module(adapter)
    # The base's own matrix, which PEFT keeps beside the factors of an end of the model, has its place by its whole name.
    names = {t.name: t.name if ".base_layer." in t.name else PREFIX + name for name, t in held.items()}
    config_of(adapter)
    check_base(adapter, base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(adapter))
            config.inference_mode = not trainable
            peft = PeftModel(model, config)
            weights = {names[name]: tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
            result: Any = set_peft_model_state_dict(peft, weights)
    except Exception as error:  # what does not fit surfaces as one of many types
        raise JobError(f"{adapter}: the adapter cannot be loaded ({one_line(error)})") from error
    check_places(adapter, result.unexpected_keys, result.missing_keys)
    broken = sorted(name for name, tensor in weights.items() if not tensor.float().isfinite().all())
    if broken:
        raise JobError(f"{adapter}: {', '.join(broken[:3])}{more(broken)} holds numbers that are not finite")
    return peft


def check_places(adapter: Path, unexpected: Iterable[str], missing: Iterable[str]) -> None:
    """Errors: JobError for tensors of the adapter without a place in the model, and LoRA layers without a tensor."""
    lost = sorted(unexpected)
    if lost:
        raise JobError(f"{adapter}: the model has no place for {', '.join(lost[:3])}{more(lost)}")
    empty = sorted(key for key in missing if ("lora_" in key or ".modules_to_save." in key) and ".default" in key)
    if empty:
        raise JobError(f"{adapter}: holds no tensor for {', '.join(empty[:3])}{more(empty)} of the model")


def more(names: list[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
