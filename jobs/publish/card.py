"""The model card, made from what the runs recorded and measured; the present params are asked for the licence alone."""

from jobs.common.answer_format import SYSTEM_PROMPT
from jobs.common.errors import JobError
from jobs.publish.ties import Published

ROWS = (
    ("learning rate", "learning_rate"),
    ("warm-up", "warmup_ratio"),
    ("weight decay", "weight_decay"),
    ("optimizer", "optimizer"),
    ("batch size", "batch_size"),
    ("accumulation", "gradient_accumulation"),
    ("engine", "engine"),
)


def card(license: str, repo: str, published: Published, measured: dict[str, dict], roles: dict[str, str]) -> str:
    """The card as Markdown with the Hub's front matter.

    measured: the metrics of `merge`, `gguf` and `compare`. roles: what each of compare's models is, as `check_scores`
    says. Errors: JobError for a GGUF file without figures, and for figures without a file.
    """
    source = published.merged.get("source") or {}
    origin = source.get("repo")
    return "\n".join(
        [
            "---",
            f"license: {license}",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            *([f"base_model: {origin}", "base_model_relation: finetune"] if origin else []),
            "tags: [code, lora, gguf]",
            "---",
            "",
            f"# {repo.partition('/')[2]}",
            "",
            f"Writes Python functions: {base_in_words(source)}{training_in_words(published.run)}.",
            "",
            "## Scores",
            "",
            *scores(measured["compare"], roles),
            "",
            "## Use",
            "",
            *usage(repo, source, published),
            "",
            *training(published.run),
            "## Precision",
            "",
            *precision(published, measured["merge"], measured["gguf"]),
            "",
            "## Licence",
            "",
            f"{license}."
            + (f" It is to be the base model's, [{origin}](https://huggingface.co/{origin})." * bool(origin)),
            "",
        ]
    )


def base_in_words(source: dict) -> str:
    if source.get("repo"):
        return f"[{source['repo']}](https://huggingface.co/{source['repo']}) at revision `{source['revision']}`"
    if source.get("gguf"):
        return (
            f"a base model read from the GGUF file `{source['gguf']}` (sha256 `{source['sha256']}`) and dequantized, "
            "so that what its quantization lost stays lost"
        )
    if source.get("folder"):
        return f"a base model that is not on the Hub (`{source['folder']}`, sha256 `{source['sha256']}`)"
    if source.get("toy"):
        return "a toy model trained from scratch on generated functions"
    return "a base model whose origin is not recorded"


def chain(run: dict | None) -> list[dict]:
    """The runs by which an adapter was trained, the first one first."""
    runs: list[dict] = []
    while isinstance(run, dict):
        runs.insert(0, run)
        run = (run.get("continues") or {}).get("run")
    return runs


def training_in_words(run: dict | None) -> str:
    words = ""
    for one in chain(run):
        if one["job"] == "sft":
            words += f", fine-tuned on {one['examples']} worked examples (of {', '.join(one['teachers'])})"
        else:
            words += f", then trained with GRPO on {one['tasks']} tasks, rewarded by running its programs against tests"
    return words or ", with an adapter whose training is not recorded"


def scores(compare: dict, roles: dict[str, str]) -> list[str]:
    """A table of every benchmark and mode: each model's pass@1 with its interval, then the differences."""
    lines = ["| benchmark | mode | model | pass@1 | interval |", "|---|---|---|---|---|"]
    differences = []
    for benchmark, modes in sorted(compare.items()):
        for mode, entries in sorted(modes.items()):
            for model, values in entries.items():
                if "pass@1" in values:
                    rate, role = values["pass@1"], roles.get(model)
                    name = f"{model} ({role})" if role and role != "another model" else model
                    name = f"**{name}**" if role == "this model" else name
                    lines.append(f"| {benchmark} | {mode} | {name} | {rate['mean']:.1%} | {interval(rate)} |")
                elif "mean" in values:
                    said = "established" if values.get("established") else "not established"
                    pair = model.replace("-", " against ")
                    differences.append(
                        f"- {benchmark}, {mode}: {pair} {values['mean']:+.1%} ({interval(values)}), {said}"
                    )
    return [
        *lines,
        "",
        *differences,
        "",
        "Mean pass@1 over samples, with intervals; a difference is called established if a paired test says so after "
        "correction for the number of comparisons. One training run: another seed gives other weights. The weights that "
        "were scored are those in this repository, by their hash.",
    ]


