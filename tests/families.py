"""Tiny random models of many families through every stage: which stage works, and which refuses, for what reason.

    python tests/families.py                                       # all, on a CPU: what docs/models.md shows
    python tests/families.py --only llama 'mistral, sliding window'
    python tests/families.py --engine unsloth --rollout vllm --only qwen3 qwen2 llama gemma3       # on a GPU, offline

A model has about a million parameters and a tokenizer of its family's kind, trained on a few lines. Each family runs in a
process of its own, by the jobs' own functions. A stage `works`, is `refused` with the one line that it said, or is not
reached since an earlier one refused. Results are kept in docs/models.json, and docs/models.md is made from them.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jobs.common.errors import JobError, one_line  # noqa: E402
from jobs.plumbing.params import Params, load  # noqa: E402
from tests.toy import make_pieces_tokenizer, make_tokenizer  # noqa: E402

PAGE = ROOT / "docs/models.md"
RESULTS = ROOT / "docs/models.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "unsloth", "vllm", "llama-cpp-python")
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
    "deepseek_v2": (
        "DeepseekV2",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": 64,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
        },
    ),
    "gpt_oss, YaRN": ("GptOss", {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 1024, "n_ctx": 1024}),
}
TARGETS = {
    "phi3": ["qkv_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "deepseek_v2": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}
# How a family's published tokenizer is made, where it is not byte-level BPE without a token before the text.
TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "llama": lambda out: make_tokenizer(out, bos=True),
    "mistral": lambda out: make_pieces_tokenizer(out, prepend=True),
    "mistral, sliding window": lambda out: make_pieces_tokenizer(out, prepend=True),
    "gemma2": lambda out: make_pieces_tokenizer(out, prepend=False),
    "gemma3": lambda out: make_pieces_tokenizer(out, prepend=False),
    "gemma3, text and images": lambda out: make_pieces_tokenizer(out, prepend=False),
    "phi3": lambda out: make_pieces_tokenizer(out, prepend=True),
}

ROLLOUTS = {
    "transformers": ", on a CPU",
    "vllm": " and vLLM",
    "vllm_merged": " and vLLM on the sum of base and adapter",
}


def make(family: str, out: Path) -> None:
    """Writes the random model of a family, with its tokenizer."""
    import torch
    import transformers

    prefix, keys = FAMILIES[family]
    TOKENIZERS.get(family, make_tokenizer)(out)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    size = SIZE | {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    if "vision_config" in keys:
        config = transformers.Gemma3Config(
            text_config=size | FAMILIES["gemma3"][1], vision_config=keys["vision_config"], mm_tokens_per_image=4
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        text = "TextConfig" if prefix in ("Gemma3", "Qwen3_5") else "Config"
        config = getattr(transformers, prefix + text)(**size | keys)
        head = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
        model = getattr(transformers, prefix + head)(config)
    # transformers makes the embedding of the padding token zero. Here that token is also the end of a text, and no training
    # of an adapter could raise its logit where the head is the embedding.
    model.get_input_embeddings().weight.data[tokenizer.pad_token_id].normal_(std=SIZE["initializer_range"])
    model.to(torch.bfloat16).save_pretrained(out)


def settings(family: str, base: Path, engine: str, rollout: str) -> Params:
    from jobs.common.files import sha256

    limits = json.dumps({kind: {"kl": kl, "top1": 0.0, "drop": 1.0} for kind, kl in
                         (("F16", 1e-3), ("Q8_0", 0.05), ("Q4_K_M", 0.5))})  # fmt: skip
    targets = json.dumps(TARGETS.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"]))
    sampling, dtype = ("transformers", "float32") if rollout == "transformers" else ("vllm", "bfloat16")
    return load(
        ROOT / "params.yaml",
        [
            f"base.folder={{path: '{base}', sha256: '{sha256(base)}'}}",
            f"sft.engine={engine}", "sft.optimizer=adamw_torch", "sft.epochs=1", "sft.batch_size=2",
            "sft.gradient_accumulation=1", "sft.max_length=512", f"sft.lora={{rank: 8, alpha: 8, targets: {targets}}}",
            f"grpo.engine={engine}", f"grpo.rollout={rollout}", "grpo.optimizer=adamw_torch", "grpo.steps=2",
            "grpo.generations=2", "grpo.batch_size=4", "grpo.gradient_accumulation=1", "grpo.max_completion_length=12",
            "merge.dtype=float32", f"evaluate.engine={sampling}", f"evaluate.dtype={dtype}", "evaluate.max_tokens=12",
            "grpo.gpu_memory=0.06", "grpo.kv_cache_gib=1", "evaluate.gpu_memory=0.06", "evaluate.kv_cache_gib=1",
            "evaluate.benchmarks=[toy]",
            "evaluate.sampled={n: 1, temperature: 0.8, top_p: 0.95}",
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
        "merge": lambda: merge.run(params, model, trained(), Path("merged"), metrics, curve),
        "sample": lambda: sample.run(params, merged(), None, "cot", ["toy"], data, Path("samples")),
        "gguf": lambda: gguf.run(params, model, trained(), data / "toy.jsonl", Path("gguf"), metrics),
        "generate": lambda: [list(generate.run(params, file, None, "Add 1.", False)) for file in answering()],
    }


def trained() -> list[Path]:
    """The last adapter, if there is one."""
    return [folder for folder in (Path("grpo"), Path("sft")) if folder.exists()][:1]


def merged() -> Path:
    return Path("merged") if Path("merged").exists() else Path("base")


def answering() -> list[Path]:
    return [merged(), *sorted(Path("gguf").glob("*.gguf"))]


def cells(family: str, engine: str, rollout: str, wanted: Sequence[str]) -> dict[str, str]:
    """By stage: "works", or why not. The stages that train or sum are not reached once one of them has refused.

    With vLLM every stage has a process of its own, as in a run: they leave too much behind.
    """
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make(family, Path("source"))
        Path("data").mkdir()
        write_data(Path("data"))
        found: dict[str, str] = {}
        for stage in (stage for stage in STAGES if stage in wanted):
            if stage in ("grpo", "merge") and found.get("sft") != "works":
                found[stage] = "not reached"
            elif rollout == "transformers":
                found[stage] = cell(family, engine, rollout, stage)
            else:
                try:
                    found[stage] = apart("--here", "--stages", stage, *arguments(family, engine, rollout))
                except SystemExit as ended:  # it died, so that it could not say what of
                    found[stage] = f"FAULT: {one_line(ended)}"
        os.chdir("/")
    return found


def cell(family: str, engine: str, rollout: str, stage: str) -> str:
    """What comes of one stage in the working folder, which holds the family's model as `source`."""
    try:
        stages(settings(family, Path("source"), engine, rollout))[stage]()
    except JobError as error:
        return "refused: " + re.sub(rf"(?:{re.escape(str(Path.cwd()))}/)?base: ", "", str(error))
    except Exception as error:  # a bug, which the table shows as one
        traceback.print_exc()
        return f"FAULT: {one_line(error)}"
    return "works"


