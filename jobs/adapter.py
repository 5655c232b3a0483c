"""PEFT LoRA adapters as functions that change rows of a base model's tensors; read lazily, by the row."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import JobError
from jobs.files import read_json
from jobs.tensors import Tensor, header

if TYPE_CHECKING:
    import numpy as np

# A Change, called, reads what it needs and returns a function that takes rows' numbers and their float32 values and
# returns the changed values and the change itself. So an adapter is in memory only while its tensor is worked on.
Change = Callable[[], Callable[[slice, "np.ndarray"], tuple["np.ndarray", "np.ndarray"]]]

PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What adapter_config.json may say: keys that the sum obeys, and keys that do not bear on it.
OBEYED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "peft_type"}
IDLE = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "target_modules", "exclude_modules", "lora_dropout", "bias", "modules_to_save", "layers_to_transform",
        "layers_pattern", "megatron_core", "loftq_config", "qalora_group_size", "ensure_weight_tying"}
# These start training from a base that the initialization has changed; added to the original base they are wrong.
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def changes(folder: Path, base: dict[str, Tensor], tied: bool) -> dict[str, Change]:
    """What the adapter in `folder` does to each of `base`'s tensors that it changes.

    LoRA on linear layers and embeddings, with rank and alpha patterns and rsLoRA; whole modules (`modules_to_save`) and
    biases. `tied` says whether lm_head shares the embedding's weights.
    Errors: JobError for anything else that the adapter asks for, and for every tensor that fits nothing in the base.
    """
    config = read_json(folder / "adapter_config.json")
    check(config, folder)
    left = {}
    for tensor in header(folder / "adapter_model.safetensors")[1]:
        if not tensor.name.startswith(PREFIX):
            raise JobError(f"{folder}: {tensor.name} is not a tensor of a PEFT adapter")
        left[tensor.name.removeprefix(PREFIX)] = tensor
    found: dict[str, Change] = {}
    for name in list(left):
        for end_a, end_b in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if name.endswith(end_a):
                module = name.removesuffix(end_a)
                a, b = left.pop(name), left.pop(module + end_b, None)
                if b is None:
                    raise JobError(f"{folder}: {module}{end_a} has no {end_b} beside it")
                weight = target(module + ".weight", base, folder)
                found[weight.name] = low_rank(a, b, weight, scaling(config, module, a.shape[0], folder), folder)
    if tied:
        check_tied(left, found, folder)
    for name, tensor in left.items():
        if "lora_" in name:
            raise JobError(f"{folder}: {name} is not supported (DoRA, lora_bias and LoRA on expert parameters are not)")
        weight = target(name, base, folder)
        if tensor.shape != weight.shape:
            raise JobError(f"{folder}: {name} has shape {tensor.shape}, the base's has {weight.shape}")
        if name in found:
            raise JobError(f"{folder}: changes {name} twice")
        found[name] = replacement(tensor)
    if tied and EMBEDDING in found and HEAD in base:  # a base that stores its one matrix under both names
        found[HEAD] = found[EMBEDDING]
    return found


def check(config: dict, folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise JobError(f"{folder}: is a {config.get('peft_type')} adapter, not LORA")
    if config.get("use_dora"):
        raise JobError(f"{folder}: use_dora is set; DoRA rescales the base's rows and is not supported")
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(MOVES_BASE):
        raise JobError(f"{folder}: init_lora_weights is {init}, which trains on a changed base; convert the adapter "
                       "to plain LoRA first (path_initial_model_for_weight_conversion of PEFT's save_pretrained)")
    unknown = sorted(key for key, value in config.items() if value and key not in OBEYED | IDLE)
    if unknown:
        raise JobError(f"{folder}: adapter_config.json sets {', '.join(unknown)}, which is not supported")


def check_tied(left: dict[str, Tensor], found: dict[str, Change], folder: Path) -> None:
    """With tied embeddings there is one matrix: refuses an adapter that changed only one of its two uses.

    An adapter that holds the whole matrix under both names loses the second one.
    """
    if {EMBEDDING, HEAD}.isdisjoint(left.keys() | found.keys()):
        return
    a, b = left.get(EMBEDDING), left.pop(HEAD, None)
    if a is None or b is None or a.nbytes != b.nbytes or a.read(slice(0, a.rows)) != b.read(slice(0, b.rows)):
        raise JobError(f"{folder}: changes one of embed_tokens and lm_head, which share their weights in the base "
                       "(tie_word_embeddings); untie the base before training, or train both as one")


def target(name: str, base: dict[str, Tensor], folder: Path) -> Tensor:
    if name not in base:
        raise JobError(f"{folder}: changes {name}, which the base does not have")
    return base[name]


def scaling(config: dict, module: str, rank: int, folder: Path) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA, with the module's own alpha and r where a pattern gives them."""

    def own(patterns: str, otherwise: str):
        for pattern, value in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):  # as peft.utils.other.get_pattern_key matches
                return value
        return config[otherwise]

    r, alpha = own("rank_pattern", "r"), own("alpha_pattern", "lora_alpha")
    if r != rank:
        raise JobError(f"{folder}: {module} has rank {rank}, adapter_config.json says {r}")
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r


def low_rank(a: Tensor, b: Tensor, weight: Tensor, scale: float, folder: Path) -> Change:
    """Adds scale * B @ A. Embeddings hold both transposed: scale * (B @ A).T.

    The product is summed in float64 and rounded to float32, so that it depends neither on the linear algebra library
    nor on how the rows are cut; PEFT sums it in float32.
    """
    import numpy as np

    embedding = a.name.endswith("lora_embedding_A")
    shape = (a.shape[1], b.shape[0]) if embedding else (b.shape[0], a.shape[1])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or shape != weight.shape:
        raise JobError(f"{folder}: {a.name} and its B have shapes {a.shape} and {b.shape}, which do not make the "
                       f"base's {weight.shape}")

    def load():
        factor = (b.values().T if embedding else a.values()).astype(np.float64)
        rows_of_a = a.values().T if embedding else None

        def change(rows: slice, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            left = b.values(rows) if rows_of_a is None else rows_of_a[rows]
            delta = (left.astype(np.float64) @ factor).astype(np.float32)
            delta *= np.float32(scale)
            return values + delta, delta

        return change

    return load


def replacement(tensor: Tensor) -> Change:
    """Puts the adapter's own rows in the base's place."""

    def change(rows: slice, values: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        new = tensor.values(rows)
        return new, new - values

    return lambda: change
