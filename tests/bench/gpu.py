"""The real run's jobs on one GPU, on a model of Qwen3-4B's shape with random weights: speed and memory are true.

    python tests/bench/gpu.py --tokenizer DIR --tasks DIR --out DIR [CASE ...]

Reads   --tokenizer  a folder with the Qwen3 tokenizer      --tasks  data/tasks of the real run
Writes  --out        table.md, results.json and each job's log; the model and the jobs' outputs go to --work

Every case is a job of its own, as `python -m jobs` runs it, with the committed params.yaml and what CASES sets (fewer
steps). Peak memory is the card's, the first one of CUDA_VISIBLE_DEVICES, sampled by nvidia-smi. The `toy` cases run the
smoke run's pipeline by Unsloth or plain TRL, with vLLM; after them `losses-toy` and `losses-toy-transformers` take a few
steps by every loss, or those that --losses names; `levers` runs the toy's GRPO again by each lever of speed; `resume` kills
it and lets it go on; `grpo-40gb` and `grpo-24gb` leave as many GiB of the card free; `sft-notebook` is plain Unsloth with
its notebooks' defaults. Of every GRPO case one step is profiled (tests/bench/step.py), into profile-CASE.json.
Results in --out are kept and added to, so the cases may run in several calls.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO))
from tests.bench import gpu_toy  # noqa: E402
from tests.bench.gpu_jobs import Hog, job, rows, run_logged  # noqa: E402

TFLOPS, BANDWIDTH = 790e12, 4.3e12  # an H200's, measured: bf16 matrix products, device-to-device copy
PARAMETERS, WEIGHTS, KV = 4.02e9, 8.04e9, 147e3  # of the model; bytes; bytes of keys and values a token
PROFILED = 4  # the step of GRPO
# The base's hashes are compared before the first step and after the tenth; what a card needs shows in five.
TEN, FIVE = ["--set", "grpo.steps=10"], ["--set", "grpo.steps=5"]
GRPO = ["--set", "grpo.log_completions_every=0", "--set", "checkpoints.every=1000"]
HALF = ["--set", "grpo.batch_size=8", "--set", "grpo.gradient_accumulation=8"]  # plain TRL keeps every logit
# What makes the real run fit a card of 40 GB. gpu_memory is, to Unsloth, a share of the memory that is free.
SMALL = [
    *HALF,
    "--set",
    "grpo.rollout=vllm",
    "--set",
    "grpo.gradient_checkpointing=true",
    "--set",
    "grpo.gpu_memory=0.5",
]
# The same for one of 24 GB: recipes/grpo-24gb.yaml.
SMALLER = [
    word
    for setting in (
        "rollout=vllm", "gradient_checkpointing=true", "batch_size=2", "gradient_accumulation=32", "gpu_memory=0.6",
        "kv_cache_gib=4.0",
    )
    for word in ("--set", f"grpo.{setting}")
]  # fmt: skip
FREE = {"grpo-40gb": 40, "grpo-24gb": 24}  # GiB of the card that a case has
TRAIN = ["--base", "{model}", "--adapter", "{work}/sft", "--tasks", "{tasks}/train.jsonl"]
SFT = ["--base", "{model}", "--examples", "{work}/examples.jsonl"]

UNSLOTH = ["sft", *SFT, "--set", "sft.engine=unsloth", "--out", "{out}/sft"]
EVALUATE = [
    "evaluate",
    "--model",
    "{model}",
    "--mode",
    "cot",
    "--benchmark",
    "humaneval",
    "--benchmarks-dir",
    "{tasks}",
    "--set",
    "evaluate.sampled.n=0",
]

# name -> job and arguments; {out} is the case's own folder
CASES = {
    "sft-transformers": ["sft", *SFT, "--set", "sft.engine=transformers", "--out", "{work}/sft"],
    "sft-unsloth": ["sft", *SFT, "--set", "sft.engine=unsloth", "--out", "{work}/sft"],
    # Three epochs are over in ten steps, most of which go into starting.
    "sft-unsloth-full": [*UNSLOTH, "--set", "sft.batch_size=32", "--set", "sft.epochs=12"],
    "sft-unsloth-unsaved": [*UNSLOTH, "--set", "checkpoints.every=1000"],  # what checkpoints take of it
    "sft-unsloth-torch": [*UNSLOTH, "--set", "checkpoints.every=1000", "--set", "sft.optimizer=adamw_torch"],
    "grpo-transformers": ["grpo", *TRAIN, *GRPO, *FIVE, *HALF, "--set", "grpo.engine=transformers"],
    "grpo-unsloth": ["grpo", *TRAIN, *GRPO, *TEN, "--set", "grpo.engine=unsloth"],
    "grpo-40gb": ["grpo", *TRAIN, *GRPO, *FIVE, *SMALL, "--set", "grpo.engine=unsloth"],
    "grpo-24gb": ["grpo", *TRAIN, *GRPO, *FIVE, *SMALLER, "--set", "grpo.engine=unsloth"],
    "evaluate-cold": EVALUATE,
    "evaluate-warm": EVALUATE,  # again, with the compile caches that the cold one left
    "merge": [
        "merge",
        "--base",
        "{model}",
        "--adapter",
        "{work}/sft",
        "--out",
        "{out}/merged",
        "--set",
        "merge.min_retention=0.0",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tokenizer", "tasks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/bench-gpu"))
    parser.add_argument("--no-model", action="store_true", help="only cases that need no 4B model")
    parser.add_argument("--losses", nargs="+", choices=gpu_toy.LOSSES, default=[*gpu_toy.LOSSES], help="of losses-*")
    parser.add_argument("--together", type=int, default=3, help="runs of `levers` that share the card at a time")
    parser.add_argument("cases", nargs="*", default=[*CASES, *SPECIAL])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.work / "model"
    if not model.exists() and not options.no_model:
        make_model(options.tokenizer, model)
    make_examples(options.tasks / "train.jsonl", options.work / "examples.jsonl")
    kept = options.out / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for case in options.cases:
        try:
            results[case] = SPECIAL.get(case, run)(case, options, model)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            results[case] = {"failed": str(error)[-120:]}
        print(case, json.dumps(results[case]), flush=True)
        kept.write_text(json.dumps(results, indent=2))
        (options.out / "table.md").write_text(table(results))
    print(table(results))


def make_model(tokenizer: Path, out: Path) -> None:
    """Qwen3-4B's shape, random bfloat16 weights, 8.0 GB."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rope_theta=1000000,
        eos_token_id=151643,
        pad_token_id=151643,
        bos_token_id=None,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(out, max_shard_size="5GB")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(out)
    from jobs.base import set_chat_template

    set_chat_template(out)


