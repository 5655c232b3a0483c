"""A base without what its own configuration adds to training alone, whichever engine has loaded it."""

from pathlib import Path
from typing import Any

from jobs.plumbing.cli import log

NOISE = ("drop", "jitter")  # in the names of what a configuration, or a module that copied it, leaves to chance
EXPERTS = {"router_aux_loss_coef": 0.0, "output_router_logits": False}


def turn_off(model: Any, base: Path) -> None:
    """Sets every dropout of the model's own at zero, as the adapter's is, its routers' noise, and the loss of its experts.

    StarCoder2's and Granite's dropout is 0.1: a policy that differs from one forward pass to the next is not the one that
    GRPO sampled from, nor its reference. And TRL adds to the loss how evenly the experts are used, by the configuration's
    own weight, though experts and router stay as they are. Modules hold copies of what the configuration said when they
    were made, or look into it at every pass; Unsloth's own forward passes do both.
    """
    import torch

    found: dict[str, float] = {}
    for part in parts(model):
        if isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p:
            found.setdefault("dropout", part.p)
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if value and isinstance(value, float) and any(word in name for word in NOISE):
                found[name] = value
                setattr(part, name, 0.0)
            elif value and name in EXPERTS:
                setattr(part, name, EXPERTS[name])
    if found:
        told = ", ".join(f"{name} {value:g}" for name, value in found.items())
        log.info("%s: is trained without its dropout (%s)", base, told)


def parts(model: Any) -> list[Any]:
    """The model's modules, and before them the configurations that they have."""
    from transformers import PreTrainedConfig

    modules = list(model.modules())
    configs = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    return [*(config for config in configs.values() if isinstance(config, PreTrainedConfig)), *modules]
