"""What every vLLM engine here is built with, in evaluation as in GRPO's rollouts."""

import os


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


def cache_bytes(gib: float | None) -> int | None:
    """Bytes of keys and values that an engine sets aside; None lets it measure what the card has left.

    It measures as it starts, and fails where another program takes or frees memory meanwhile.
    """
    return None if gib is None else int(gib * (1 << 30))