def make_examples(tasks: Path, out: Path) -> None:
    """100 examples of the length that distilled ones have, about 270 tokens of answer."""
    from jobs.common import answer_format

    rows = [json.loads(line) for line in tasks.read_text().splitlines()][:100]
    reasoning = "The input is walked once, and what each element adds to the result is kept. " * 10
    out.write_text(
        "".join(
            json.dumps({"prompt": r["prompt"], "answer": answer_format.render(reasoning, r["reference"])}) + "\n"
            for r in rows
        )
    )


def run(case: str, options: argparse.Namespace, model: Path) -> dict:
    folder = options.work / case
    shutil.rmtree(folder, ignore_errors=True)
    values = {"model": model, "work": options.work, "tasks": options.tasks.resolve(), "out": folder}
    name, *arguments = (word.format(**values) for word in CASES[case])
    log = options.out / f"{case}.log"
    hog = Hog(FREE[case]) if case in FREE else None
    profile = options.out.resolve() / f"profile-{case}.json"
    program = (REPO / "tests/bench/step.py", str(PROFILED), profile) if name == "grpo" else ("-m", "jobs")
    result = job([name, "--params", str(REPO / "params.yaml"), *arguments], folder, log, program)
    if hog:
        result["peak_gib"] = round(result["peak_gib"] - hog.release(), 1)
    facts = json.loads((folder / "reports/provenance" / f"{provenance_of(folder)}.json").read_text())
    if name == "grpo":
        result |= {f"{k}_a_step": round(v, 2) for k, v in facts["seconds_of_a_step"].items()}
        compared = [row["logp_difference"] for row in rows(folder / "plots/grpo.csv") if row["logp_difference"]]
        result["logp_difference"] = float(compared[-1] if compared else "nan")
        profiled = json.loads(profile.read_text())
        result["profiled"] = {part: profiled[part] for part in ("seconds", "gpu_seconds", "launches")}
    if name == "sft":
        seconds = float(facts["train_seconds"])
        set_epochs = [int(word.removeprefix("sft.epochs=")) for word in arguments if word.startswith("sft.epochs=")]
        epochs = (set_epochs or [3])[0]
        tokens = epochs * sum_of_tokens(options.work / "examples.jsonl", model)
        result |= {"train_seconds": round(seconds, 1), "tokens_a_second": round(tokens / seconds)}
    if name == "merge":
        began = time.perf_counter()
        shutil.copytree(model, options.work / "copy")
        os.sync()
        result["cp_seconds"] = round(time.perf_counter() - began, 1)
        shutil.rmtree(options.work / "copy")
    if name == "evaluate":
        result |= {f"{k}_seconds": v for k, v in facts["seconds_by_phase"].items()} | {"tokens": facts["tokens"]}
    return result


