"""PEFT LoRA adapters as functions that change rows of a base model's tensors; read lazily, by the row."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.errors import JobError
from jobs.common.files import read_json
from jobs.weights.adapter import RECORD, check_base, config_of, more, tensors_by_module
from jobs.weights.identity import adapter_identity
from jobs.weights.safetensors import Tensor, is_embedding, is_head, is_tied, module_of, tensors_of

if TYPE_CHECKING:
    import numpy as np

# An Update, called, reads what it needs and returns a function that takes rows' numbers and their float64 values, and
# returns the new values, float64. So an adapter is in memory only while its tensor is worked on.
Update = Callable[[], Callable[[slice, "np.ndarray"], "np.ndarray"]]

# What adapter_config.json may say: keys that the sum obeys, and keys that do not bear on it. Any other key that is set
# stops the merge.
OBEYED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "peft_type"}
IDLE = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "base_model_class",
    "parent_library",
    "revision",
    "inference_mode",
    "merge_weights",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "bias",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "runtime_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "unsloth_fixed",
    "unsloth_version",
}
PARTIAL = ("layers_to_transform", "exclude_modules")  # keys of an adapter that leaves modules out on purpose
NUMBER = re.compile(r"\.(\d+)\.")
# These start training from a base that the initialization has changed; added to the original base they are wrong.
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def updates_of(base: Path, adapters: list[Path]) -> dict[str, list[Update]]:
    """What all adapters do to the base's tensors, by their names, in the order given.

    Errors: JobError as `updates` and `require_every_layer`, for an adapter that records another base, and for one that is
    added twice.
    """
    tensors, tied = tensors_of(base), bool(adapters) and is_tied(base)
    require_once(adapters)
    found: dict[str, list[Update]] = {}
    for adapter in adapters:
        check_base(adapter, base)
        require_every_layer(adapter, base, tensors)
        require_named(adapter, base, tensors, tied)
        for name, steps in updates(adapter, tensors, tied).items():
            found.setdefault(name, []).extend(steps)
    return found


def updates(folder: Path, base: dict[str, Tensor], tied: bool) -> dict[str, list[Update]]:
    """What the adapter in `folder` does to each of `base`'s tensors that it changes, in order.

    LoRA on linear layers and embeddings, with rank and alpha patterns and rsLoRA; whole modules (`modules_to_save`) and
    biases. `tied` says whether the output head shares the embedding's weights.
    Errors: JobError for anything else that the adapter asks for, and for every tensor that fits nothing in the base.
    """
    config = config_of(folder)
    require_plain(config, folder)
    left = tensors_by_module(folder)
    if tied:
        require_tied(left, folder)
    found: dict[str, list[Update]] = {}
    for name, tensor in left.items():
        if ".lora_" not in name:
            weight = target(name, base, folder)
            if tensor.shape != weight.shape:
                raise JobError(f"{folder}: {name} has shape {tensor.shape}, the base's has {weight.shape}")
            found[name] = [replacement(tensor)]
    for name, tensor in left.items():
        if ".lora_" not in name or name.endswith((".lora_B.weight", ".lora_embedding_B")):
            continue
        module, kind = name.split(".lora_", 1)
        if kind not in ("A.weight", "embedding_A"):
            raise JobError(f"{folder}: {name} is not supported (DoRA, lora_bias and LoRA on expert parameters are not)")
        b = left[f"{module}.lora_{kind.replace('A', 'B')}"]
        weight = target(f"{module}.weight", base, folder)
        scale = scaling(config, module, tensor.shape[0], folder)
        found.setdefault(weight.name, []).append(low_rank(tensor, b, weight, scale, folder))
    embedding = next(filter(is_embedding, found), None)
    if tied and embedding:  # a base that stores its one matrix under both names
        found |= dict.fromkeys(filter(is_head, base), found[embedding])
    return found


def require_every_layer(folder: Path, base: Path, tensors: dict[str, Tensor]) -> None:
    """Errors: JobError for a module that the adapter leaves out in some layers of the model and changes in others.

    An adapter whose writing was broken off would be summed in part. One that is meant for some layers says so.
    """
    config = config_of(folder)
    targets = config.get("target_modules") or []
    if (
        any(config.get(key) not in (None, []) for key in PARTIAL)
        or isinstance(targets, str)
        or any("." in name for name in targets)
    ):
        return
    whole = read_json(base / "config.json")
    layers = (whole.get("text_config") or whole).get("num_hidden_layers", 0)
    trained = {module_of(name) for name in tensors_by_module(folder) if ".lora_" in name}
    kinds = {NUMBER.sub(".*.", name) for name in trained}
    lost = [
        module
        for module in map(module_of, tensors)
        if (number := NUMBER.search(module))
        and int(number[1])
        < layers  # beyond them some files hold layers that predict further tokens, which nobody loads
        and NUMBER.sub(".*.", module) in kinds
        and module not in trained
    ]
    if lost:
        raise JobError(f"{folder}: holds no tensor for {', '.join(lost[:3])}{more(lost)}, and does for other layers")


def require_named(folder: Path, base: Path, tensors: dict[str, Tensor], tied: bool) -> None:
    """Errors: JobError for a module of the model that adapter_config.json names, and of which no tensor is there."""
    config = config_of(folder)
    held = {module_of(name) for name in tensors_by_module(folder)}
    known = {module_of(name) for name in tensors if name.endswith(".weight") and ".experts." not in name}
    targets = [] if config.get("exclude_modules") else config.get("target_modules") or []
    lost = [name for name in config.get("modules_to_save") or [] if any_called(name, known)]
    if isinstance(targets, str):  # a regular expression, or all-linear, which the files do not tell
        kinds = {NUMBER.sub(".*.", module) for module in held}
        lost += [name for name in known if re.fullmatch(targets, name) and NUMBER.sub(".*.", name) not in kinds]
    else:
        lost += [name for name in targets if any_called(name, known)]
    lost = sorted(name for name in set(lost) if not any_called(name, held) and not (tied and is_end(name)))
    if lost:
        raise JobError(
            f"{folder}: holds no tensor for {', '.join(lost[:3])}{more(lost)}, which adapter_config.json names"
        )


def any_called(name: str, modules: set[str]) -> bool:
    """As PEFT matches a name: a module's own, or the last parts of it."""
    return any(module == name or module.endswith(f".{name}") for module in modules)


