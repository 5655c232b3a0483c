"""The real run's jobs on one GPU, on a model of Qwen3-4B's shape with random weights: speed and memory are true.

    python tests/bench/gpu.py --tokenizer DIR --tasks DIR --out DIR [CASE ...]

Reads   --tokenizer  a folder with the Qwen3 tokenizer      --tasks  data/tasks of the real run
Writes  --out        table.md, results.json and each job's log; the model and the jobs' outputs go to --work

Every case is a job of its own, as `python -m jobs` runs it, with the committed params.yaml and what CASES sets (fewer
steps). Peak memory is the card's, sampled by nvidia-smi. `toy` runs the smoke run's pipeline with the GPU engines, and
`resume` kills its GRPO and lets it go on; `grpo-40gb` leaves 40 GiB of the card free; `sft-notebook` is plain Unsloth
with its notebooks' defaults. Of every GRPO case one step is profiled (tests/bench/step.py), into profile-CASE.json.
Results in --out are kept and added to, so the cases may run in several calls.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}"}
TFLOPS, BANDWIDTH = 790e12, 4.3e12  # an H200's, measured: bf16 matrix products, device-to-device copy
PARAMETERS, WEIGHTS, KV = 4.02e9, 8.04e9, 147e3  # of the model; bytes; bytes of keys and values a token
PROFILED = 4  # the step of GRPO
# The base's hashes are compared before the first step and after the tenth; what a card needs shows in five.
TEN, FIVE = ["--set", "grpo.steps=10"], ["--set", "grpo.steps=5"]
GRPO = ["--set", "grpo.log_completions_every=0", "--set", "checkpoints.every=1000"]
HALF = ["--set", "grpo.batch_size=8", "--set", "grpo.gradient_accumulation=8"]  # plain TRL keeps every logit
# What makes the real run fit a card of 40 GB. gpu_memory is, to Unsloth, a share of the memory that is free.
SMALL = [*HALF, "--set", "grpo.gradient_checkpointing=true", "--set", "grpo.gpu_memory=0.5"]
TRAIN = ["--base", "{model}", "--adapter", "{work}/sft", "--tasks", "{tasks}/train.jsonl"]
SFT = ["--base", "{model}", "--examples", "{work}/examples.jsonl"]

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
    "sft-unsloth-full": [
        "sft",
        *SFT,
        "--set",
        "sft.engine=unsloth",
        "--set",
        "sft.batch_size=32",
        "--set",
        "sft.epochs=12",  # three are over in ten steps, most of which go into starting
        "--out",
        "{out}/sft",
    ],
    "grpo-transformers": ["grpo", *TRAIN, *GRPO, *FIVE, *HALF, "--set", "grpo.engine=transformers"],
    "grpo-unsloth": ["grpo", *TRAIN, *GRPO, *TEN, "--set", "grpo.engine=unsloth"],
    "grpo-40gb": ["grpo", *TRAIN, *GRPO, *FIVE, *SMALL, "--set", "grpo.engine=unsloth"],
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


def run_logged(words: list, log: Path, folder: Path | None = None) -> None:
    """Runs a Python command in `folder`, with this repository's code, and its output in `log`."""
    with open(log, "w") as file:
        subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=400,
            env=ENVIRONMENT,
        )


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
    sys.path.insert(0, str(REPO))
    from jobs.base import set_chat_template

    set_chat_template(out)


def make_examples(tasks: Path, out: Path) -> None:
    """100 examples of the length that distilled ones have, about 270 tokens of answer."""
    sys.path.insert(0, str(REPO))
    from jobs.common import answer_format

    rows = [json.loads(line) for line in tasks.read_text().splitlines()][:100]
    reasoning = "The input is walked once, and what each element adds to the result is kept. " * 10
    out.write_text(
        "".join(
            json.dumps({"prompt": r["prompt"], "answer": answer_format.render(reasoning, r["reference"])}) + "\n"
            for r in rows
        )
    )


class Memory(threading.Thread):
    """The card's memory in use, at its highest, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            query = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
            self.peak = max(self.peak, int(subprocess.run(query, capture_output=True, text=True).stdout.split()[0]))


def job(words: list[str], folder: Path, log: Path, program: tuple = ("-m", "jobs")) -> dict:
    """Runs one job in `folder`; returns its wall seconds and the card's peak memory."""
    folder.mkdir(parents=True, exist_ok=True)
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    run_logged([*program, *words], log, folder)
    memory.stopped.set()
    return {"seconds": round(time.perf_counter() - began, 1), "peak_gib": round(memory.peak / 1024, 1)}


def run(case: str, options: argparse.Namespace, model: Path) -> dict:
    folder = options.work / case
    shutil.rmtree(folder, ignore_errors=True)
    values = {"model": model, "work": options.work, "tasks": options.tasks.resolve(), "out": folder}
    name, *arguments = (word.format(**values) for word in CASES[case])
    log = options.out / f"{case}.log"
    hog = Hog(40) if case == "grpo-40gb" else None
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


