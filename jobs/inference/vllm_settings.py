"""What every vLLM engine here is built with, in evaluation as in GRPO's rollouts."""

import os
from typing import Any

LEAST_SHARE = 0.01  # vLLM wants one above 0


def prepare() -> None:
    """Keeps FlashInfer's sampler out, which an engine reads when it is made: building it takes up to 95 s of a start, and
    a decode step is not faster with it than with vLLM's own kernel."""
    os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"


def compilation(sequences: int) -> dict:
    """vLLM's own kernels, replayed as CUDA graphs for up to `sequences` at once, without torch.compile.

    torch.compile takes 45 s of a cold start, and makes a decode step 3 % faster: 188 GRPO steps do not earn it back.
    """
    stride = 8 if sequences <= 64 else 32
    sizes = sorted({1, 2, 4, 8, 16, *range(stride, sequences + 1, stride), sequences})
    return {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [n for n in sizes if n <= sequences],
    }


def memory(share: float, cache_gib: float | None) -> dict[str, Any]:
    """How an engine takes memory: `share` of the whole card for weights and all, or `cache_gib` for keys and values.

    With a share it measures as it starts how much of that the weights leave, and fails where another program takes or frees
    memory meanwhile. With `cache_gib` it takes that and the weights, so engines may start side by side. It would still ask
    that the share be free as it starts, and use the number for nothing else; so then the least share is asked for.
    """
    if cache_gib is None:
        return {"gpu_memory_utilization": share}
    return {"gpu_memory_utilization": LEAST_SHARE, "kv_cache_memory_bytes": int(cache_gib * (1 << 30))}
