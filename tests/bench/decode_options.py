"""What vLLM's settings do to a decode step: each variant in a process and with an engine of its own, a JSON line for each.

    python tests/bench/decode_options.py MODEL [--case NAME ...] [--variants NAME ...] [--variant NAME=JSON]

`rollout`: 64 answers of 512 tokens at temperature 1, by float16 weights and without an adapter, as grpo.rollout:
vllm_merged has them; `rollout-small`: 256 of 320, for a model of some hundred million parameters. `evaluation`: 164 greedy
answers of 1,024 tokens, their text made as they grow, as jobs/sample.py asks for them.
Each is run once to warm up and twice to be measured; the line has the faster one's milliseconds a step.

A variant is what it changes of the engine's options, beside `compilation` (of its compilation_config), `environment` and
`sampling` (of the SamplingParams). Those of VARIANTS are there by name, others by --variant.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from tests.bench.gpu_jobs import ENVIRONMENT, SECONDS  # noqa: E402

CASES = {
    "rollout": {"sequences": 64, "tokens": 512, "length": 1024, "most": 64},
    "rollout-small": {"sequences": 256, "tokens": 320, "length": 1024, "most": 256},
    "evaluation": {"sequences": 164, "tokens": 1024, "length": 2048, "most": 512},
}
OF_ROLLOUT = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "detokenize": False}
SAMPLING: dict[str, dict] = {
    "rollout": OF_ROLLOUT,
    "rollout-small": OF_ROLLOUT,
    "evaluation": {"temperature": 0.0},
}
VARIANTS: dict[str, dict] = {
    "as it is": {},
    "fp8": {"quantization": "fp8_per_channel"},
    "fp8, one scale": {"quantization": "fp8_per_tensor"},
    "fp8 keys and values": {"kv_cache_dtype": "fp8"},
    "splits 1": {"attention_config": {"flash_attn_max_num_splits_for_cuda_graph": 1}},
    "splits 8": {"attention_config": {"flash_attn_max_num_splits_for_cuda_graph": 8}},
    "flash-attention 2": {"attention_config": {"flash_attn_version": 2}},
    "FlashInfer": {"attention_backend": "FLASHINFER"},
    "model runner 1": {"environment": {"VLLM_USE_V2_MODEL_RUNNER": "0"}},
    "not asynchronous": {"async_scheduling": False},
    "no prefix cache": {"enable_prefix_caching": False},
    "full graphs": {"compilation": {"cudagraph_mode": "FULL"}},
    "torch.compile": {"compilation": {"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"}},
    "torch.compile, qk-norm and rope as one": {
        "compilation": {
            "mode": 3,
            "cudagraph_mode": "FULL_AND_PIECEWISE",
            "custom_ops": ["+rms_norm", "+rotary_embedding"],
            "pass_config": {"enable_qk_norm_rope_fusion": True},
        }
    },
    "torch.compile, fp8": {
        "quantization": "fp8_per_channel",
        "compilation": {"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"},
    },
    "with log-probabilities": {"sampling": {"logprobs": 0, "flat_logprobs": True}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--case", nargs="+", choices=CASES, default=["rollout"])
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", action="append", default=[], type=named, metavar="NAME=JSON")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        return measure(asked.model, asked.case[0], asked.one)
    for case in asked.case:
        for name, variant in [*((name, VARIANTS[name]) for name in asked.variants), *asked.variant]:
            words = [__file__, asked.model, "--case", case, "--one", json.dumps(variant)]
            print(
                json.dumps({"case": case, "variant": name} | alone(words, variant.get("environment", {}))), flush=True
            )
    return None


def named(text: str) -> tuple[str, dict]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def alone(words: list[str], environment: dict[str, str]) -> dict:
    """What a process with these arguments printed of itself, or how it failed."""
    try:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, errors="replace",
            timeout=SECONDS, env=ENVIRONMENT | environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {SECONDS} s"}
    return found(done.stdout) or {"failed": " ".join(done.stderr.split())[-300:], "code": done.returncode}


def found(said: str) -> dict:
    """The result among the lines that a process printed; a progress bar may stand before it on its line."""
    lines = [line.split("RESULT ", 1)[1] for line in said.splitlines() if "RESULT {" in line]
    return json.loads(lines[-1]) if lines else {}


def engine_options(case: str, variant: dict) -> dict:
    """vLLM's options for a case, with what a variant changes of them."""
    from jobs.inference.vllm_settings import compilation

    shape = CASES[case]
    changed = {k: v for k, v in variant.items() if k not in ("compilation", "environment", "sampling")}
    return {
        "dtype": "float16",
        "seed": 0,
        "max_model_len": shape["length"],
        "max_num_seqs": shape["most"],
        "gpu_memory_utilization": 0.9 if case == "evaluation" else 0.4,
        "logprobs_mode": "processed_logprobs",
        "compilation_config": compilation(shape["most"]) | variant.get("compilation", {}),
    } | changed


def measure(model: str, case: str, variant: dict) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from jobs.inference.vllm_settings import prepare

    prepare()
    from vllm import LLM, SamplingParams, TokensPrompt

    began = time.perf_counter()
    engine = LLM(model, **engine_options(case, variant))
    start = time.perf_counter() - began
    shape = CASES[case]
    prompts = [TokensPrompt(prompt_token_ids=list(range(1000 + i, 1120 + i))) for i in range(shape["sequences"])]
    settings = SAMPLING[case] | variant.get("sampling", {})
    sampling = SamplingParams(max_tokens=shape["tokens"], ignore_eos=True, **settings)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        times.append(round(1000 * (time.perf_counter() - began) / shape["tokens"], 2))
    print(
        "RESULT", json.dumps({"ms_a_step": min(times[1:]), "all": times, "start_seconds": round(start, 1)}), flush=True
    )


if __name__ == "__main__":
    main()