class Hog:
    """Takes the card's memory but for `free` GiB, from a process of its own."""

    PROGRAM = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
free, total = torch.cuda.mem_get_info()
print((total - free) / 2**30, flush=True)
sys.stdin.read()
"""

    def __init__(self, free: float) -> None:
        command = [sys.executable, "-c", self.PROGRAM, str(free)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.gib = float(self.process.stdout.readline())

    def release(self) -> float:
        """Gives the memory back; returns how much of the card was held, in GiB."""
        self.process.communicate()
        return self.gib


def provenance_of(folder: Path) -> str:
    return next((folder / "reports/provenance").glob("*.json")).stem


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def sum_of_tokens(examples: Path, model: Path) -> int:
    from transformers import AutoTokenizer

    from jobs.common import answer_format

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line) for line in examples.read_text().splitlines()]
    return sum(len(tokenizer(answer_format.chat_prompt(r["prompt"]) + r["answer"]).input_ids) + 1 for r in texts)


def toy(case: str, options: argparse.Namespace, model: Path) -> dict:
    """The smoke run's base, SFT, GRPO, merge and evaluation with Unsloth and vLLM; learning curves prove the sync."""
    import yaml

    sys.path.insert(0, str(REPO))
    from jobs.plumbing.params import merged, read_yaml

    folder = options.work / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    params = merged(read_yaml(REPO / "params.yaml"), read_yaml(REPO / "data/smoke/params.yaml"))
    params = merged(
        params,
        {
            "sft": {"engine": "unsloth", "optimizer": "adamw_8bit"},
            "grpo": {"engine": "unsloth", "rollout": "vllm", "optimizer": "adamw_8bit", "gpu_memory": 0.3, "steps": 40},
            "evaluate": {"engine": "vllm", "dtype": "float16", "gpu_memory": 0.1},
            "distill": {"recorded": str(REPO / "data/smoke/teacher.jsonl")},
        },
    )
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    models = ("base", "sft", "grpo")
    base = [] if (folder / "models/base").exists() else [["base"]]
    merges = [
        f"merge --adapter models/adapters/{m} --out models/{m} --metrics metrics/merge-{m}.json "
        f"--plot plots/merge-{m}.csv".split()
        for m in ("sft", "grpo")
    ]
    evaluations = [
        words.split()
        for m in models
        for words in (
            f"sample --model models/{m} --mode cot --out data/samples/{m}-cot",
            f"evaluate --samples data/samples/{m}-cot --out data/evaluations/{m}-cot --metrics metrics/{m}.json",
        )
    ]

    def of_toy(words: list[str]) -> dict:
        return job(words, folder, options.out / f"toy-{'-'.join(re.sub('.*/', '', w) for w in words[:3])}.log")

    for words in (*base, ["tasks"], ["distill"], ["sft"], ["grpo"], *merges, *evaluations):
        of_toy(words)
    curve = rows(folder / "plots/grpo.csv")
    differences = [float(row["logp_difference"]) for row in curve if row["logp_difference"]]
    return {
        "mean_pass@1": {m: mean_pass_at_1(folder / f"metrics/{m}.json") for m in models},
        "logp_difference": {"mean": round(sum(differences) / len(differences), 5), "max": max(differences)},
        "reward": [curve[0]["reward"], curve[-1]["reward"]],
    }


def mean_pass_at_1(metrics: Path) -> float:
    return json.loads(metrics.read_text())["toy"]["sampled"]["pass@1"]


def resume(case: str, options: argparse.Namespace, model: Path) -> dict:
    """The toy's GRPO with a checkpoint every 5 steps, killed at about step 7, against its unbroken run in `toy`."""
    folder = options.work / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        options.work / "toy", folder, ignore=shutil.ignore_patterns(".*", "grpo*", "samples", "evaluations")
    )
    words = ["grpo", "--set", "checkpoints.every=5"]
    command = [sys.executable, "-m", "jobs", *words]
    with open(options.out / "resume-killed.log", "w") as log:
        killed = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        while killed.poll() is None and not list(folder.glob(".checkpoints/grpo/*/checkpoint-5")):
            time.sleep(0.05)
        time.sleep(2)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    result = job(words, folder, options.out / "resume.log")
    unbroken, resumed = (rows(options.work / name / "plots/grpo.csv") for name in ("toy", "resume"))
    lines = (options.out / "resume.log").read_text().splitlines()
    return result | {
        "went_on": [re.sub(".*/", "", line) for line in lines if "resuming from" in line],
        "same_learning_rates": [r["learning_rate"] for r in unbroken] == [r["learning_rate"] for r in resumed],
        "reward_last_10": [
            round(sum(float(r["reward"]) for r in curve[-10:]) / 10, 4) for curve in (unbroken, resumed)
        ],
    }


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


SPECIAL = {"toy": toy, "resume": resume, "decode": decode, "decode-evaluation": decode, "sft-notebook": notebook}


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
        shown = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result.items())
        lines.append(f"| {case} | {shown} | {roofline(case)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
