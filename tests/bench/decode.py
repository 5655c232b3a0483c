"""Where a decode step of vLLM's goes: milliseconds a step for 64 sequences, one difference at a time, and GPU time alone.

    python tests/bench/decode.py MODEL [ADAPTER] [--evaluation] [--as-vllm-comes] [--attention TRITON_ATTN] [--splits 1]

Run by tests/bench/gpu.py (cases `decode`, with an adapter, and `decode-evaluation`). The engine runs in this process, so
that torch's profiler sees its kernels.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = os.environ.get("DECODE_PROCESSES", "0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", nargs="?", type=Path)
    parser.add_argument(
        "--evaluation", action="store_true", help="what jobs/sample.py asks: 164 answers of 1,024 tokens"
    )
    parser.add_argument("--as-vllm-comes", action="store_true", help="torch.compile, and LoRA kernels in every layer")
    parser.add_argument("--attention", metavar="BACKEND", help="another of vLLM's attention kernels than it chooses")
    parser.add_argument("--splits", type=int, help="into which attention may divide a sequence's keys in a CUDA graph")
    asked = parser.parse_args()
    adapter, sequences, tokens = asked.adapter, *((164, 1024) if asked.evaluation else (64, 256))
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from jobs.inference.vllm_settings import compilation, prepare

    prepare()
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    began = time.perf_counter()
    most = 512 if asked.evaluation else sequences
    options: dict = {} if asked.as_vllm_comes else {"compilation_config": compilation(most)}
    if asked.attention:
        options["attention_backend"] = asked.attention
    if asked.splits:
        options["attention_config"] = {"flash_attn_max_num_splits_for_cuda_graph": asked.splits}
    if adapter:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": 32}
        if not asked.as_vllm_comes:
            options["lora_target_modules"] = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    engine = LLM(
        asked.model,
        dtype="float16" if asked.evaluation else "bfloat16",
        seed=0,
        max_model_len=2048 if asked.evaluation else 1024,
        max_num_seqs=most,
        gpu_memory_utilization=0.9 if asked.evaluation else 0.3,
        **options,
    )
    result = {"engine_start_seconds": round(time.perf_counter() - began, 1)}
    prompts = [TokensPrompt(prompt_token_ids=list(range(1000 + i, 1120 + i))) for i in range(sequences)]
    lora = LoRARequest("adapter", 1, str(adapter.resolve())) if adapter else None
    plain = {"temperature": 0.9, "top_p": 0.95, "top_k": 0, "detokenize": False, "logprobs": 0}
    variants: dict[str, tuple[dict, LoRARequest | None]] = {
        "as GRPO samples": (plain, lora),
        "without the adapter": (plain, None),
        "top_p 1": (plain | {"top_p": 1.0}, lora),
        "no logprobs": (plain | {"logprobs": None}, lora),
        "with text": (plain | {"detokenize": True}, lora),
        "a seed a request": (plain | {"seed": 1}, lora),
        "top_p 1, no logprobs, no adapter": (plain | {"top_p": 1.0, "logprobs": None}, None),
        "greedy": ({"temperature": 0.0, "detokenize": False}, None),
    }
    if asked.evaluation:
        variants = {"greedy, with text": ({"temperature": 0.0}, None)}
    first = next(iter(variants.values()))

    def run(settings: dict, request) -> float:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, **settings)
        began = time.perf_counter()
        engine.generate(prompts, sampling, lora_request=request, use_tqdm=False)
        return round(1000 * (time.perf_counter() - began) / tokens, 2)

    run(*first)
    result |= {name: run(*variant) for name, variant in variants.items()}
    print("DECODE", json.dumps(result), flush=True)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        print("DECODE", json.dumps(profile(lambda: run(*first), tokens)), flush=True)


def profile(work, steps: int) -> dict:
    """GPU milliseconds a step, in all and of the kernels that take most of it: [milliseconds, launches]."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
    events = sorted(profiler.key_averages(), key=lambda e: e.self_device_time_total, reverse=True)
    total = sum(e.self_device_time_total for e in events) / 1000 / steps
    return {
        "gpu_ms_a_step": round(total, 2),
        "kernels": {
            e.key[:60]: [round(e.self_device_time_total / 1000 / steps, 3), round(e.count / steps, 1)]
            for e in events[:14]
        },
    }


if __name__ == "__main__":
    main()
