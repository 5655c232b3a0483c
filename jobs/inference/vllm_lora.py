"""An extension of vLLM's worker (its option worker_extension_cls): LoRA kernels whose sums do not depend on the batch.

With VLLM_BATCH_INVARIANT vLLM 0.25 leaves one number to the batch: the kernel that multiplies by an adapter's A adds up
256 products at a time for fewer than 128 tokens, and 32 from there on. The two round otherwise, so that a sample hangs on
how many others are drawn beside it. Here the second number is taken for every batch.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

KERNELS = "vllm.lora.ops.triton_ops.lora_shrink_op"
BATCH = 128  # tokens; what vLLM chooses by, from here on, is the same


class BatchInvariant:
    """Adds nothing to the worker. Its process has the kernels' settings fixed when it imports this module."""


def of_one_batch(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """vLLM's get_lora_op_configs, asked as if every batch had BATCH tokens."""

    @functools.wraps(settings)
    def asked(op_type: str, *, batch: int, **sizes: Any) -> dict[str, Any]:
        return settings(op_type, batch=BATCH, **sizes)

    asked.fixed = True  # type: ignore[attr-defined]
    return asked


def fix() -> None:
    """Errors: ImportError or AttributeError where this vLLM has no such kernel: samples would hang on the batch unseen."""
    kernels: Any = importlib.import_module(KERNELS)
    if not hasattr(kernels.get_lora_op_configs, "fixed"):
        kernels.get_lora_op_configs = of_one_batch(kernels.get_lora_op_configs)


fix()