def provenance_of(folder: Path) -> str:
    return next((folder / "reports/provenance").glob("*.json")).stem


def sum_of_tokens(examples: Path, model: Path) -> int:
    from transformers import AutoTokenizer

    from jobs.common import answer_format

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line) for line in examples.read_text().splitlines()]
    return sum(len(tokenizer(answer_format.chat_prompt(r["prompt"]) + r["answer"]).input_ids) + 1 for r in texts)


def notebook(case: str, options: argparse.Namespace, model: Path) -> dict:
    """tests/bench/notebook.py: plain Unsloth, as its notebooks set it up, on the same examples and batch."""
    log = options.out / "sft-notebook.log"
    run_logged([REPO / "tests/bench/notebook.py", model, options.work / "examples.jsonl"], log, options.work)
    seconds = float(re.findall(r"^TRAIN (\S+)$", log.read_text(), re.M)[-1])
    tokens = 3 * sum_of_tokens(options.work / "examples.jsonl", model)
    return {"train_seconds": round(seconds, 1), "tokens_a_second": round(tokens / seconds)}


def decode(case: str, options: argparse.Namespace, model: Path) -> dict:
    """tests/bench/decode.py: what a decode step of the rollout, or of a greedy evaluation, consists of."""
    log = options.out / f"{case}.log"
    words = ["--evaluation"] if case == "decode-evaluation" else [options.work / "sft"]
    run_logged([REPO / "tests/bench/decode.py", model, *words], log)
    found = [json.loads(line.split("DECODE ", 1)[1]) for line in log.read_text().splitlines() if "DECODE {" in line]
    return {k: v for part in found for k, v in part.items()}


SPECIAL = {
    **dict.fromkeys(gpu_toy.ENGINES, gpu_toy.toy),
    **{f"losses-{case}": gpu_toy.losses for case in ("toy", "toy-transformers")},
    "levers": gpu_toy.levers,
    "resume": gpu_toy.resume,
    "decode": decode,
    "decode-evaluation": decode,
    "sft-notebook": notebook,
}


def roofline(case: str) -> str:
    if case.startswith("grpo"):
        tokens = 64 * 512
        rollout = 512 * (WEIGHTS + 64 * 400 * KV) / BANDWIDTH
        train = 4 * PARAMETERS * 2 * (tokens + 64 * 120) / TFLOPS
        return f"{rollout + train:.1f} s a step"
    if case.startswith("evaluate"):
        return f"{1024 * (WEIGHTS + 164 * 632 * KV) / BANDWIDTH:.1f} s for 164 x 1,024 tokens"
    return ""


def table(results: dict) -> str:
    lines = ["| case | result | roofline |", "|---|---|---|"]
    for case, result in results.items():
        below = case == "levers" and "failed" not in result
        shown = "below" if below else ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result.items())
        lines.append(f"| {case} | {shown} | {roofline(case)} |")
    of_levers = results.get("levers", {})
    more = "\n" + gpu_toy.levers_table(of_levers) if of_levers and "failed" not in of_levers else ""
    return "\n".join(lines) + "\n" + more


if __name__ == "__main__":
    main()
