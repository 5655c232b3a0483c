"""Weights in 8 bits for vLLM's linear layers: four bits of exponent, three of significand, and a scale for each output.

vLLM's own way to weights in 8 bits (`quantization="fp8_per_channel"`) makes them once, as a model is loaded. Its way to
load again wants all parts of a layer, in 16 bits. Here they are made of the sum in float32 and put where the running
engine's kernels and CUDA graphs read them. Written for vLLM 0.25 on one card.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGEST = 448.0  # that float8_e4m3fn holds
LEAST_SCALE = 1e-12  # a row of zeros is divided by it


def quantized(weight: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """`weight` (outputs, inputs) as float8_e4m3fn, rounded to nearest even, and the float32 scales (outputs, 1).

    Times its scale, a number is off by at most a sixteenth of itself, or 2^-10 of the scale where it is nearly zero.
    """
    import torch

    weight = weight.float()
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    return (weight / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def place(layers: dict[str, Any], packed: dict[str, list[str]], name: str) -> tuple[str, Any, slice]:
    """Where vLLM's model has the base's layer `name`: its own name for the layer, the layer, and the rows in it.

    layers: the model's by name. packed: its `packed_modules_mapping`, the parts of a layer that is several of the base's.

    vLLM has the projections that read the same input as one layer, their outputs one after the other.
    Errors: KeyError for a layer that it does not have.
    """
    if name in layers:
        return name, layers[name], slice(0, sum(layers[name].logical_widths))
    parent, _, last = name.rpartition(".")
    for fused, parts in packed.items():
        whole = f"{parent}.{fused}"
        if last in parts and whole in layers and len(layers[whole].logical_widths) == len(parts):
            number, widths = parts.index(last), layers[whole].logical_widths
            start = sum(widths[:number])
            return whole, layers[whole], slice(start, start + widths[number])
    raise KeyError(name)


def put(model: Any, weights: Iterable[tuple[str, "torch.Tensor"]]) -> set[str]:
    """Overwrites the weights of vLLM's `model` by these, in place; returns its names of the parameters that changed.

    weights: (name in the base, (outputs, inputs) of any float type).
    Errors: KeyError for a layer that the model does not have, ValueError for one that is not in 8 bits or of another shape.
    """
    import torch

    layers, packed = dict(model.named_modules()), getattr(model, "packed_modules_mapping", {})
    changed = set()
    for name, weight in weights:
        found, layer, rows = place(layers, packed, name.removesuffix(".weight"))
        if layer.weight.dtype != torch.float8_e4m3fn or layer.weight_scale.dim() != 2:
            raise ValueError(f"{found} is not in 8 bits with a scale for each output")
        if len(weight) != rows.stop - rows.start or weight.shape[1] > len(layer.weight):
            raise ValueError(f"{name} is {tuple(weight.shape)}, and {found} has {rows.stop - rows.start} rows for it")
        values, scale = quantized(weight)
        # Inputs come first in the engine's layout, and both sides may be padded to a multiple of 16.
        layer.weight.data.t()[rows, : weight.shape[1]].copy_(values)
        layer.weight_scale.data[rows].copy_(scale)
        changed |= {f"{found}.weight", f"{found}.weight_scale"}
    return changed
