"""Where a decode step of vLLM's goes: milliseconds a step for 64 sequences, one difference at a time, and GPU time alone.

    python tests/bench/decode.py MODEL [ADAPTER] [--as-vllm-comes] [--evaluation]

With --as-vllm-comes the engine has vLLM's own defaults: torch.compile, and LoRA kernels in every layer. With --evaluation
it measures what jobs/evaluate.py asks of a warm engine: 164 greedy answers of 1,024 tokens. Run, without --as-vllm-comes,
by tests/bench/gpu.py (cases `decode` and `decode-evaluation`). The engine runs in this process, so that torch's profiler
sees its kernels.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = os.environ.get("DECODE_PROCESSES", "0")
EVALUATION = "--evaluation" in sys.argv
SEQUENCES, TOKENS = (164, 1024) if EVALUATION else (64, 256)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from jobs.vllm_engine import compilation, prepare

    prepare()
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    model, adapter, *_ = *(word for word in sys.argv[1:] if not word.startswith("--")), None
    ours = "--as-vllm-comes" not in sys.argv
    began = time.perf_counter()
    most = 512 if EVALUATION else SEQUENCES
    options: dict = {"compilation_config": compilation(most)} if ours else {}
    if adapter:
        targets = json.loads(Path(adapter, "adapter_config.json").read_text())["target_modules"]
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": 32}
        options |= {"lora_target_modules": targets} if ours else {}
    engine = LLM(
        model,
        dtype="float16" if EVALUATION else "bfloat16",
        seed=0,
        max_model_len=2048 if EVALUATION else 1024,
        max_num_seqs=most,
        gpu_memory_utilization=0.9 if EVALUATION else 0.3,
        **options,
    )
    result = {"engine_start_seconds": round(time.perf_counter() - began, 1)}
    prompts = [TokensPrompt(prompt_token_ids=list(range(1000 + i, 1120 + i))) for i in range(SEQUENCES)]
    lora = LoRARequest("adapter", 1, str(Path(adapter).resolve())) if adapter else None
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
    if EVALUATION:
        variants = {"greedy, with text": ({"temperature": 0.0}, None)}
    first = next(iter(variants.values()))

    def run(settings: dict, request) -> float:
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, **settings)
        began = time.perf_counter()
        engine.generate(prompts, sampling, lora_request=request, use_tqdm=False)
        return round(1000 * (time.perf_counter() - began) / TOKENS, 2)

    run(*first)
    result |= {name: run(*variant) for name, variant in variants.items()}
    print("DECODE", json.dumps(result), flush=True)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        print("DECODE", json.dumps(profile(lambda: run(*first))), flush=True)


def profile(work) -> dict:
    """GPU milliseconds a step, in all and of the kernels that take most of it."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
    events = sorted(profiler.key_averages(), key=lambda e: e.self_device_time_total, reverse=True)
    total = sum(e.self_device_time_total for e in events) / 1000 / TOKENS
    return {
        "gpu_ms_a_step": round(total, 2),
        "kernels": {
            e.key[:60]: [round(e.self_device_time_total / 1000 / TOKENS, 3), round(e.count / TOKENS, 1)]
            for e in events[:14]
        },
    }


if __name__ == "__main__":
    main()
