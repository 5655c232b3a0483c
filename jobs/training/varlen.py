"""Attention over sequences in one row, one call for all, for Unsloth on torch 2.11.

Unsloth takes torch's `varlen_attn` from torch 2.12 on, which knows of keys that several heads share. Before, it calls
attention once for every sequence and layer. Here those keys are repeated first, which gives the same numbers.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any


def install() -> None:
    """Has Unsloth, which must have been imported, take torch's kernel where it found none that it knows."""
    from torch.nn.attention.varlen import varlen_attn
    from unsloth.utils import attention_dispatch

    if attention_dispatch._TORCH_VARLEN_ATTN is None:
        attention_dispatch._TORCH_VARLEN_ATTN = with_shared_keys(varlen_attn)


def with_shared_keys(attention: Callable[..., Any]) -> Callable[..., Any]:
    """`attention(query, key, value, ...)` of (tokens, heads, width), with fewer heads of keys where `enable_gqa` is set."""
    if "enable_gqa" in inspect.signature(attention).parameters:
        return attention

    @wraps(attention)
    def repeated(query, key, value, *arguments, enable_gqa: bool = False, **options):
        if enable_gqa:
            times = query.shape[1] // key.shape[1]
            key, value = (each.repeat_interleave(times, dim=1) for each in (key, value))
        return attention(query, key, value, *arguments, **options)

    return repeated