def arguments(family: str, engine: str, rollout: str) -> list[str]:
    return ["--engine", engine, "--rollout", rollout, "--only", family]


def apart(*words: str) -> Any:
    """The JSON that this program prints last, called with `words`. Errors: SystemExit if it fails."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(words)}` ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, dict[str, str]]) -> str:
    """Markdown: a row a family, and below it the reasons, numbered."""
    reasons: list[str] = []
    shown = [stage for stage in STAGES if any(stage in row for row in rows.values())]

    def cell(text: str) -> str:
        if text in ("works", "not reached"):
            return text.replace("not reached", "–")
        kind, _, reason = text.partition(": ")
        if reason not in reasons:
            reasons.append(reason)
        return f"{kind} ({reasons.index(reason) + 1})"

    lines = ["| family | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(row.get(stage, "not reached")) for stage in shown) + " |"
              for name, row in rows.items()]  # fmt: skip
    return "\n".join([*lines, *([""] if reasons else []), *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


HEAD = """\
# Which models go through which stage

A tiny random model of each family was taken through every stage by `tests/families.py` (`make families`), which made this
page. `jobs base` says the same of a model of yours, as far as its configuration tells, before anything is trained. GGUF
means F16, Q8_0 and Q4_K_M, at a mean KL of at most 0.001, 0.05 and 0.5 from transformers in float32, near the begin and at
the end of a text as long as the model takes. A dash: not reached, since a stage before it refused. On tokens and targets:
[tokens.md](tokens.md).
"""


def page(results: dict) -> str:
    parts = [HEAD]
    for name, runs in results.items():
        parts.append(f"\n## {name}\n")
        for run in runs:
            used = ", ".join(f"{package} {version}" for package, version in run["with"].items())
            parts.append(f"\n{used}\n\n{table(run['rows'])}\n")
    return "".join(parts)


def keep(name: str, used: dict[str, str], rows: dict[str, dict[str, str]]) -> None:
    """Puts the rows in the place of this set of engines' former ones of these families, and makes the page anew.

    Rows made with the same versions and card stand together, in the order of FAMILIES.
    """
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    runs = results.setdefault(name, [])
    for run in runs:
        run["rows"] = {family: row for family, row in run["rows"].items() if family not in rows}
    alike = next((run for run in runs if run["with"] == used), None)
    if alike is None:
        runs.append(alike := {"with": used, "rows": {}})
    both = alike["rows"] | rows
    alike["rows"] = {family: both[family] for family in FAMILIES if family in both}
    results[name] = [run for run in runs if run["rows"]]
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


def versions() -> dict[str, str]:
    import torch

    found = {"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--engine", default="transformers", choices=("transformers", "unsloth"), help="of training")
    parser.add_argument("--rollout", default="transformers", choices=ROLLOUTS, help="and of sampling")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="where llama.cpp is not installed")
    parser.add_argument("--one", action="store_true", help="of --only's family, as JSON on stdout; keeps nothing")
    parser.add_argument("--here", action="store_true", help="the same of --stages' one, in the working folder")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(cell(asked.only[0], asked.engine, asked.rollout, asked.stages[0])))
        return
    if asked.one:
        print(json.dumps(cells(asked.only[0], asked.engine, asked.rollout, asked.stages)))
        return
    name = "Plain transformers, PEFT and TRL" if asked.engine == "transformers" else "Unsloth"
    name += ROLLOUTS[asked.rollout]
    for family in asked.only or FAMILIES:
        row = apart("--one", "--stages", *asked.stages, *arguments(family, asked.engine, asked.rollout))
        print(family, json.dumps(row), file=sys.stderr, flush=True)
        keep(name, versions(), {family: row})


if __name__ == "__main__":
    main()
