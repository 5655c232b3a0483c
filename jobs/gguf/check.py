"""Whether a GGUF file is the model it was made from: llama.cpp beside transformers in float32 on the same prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.answer_format import chat_prompt, messages
from jobs.common.errors import JobError, one_line
from jobs.common.task import read_tasks
from jobs.extraction.worker import Extractor
from jobs.inference import Sampling
from jobs.plumbing.cli import log, progress
from jobs.weights.adapter import attach
from jobs.weights.safetensors import shards

if TYPE_CHECKING:
    import numpy as np

    from jobs.plumbing.params import Params

Logits = Callable[[list[int], int], "np.ndarray"]  # tokens, first position -> float32 [positions from it, vocabulary]


def check(params: "Params", base: Path, adapters: list[Path], tasks: Path, files: dict[str, Path]) -> dict[str, dict]:
    """For each file: token-level KL from the reference, top-1 agreement and pass@1, on `gguf.tasks` tasks.

    The tokens compared are the reference's own greedy answers. Errors: JobError if a file splits a prompt into other
    tokens, holds a chat template that renders another prompt than training's, or is beyond its limits.
    """
    from jobs.inference.llama_cpp import load
    from jobs.sandbox import Sandbox

    settings = params.gguf
    records = read_tasks(tasks)
    records = records[:: max(1, len(records) // settings.tasks)][: settings.tasks]
    prompts = [chat_prompt(record["prompt"]) for record in records]
    tokenize, end, answer, reference = load_reference(base, adapters)
    prompt_ids = [tokenize(prompt) for prompt in prompts]
    log.info("answer %d prompts by transformers in float32", len(prompts))
    answers = answer(prompt_ids, settings.max_tokens)
    pairs = list(zip(prompt_ids, [ids for ids, _ in answers], strict=True))
    room = max(len(prompt) + len(ids) for prompt, ids in pairs) + settings.max_tokens
    figures: dict[str, dict] = {}
    with Sandbox.from_params(params.sandbox, benchmark=True) as sandbox:

        def pass_at_1(texts: list[str], truncated: list[bool]) -> float:
            with Extractor() as extractor:
                extracted = extractor.extract_all(
                    (text, record["prompt"], record["entry_point"], "cot", cut)
                    for record, text, cut in zip(records, texts, truncated, strict=True)
                )
            programs = list(zip(records, extracted, strict=True))
            verdicts = sandbox.run([(record, found.solution) for record, found in programs if found.flaw != "no_tags"])
            broken = [v.error for v in verdicts if v.status == "infrastructure_error"]
            if broken:
                raise JobError(f"the sandbox failed, which says nothing of the model: {broken[0]}")
            return sum(v.passed for v in verdicts) / len(records)

        passed = pass_at_1([text for _, text in answers], [ids[-1:] != [end] for ids, _ in answers])
        figures["reference"] = {"pass@1": passed, "tasks": len(records)}
        for kind, file in files.items():
            figures[kind] = compare(file, prompts, pairs, reference, room)
            generate = load(file, context=room)
            written = generate(prompts, Sampling(max_tokens=settings.max_tokens))
            figures[kind]["pass@1"] = pass_at_1(
                [c.text for (c,) in written], [c.finish == "length" for (c,) in written]
            )
            log.info("%s: %s", kind, ", ".join(f"{name} {value:.4g}" for name, value in figures[kind].items()))
            within(kind, figures[kind], passed, settings.limits[kind])
    return figures


def within(kind: str, figures: dict, reference: float, limits) -> None:
    found = []
    if not figures["kl"] <= limits.kl:
        found.append(f"its mean KL is {figures['kl']:.3g} nats a token, more than {limits.kl:g}")
    if not figures["top1"] >= limits.top1:
        found.append(f"it agrees on {figures['top1']:.1%} of tokens, less than {limits.top1:.1%}")
    if not reference - figures["pass@1"] <= limits.drop:
        found.append(f"its pass@1 is {figures['pass@1']:.1%}, the reference's {reference:.1%}")
    if found:
        raise JobError(f"gguf.limits.{kind}: {'; '.join(found)}")


def load_reference(base: Path, adapters: list[Path]) -> tuple[Callable, int, Callable, Logits]:
    """The model in float32 by transformers and PEFT, independent of the sum in jobs/weights.

    Returns (tokenize, end token, answer, logits); answer(prompts' tokens, max_tokens) gives each greedy answer's
    (tokens with the end token, text).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    shards(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left", trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # what does not fit surfaces as one of many types
        raise JobError(f"{base}: cannot be loaded as a model ({one_line(error)})") from error
    for adapter in adapters:
        model = attach(model, adapter, base).merge_and_unload()
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    eos = tokenizer.eos_token_id
    if eos is None:
        raise JobError(f"{base}: its tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Not the model's own settings: a repetition penalty there would choose other tokens than the likeliest.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )

    def tokenize(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    def answer(prompts: list[list[int]], max_tokens: int) -> list[tuple[list[int], str]]:
        batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
        written = model.generate(**batch, max_new_tokens=max_tokens)[:, batch["input_ids"].shape[1] :]
        answers = []
        for row in written.tolist():
            end = row.index(eos) + 1 if eos in row else len(row)
            answers.append((row[:end], str(tokenizer.decode(row[:end], skip_special_tokens=True))))
        return answers

    def logits(tokens: list[int], first: int) -> "np.ndarray":
        with torch.inference_mode():
            out = model(torch.tensor([tokens], device=model.device), logits_to_keep=len(tokens) - first)
        return out.logits[0].float().cpu().numpy()

    return tokenize, eos, answer, logits


def compare(
    file: Path, prompts: list[str], pairs: list[tuple[list[int], list[int]]], reference: Logits, room: int
) -> dict[str, float]:
    """kl: mean over the answers' tokens of KL(reference || file) in nats; top1: share of equal first choices."""
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(str(file), n_ctx=room, n_gpu_layers=-1, logits_all=True, verbose=False)
    check_template(file, model)
    divergences, agreements = [], []
    try:
        for prompt, (prompt_ids, answer_ids) in zip(prompts, progress(pairs, label=file.name), strict=True):
            ids = model.tokenize(prompt.encode(), add_bos=bool(model._model.add_bos_token()), special=True)
            if ids != prompt_ids:
                raise JobError(
                    f"{file.name}: llama.cpp splits a prompt into other tokens than the tokenizer: "
                    f"{ids[:20]} for {prompt_ids[:20]}"
                )
            tokens, first = prompt_ids + answer_ids[:-1], len(prompt_ids) - 1
            model.reset()
            model.eval(tokens)
            expected, got = reference(tokens, first), model.scores[first : len(tokens)]
            divergences.append(kl(expected, got))
            agreements.append(expected.argmax(-1) == got.argmax(-1))
    finally:
        model.close()
    all_kl = np.concatenate(divergences)
    return {
        "kl": float(all_kl.mean()),
        "kl_p99": float(np.quantile(all_kl, 0.99)),
        "top1": float(np.concatenate(agreements).mean()),
    }


def kl(expected: "np.ndarray", got: "np.ndarray") -> "np.ndarray":
    """KL(softmax(expected) || softmax(got)) of each row, in nats, in float64."""
    import numpy as np

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    rows = []
    for start in range(0, len(expected), 32):  # a vocabulary of 150,000 in float64 is 1.2 MB a row
        p, q = log_softmax(expected[start : start + 32]), log_softmax(got[start : start + 32])
        rows.append((np.exp(p) * (p - q)).sum(-1))
    return np.concatenate(rows)


def check_template(file: Path, model) -> None:
    """The template inside must render the prompt that training used."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = model.metadata.get("tokenizer.chat_template", "")
    probe = 'def f(x):\n    """Say {{ \'x\' }} <b>."""\n'
    formatter = Jinja2ChatFormatter(template, eos_token="<|endoftext|>", bos_token="")
    rendered = formatter(messages=messages(probe)).prompt  # type: ignore[arg-type]
    if rendered != chat_prompt(probe):
        raise JobError(f"{file.name}: its chat template renders another prompt than training's")
