"""What every vLLM engine here is built with, in evaluation as in GRPO's rollouts."""


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
