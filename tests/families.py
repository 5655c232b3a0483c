"""Tiny random models of many families through every stage: which stage works, and which refuses, for what reason.

    python tests/families.py [FAMILY ...]     # all: writes the table of docs/models.md

A model has about a million parameters and the tests' own byte-level BPE. Each family runs in one process, by the jobs'
own functions. A stage `works`, is `refused` with the one line that it said, or is not reached since an earlier one refused.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jobs.common.errors import JobError, one_line  # noqa: E402
from jobs.plumbing.params import Params, load  # noqa: E402
from tests.toy import make_tokenizer  # noqa: E402

PAGE = ROOT / "docs/models.md"
STAGES = ("base", "sft", "grpo", "merge", "sample", "gguf", "generate")
SIZE = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.06, "bos_token_id": None,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
EXPERTS = {"moe_intermediate_size": 256, "num_experts": 4, "num_experts_per_tok": 2}
SEEN = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
# By family: the prefix of transformers' classes, and what its configuration says beside SIZE.
FAMILIES: dict[str, tuple[str, dict]] = {
    "qwen3": ("Qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {"head_dim": 64}),
    "mistral": ("Mistral", {"head_dim": 64, "sliding_window": None}),
    "mistral, sliding window": ("Mistral", {"head_dim": 64, "sliding_window": 64}),
    "gemma2": ("Gemma2", {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64}),
    "gemma3": ("Gemma3", {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64, "num_hidden_layers": 6}),
    "gemma3, text and images": ("Gemma3", {"vision_config": SEEN | {"image_size": 28, "patch_size": 14}}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "granite": ("Granite", {}),
    "olmo2": ("Olmo2", {}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | {"head_dim": 64, "norm_topk_prob": True}),
    "qwen3_moe, weights not normalized": ("Qwen3Moe", EXPERTS | {"head_dim": 64, "norm_topk_prob": False}),
    "qwen3_5": ("Qwen3_5", LINEAR | {"head_dim": 64, "num_hidden_layers": 4}),
    "qwen3_next": (
        "Qwen3Next",
        LINEAR | EXPERTS | {"head_dim": 64, "num_hidden_layers": 4, "shared_expert_intermediate_size": 256},
    ),
    "gpt_oss, YaRN": ("GptOss", {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 1024}),
}
TARGETS = {"phi3": ["qkv_proj", "o_proj"], "gpt2": ["c_attn", "c_proj"]}


def make(family: str, out: Path) -> None:
    """Writes the random model of a family, with its tokenizer."""
    import torch
    import transformers

    prefix, keys = FAMILIES[family]
    make_tokenizer(out)
    torch.manual_seed(0)
    if "vision_config" in keys:
        config = transformers.Gemma3Config(
            text_config=SIZE | FAMILIES["gemma3"][1], vision_config=keys["vision_config"], mm_tokens_per_image=4
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        text = "TextConfig" if prefix in ("Gemma3", "Qwen3_5") else "Config"
        config = getattr(transformers, prefix + text)(**SIZE | keys)
        head = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
        model = getattr(transformers, prefix + head)(config)
    model.to(torch.bfloat16).save_pretrained(out)


def settings(family: str, base: Path) -> Params:
    from jobs.common.files import sha256

    limits = json.dumps({kind: {"kl": kl, "top1": 0.0, "drop": 1.0} for kind, kl in
                         (("F16", 1e-3), ("Q8_0", 0.01), ("Q4_K_M", 0.2))})  # fmt: skip
    targets = json.dumps(TARGETS.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"]))
    return load(
        ROOT / "params.yaml",
        [
            f"base.folder={{path: '{base}', sha256: '{sha256(base)}'}}",
            "sft.engine=transformers", "sft.optimizer=adamw_torch", "sft.epochs=1", "sft.batch_size=2",
            "sft.gradient_accumulation=1", "sft.max_length=512", f"sft.lora={{rank: 8, alpha: 8, targets: {targets}}}",
            "grpo.engine=transformers", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch", "grpo.steps=2",
            "grpo.generations=2", "grpo.batch_size=4", "grpo.gradient_accumulation=1", "grpo.max_completion_length=12",
            "merge.dtype=float32", "evaluate.engine=transformers", "evaluate.dtype=float32", "evaluate.max_tokens=12",
            "evaluate.benchmarks=[toy]", "evaluate.sampled={n: 1, temperature: 0.8, top_p: 0.95}",
            "gguf.types=[F16, Q8_0, Q4_K_M]", f"gguf.limits={limits}", "gguf.tasks=2", "gguf.max_tokens=12",
            "sandbox.require=[]", "sandbox.workers=1",
        ],
    )  # fmt: skip


def write_data(folder: Path) -> None:
    from jobs.common.answer_format import render
    from jobs.common.files import write_jsonl

    tasks = [
        {
            "task_id": f"Toy/{i}", "prompt": f'def f{i}(a):\n    """Add {i}."""\n', "entry_point": f"f{i}", "setup": "",
            "tests": [f"assert f{i}(1) == {i + 1}"], "reference": f"def f{i}(a):\n    return a + {i}\n",
            "source": "toy", "license": "MIT",
        }
        for i in range(4)
    ]  # fmt: skip
    write_jsonl(folder / "toy.jsonl", tasks)
    rows = [{"prompt": task["prompt"], "answer": render("It adds.", task["reference"])} for task in tasks]
    write_jsonl(folder / "examples.jsonl", rows)


def stages(params: Params) -> dict[str, Callable[[], object]]:
    from jobs import base, generate, merge, sample, sft
    from jobs.gguf import job as gguf
    from jobs.grpo import job as grpo

    model, data = Path("base"), Path("data")
    curve, metrics = Path("c.csv"), Path("m.json")
    return {
        "base": lambda: base.run(params, model),
        "sft": lambda: sft.run(params, model, data / "examples.jsonl", Path("sft"), metrics, curve),
        "grpo": lambda: grpo.run(
            params, model, Path("sft"), data / "toy.jsonl", None, Path("grpo"), metrics, curve, Path("k.jsonl")
        ),
        "merge": lambda: merge.run(params, model, [Path("grpo")], Path("merged"), metrics, curve),
        "sample": lambda: sample.run(params, merged(), None, "cot", ["toy"], data, Path("samples")),
        "gguf": lambda: gguf.run(params, model, trained(), data / "toy.jsonl", Path("gguf"), metrics),
        "generate": lambda: [list(generate.run(params, file, None, "Add 1.", False)) for file in answering()],
    }


def trained() -> list[Path]:
    return [Path("grpo")] if Path("grpo").exists() else []


def merged() -> Path:
    return Path("merged") if Path("merged").exists() else Path("base")


def answering() -> list[Path]:
    return [merged(), *sorted(Path("gguf").glob("*.gguf"))]


def cells(family: str) -> dict[str, str]:
    """By stage: "works", or why not. The stages that train or sum are not reached once one of them has refused."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make(family, Path("source"))
        Path("data").mkdir()
        write_data(Path("data"))
        found: dict[str, str] = {}
        for stage, run in stages(settings(family, Path("source"))).items():
            if stage in ("grpo", "merge") and found["sft"] != "works":
                found[stage] = "not reached"
                continue
            try:
                run()
                found[stage] = "works"
            except JobError as error:
                found[stage] = "refused: " + re.sub(rf"(?:{re.escape(folder)}/)?base: ", "", str(error))
            except Exception as error:  # a bug, which the table shows as one
                found[stage] = f"FAULT: {one_line(error)}"
        os.chdir("/")
    return found