def is_end(name: str) -> bool:
    return is_embedding(name) or is_head(name)


def require_once(adapters: list[Path]) -> None:
    """Errors: JobError for an adapter that is given twice, or with one that was trained further from it and holds it."""
    if len(adapters) < 2:
        return
    given: set[str] = set()
    for adapter in adapters:
        if (identity := adapter_identity(adapter)) in given:
            raise JobError(f"{adapter}: is given twice, and would be added twice")
        given.add(identity)
    for adapter in adapters:
        if given & set(continued(adapter)):
            raise JobError(f"{adapter}: was trained further from another of these adapters and holds it already")


def continued(adapter: Path) -> Iterator[str]:
    """The identities of the adapters that this one was trained further from, by its record."""
    record = adapter / RECORD
    run = read_json(record).get("run") if record.is_file() else None
    while isinstance(run, dict) and isinstance(before := run.get("continues"), dict):
        yield str(before.get("identity"))
        run = before.get("run")


def require_plain(config: dict, folder: Path) -> None:
    if str(config.get("peft_type")).rpartition(".")[2] != "LORA":
        raise JobError(f"{folder}: is a {config.get('peft_type')} adapter, not LORA")
    if config.get("use_dora"):
        raise JobError(f"{folder}: use_dora is set; DoRA rescales the base's rows and is not supported")
    init = str(config.get("init_lora_weights")).lower()
    if init.startswith(MOVES_BASE):
        raise JobError(
            f"{folder}: init_lora_weights is {init}, which trains on a changed base; convert the adapter "
            "to plain LoRA first (path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
        )
    unknown = sorted(key for key, value in config.items() if value and key not in OBEYED | IDLE)
    if unknown:
        raise JobError(f"{folder}: adapter_config.json sets {', '.join(unknown)}, which is not supported")


def require_tied(left: dict[str, Tensor], folder: Path) -> None:
    """With tied embeddings there is one matrix: refuses an adapter that changed only one of its two uses.

    An adapter that holds the whole matrix under both names loses the second one.
    """
    inputs, outputs = (list(filter(end, left)) for end in (is_embedding, is_head))
    if not inputs and not outputs:
        return
    same = len(inputs) == len(outputs) == 1 and not any(".lora_" in name for name in inputs + outputs)
    if same:
        a, b = left[inputs[0]], left.pop(outputs[0])
        same = a.shape == b.shape and a.read(slice(0, a.rows)) == b.read(slice(0, b.rows))
    if not same:
        raise JobError(
            f"{folder}: changes one of {module_of((inputs + outputs)[0])} and the other end of the model, which share "
            "their weights in the base (tie_word_embeddings); untie the base before training, or train both as one"
        )


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


def low_rank(a: Tensor, b: Tensor, weight: Tensor, scale: float, folder: Path) -> Update:
    """Adds scale * B @ A, in float64. Embeddings hold both transposed: scale * (B @ A).T."""
    import numpy as np

    embedding = a.name.endswith("lora_embedding_A")
    shape = (a.shape[1], b.shape[0]) if embedding else (b.shape[0], a.shape[1])
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or shape != weight.shape:
        raise JobError(
            f"{folder}: {a.name} and its B have shapes {a.shape} and {b.shape}, which do not make the "
            f"base's {weight.shape}"
        )

    def load():
        right = (b.values().T if embedding else a.values()) * np.float64(scale)
        rows_of_a = a.values().T.astype(np.float64) if embedding else None

        def add(rows: slice, values: np.ndarray) -> np.ndarray:
            left = b.values(rows).astype(np.float64) if rows_of_a is None else rows_of_a[rows]
            total = left @ right
            total += values
            return total

        return add

    return load


def replacement(tensor: Tensor) -> Update:
    """Puts the adapter's own rows in the base's place."""
    import numpy as np

    return lambda: lambda rows, values: tensor.values(rows).astype(np.float64)