def interval(values: dict) -> str:
    return f"{values['low']:.1%} to {values['high']:.1%}" if {"low", "high"} <= values.keys() else "none"


def usage(repo: str, source: dict, published: Published) -> list[str]:
    files = [name for name in published.files if name.startswith("gguf/")]
    where = f'"{source["repo"]}", revision="{source["revision"]}"' if source.get("repo") else '"BASE"'
    return [
        "The prompt is the one of training, to the last blank line. The chat template renders it, and puts the system "
        "prompt below before a conversation that has none. The model answers `<START_WORKING_OUT>` reasoning "
        "`</END_WORKING_OUT>` `<SOLUTION>` code `</SOLUTION>`.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'SYSTEM = """\\\n{SYSTEM_PROMPT}"""',
        "PROMPT = '''def add(a, b):\n    \"\"\"The sum of a and b.\"\"\"'''",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")',
        'messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]',
        "text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
        'inputs = tokenizer(text, return_tensors="pt").to(model.device)',
        "answer = model.generate(**inputs, max_new_tokens=1024, do_sample=False, repetition_penalty=1.0)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
        "",
        "The adapter alone, on its base"
        + (":" if source.get("repo") else ", which is not on the Hub (BASE is a folder that holds it):"),
        "",
        "```py",
        "from peft import PeftModel",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({where})",
        f'model = PeftModel.from_pretrained(base, "{repo}", subfolder="adapter")',
        "```",
        "",
        f"With llama.cpp: `llama-server --jinja -m {files[-1]}`, which renders the same prompt.",
        "",
        "It writes code that nobody has read: run it in a sandbox.",
    ]


def training(run: dict | None) -> list[str]:
    """The settings of every run that the adapter went through, as it recorded them."""
    runs = chain(run)
    if not runs:
        return []
    lora = runs[-1]["lora"]
    targets = ", ".join(lora["targets"])
    lines = [
        "## Training",
        "",
        "| | " + " | ".join(one["job"].upper() for one in runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    for label, key in ROWS:
        lines.append(f"| {label} | " + " | ".join(str(one["settings"].get(key)) for one in runs) + " |")
    lines.append("| length | " + " | ".join(length(one) for one in runs) + " |")
    lines.append("| seed | " + " | ".join(str(one["seed"]) for one in runs) + " |")
    lines += ["", f"LoRA of rank {lora['rank']}, alpha {lora['alpha']}, on {targets}."]
    for one in runs:
        if one["job"] == "grpo":
            grpo = one["settings"]
            lines.append(
                f"GRPO: loss {grpo['loss']}, beta {grpo['beta']}, temperature {grpo['temperature']}, top-p {grpo['top_p']}."
            )
    return [*lines, ""]


def length(run: dict) -> str:
    settings = run["settings"]
    if "epochs" in settings:
        return f"{settings['epochs']} epochs"
    return f"{settings['steps']} steps of {settings['generations']} samples a prompt"


def precision(published: Published, merge: dict, gguf: dict) -> list[str]:
    names = [name.removeprefix("gguf/") for name in published.files if name.startswith("gguf/")]
    kinds = {kind: figures for kind, figures in gguf.items() if kind != "reference"}
    for name in names:
        if not any(name.endswith(f"-{kind}.gguf") for kind in kinds):
            raise JobError(f"{name}: the metrics say nothing of this file")
    return [
        f"The adapter was added to the base once, in float64, and stored as {published.merged['stored']}: "
        f"{merge['retention']:.2%} of the update survived, along its direction, with a relative error of "
        f"{merge['relative_error']:.2%}. Load it in that dtype: casting it to another loses what this kept.",
        "",
        "| GGUF | size | mean KL to float32 | same first choice | pass@1 |",
        "|---|---|---|---|---|",
        *(row_of(kind, figures, names) for kind, figures in kinds.items()),
        f"| float32 by transformers | | | | {gguf['reference']['pass@1']:.1%} |",
        "",
        f"On {gguf['reference']['tasks']} tasks, greedily.",
    ]


def row_of(kind: str, figures: dict, files: list[str]) -> str:
    name = next((name for name in files if name.endswith(f"-{kind}.gguf")), None)
    if name is None:
        raise JobError(f"the metrics tell of a {kind} file, which the GGUF folder lacks")
    return (
        f"| `{name}` | {figures['bytes'] / 1e9:.2f} GB | {figures['kl']:.2g} | {figures['top1']:.1%} "
        f"| {figures['pass@1']:.1%} |"
    )