def table(rows: dict[str, dict[str, str]]) -> str:
    """Markdown: a row a family, and below it the reasons, numbered."""
    reasons: list[str] = []

    def cell(text: str) -> str:
        if text in ("works", "not reached"):
            return text.replace("not reached", "–")
        kind, _, reason = text.partition(": ")
        if reason not in reasons:
            reasons.append(reason)
        return f"{kind} ({reasons.index(reason) + 1})"

    lines = ["| family | " + " | ".join(STAGES) + " |", "|---" * (len(STAGES) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(row[stage]) for stage in STAGES) + " |" for name, row in rows.items()]
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


HEAD = """\
# Which models go through which stage

Made by `make families`, which takes a tiny random model of each family through every stage on a CPU
(`tests/families.py`). GGUF means F16, Q8_0 and Q4_K_M, each within its limit of KL from transformers in float32, near the
begin and at the end of a text as long as the model takes. `jobs base` says the same of a model of yours, as far as its
configuration tells, before anything is trained.

"""


def main() -> None:
    import subprocess

    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(cells(sys.argv[2])))
        return
    rows = {}
    for family in sys.argv[1:] or FAMILIES:
        words = [sys.executable, __file__, "--one", family]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{family}: {done.stderr[-2000:]}")
        rows[family] = json.loads(done.stdout.splitlines()[-1])
        print(family, json.dumps(rows[family]), file=sys.stderr, flush=True)
    if sys.argv[1:]:
        print(table(rows))
    else:
        PAGE.write_text(HEAD + table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
