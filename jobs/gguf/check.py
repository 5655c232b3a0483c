"""Whether a GGUF file is the model it was made from: llama.cpp beside transformers in float32 on the same prompts."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.answer_format import chat_prompt, messages
from jobs.common.errors import JobError
from jobs.common.task import read_tasks
from jobs.extraction.worker import Extractor
from jobs.gguf.reference import Reference, load_reference
from jobs.gguf.texts import TEXTS
from jobs.inference import Sampling
from jobs.plumbing.cli import log, progress
from jobs.weights.ends import beside
from jobs.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import numpy as np

    from jobs.plumbing.params import Params

FAR = 64  # positions compared at the end of a long text
BATCH = 64  # positions whose logits llama.cpp holds at once


def hold_to_reference(
    params: "Params", base: Path, adapters: list[Path], tasks: Path, files: dict[str, Path]
) -> dict[str, dict]:
    """For each file: token-level KL from the reference, top-1 agreement and pass@1, on `gguf.tasks` tasks.

    The tokens compared are the reference's own greedy answers, and the end of one long text (see Reference.far).
    Errors: JobError if a file cuts a text into other tokens, holds a chat template that renders another prompt than
    training's, or is beyond its limits.
    """
    from jobs.inference.llama_cpp import load
    from jobs.sandbox import Sandbox

    settings = params.gguf
    records = read_tasks(tasks)
    records = records[:: max(1, len(records) // settings.tasks)][: settings.tasks]
    prompts = [chat_prompt(record["prompt"]) for record in records]
    reference = load_reference(base, adapters)
    for file in files.values():
        check_tokens(file, reference.tokenizer, [*prompts, *TEXTS])
    prompt_ids = [reference.tokenize(prompt) for prompt in prompts]
    log.info("answer %d prompts by transformers in float32", len(prompts))
    answers = reference.answer(prompt_ids, settings.max_tokens)
    spans = [(ids + answer[:-1], len(ids) - 1) for ids, (answer, _) in zip(prompt_ids, answers, strict=True)]
    long = long_text(reference, [record["prompt"] + record["reference"] for record in records])
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

        passed = pass_at_1([text for _, text in answers], [ids[-1] != reference.end for ids, _ in answers])
        figures["reference"] = {"pass@1": passed, "tasks": len(records), "far": long[1] + FAR}
        for kind, file in files.items():
            figures[kind] = compare(file, spans, long, reference)
            written = load(file)(prompts, Sampling(max_tokens=settings.max_tokens))
            figures[kind]["pass@1"] = pass_at_1(
                [c.text for (c,) in written], [c.finish == "length" for (c,) in written]
            )
            log.info("%s: %s", kind, ", ".join(f"{name} {value:.4g}" for name, value in figures[kind].items()))
            within(kind, figures[kind], passed, settings.limits[kind])
    return figures


def long_text(reference: Reference, texts: list[str]) -> "tuple[list[int], int, np.ndarray]":
    """Tokens of `texts`, again and again until they reach `reference.far`, the first of the last positions compared, and
    the reference's logits there."""
    ids = reference.tokenize("\n\n".join(texts))
    tokens = (ids * (reference.far // len(ids) + 1))[: reference.far]
    first = max(0, len(tokens) - FAR)
    return tokens, first, reference.logits(tokens, first)


def within(kind: str, figures: dict, reference: float, limits) -> None:
    found = []
    if not figures["kl"] <= limits.kl:
        found.append(f"its mean KL is {figures['kl']:.3g} nats a token, more than {limits.kl:g}")
    if not figures["kl_far"] <= limits.kl:
        found.append(f"its mean KL at the end of a long text is {figures['kl_far']:.3g}, more than {limits.kl:g}")
    if not figures["top1"] >= limits.top1:
        found.append(f"it agrees on {figures['top1']:.1%} of tokens, less than {limits.top1:.1%}")
    if not reference - figures["pass@1"] <= limits.drop:
        found.append(f"its pass@1 is {figures['pass@1']:.1%}, the reference's {reference:.1%}")
    if found:
        raise JobError(f"gguf.limits.{kind}: {'; '.join(found)}")


def check_tokens(file: Path, tokenizer: Any, texts: Iterable[str]) -> None:
    """Holds the file's vocabulary to `tokenizer`, as `load_tokenizer` loads it, on `texts` and on its special tokens.

    Errors: JobError where llama.cpp cuts a text into other tokens than the tokenizer, or ends a text by another.
    """
    from jobs.inference.llama_cpp import vocabulary

    ours = vocabulary(file)
    try:
        for text in [*texts, *spelled(tokenizer)]:
            expected = tokenizer(text)["input_ids"]
            ids = ours.tokenize(
                text.encode(), True, False
            )  # as the engine does: a special token that is spelled is text
            if ids != expected:
                at = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), 0)
                raise JobError(
                    f"{file.name}: llama.cpp cuts {text[:40]!r} into other tokens than the tokenizer: "
                    f"{ids[at : at + 8]} for {expected[at : at + 8]} from token {at}"
                )
        for name, expected, found in (
            ("EOS", tokenizer.eos_token_id, ours.token_eos()),
            ("BOS", tokenizer.bos_token_id, ours.token_bos()),
        ):
            if expected not in (None, found):
                raise JobError(f"{file.name}: its {name} token is {found}, the tokenizer's is {expected}")
        check_template(file, ours.metadata().get("tokenizer.chat_template", ""))
    finally:
        ours.close()


def lost_ends(file: Path, base: Path) -> list[str]:
    """The tokens that end an answer by the base's generation_config.json, and not in the file."""
    import llama_cpp

    from jobs.inference.llama_cpp import vocabulary

    tokenizer, ours = load_tokenizer(base), vocabulary(file)
    try:
        words = llama_cpp.llama_model_get_vocab(ours.model)
        lost = [end for end in beside(base, tokenizer) if not llama_cpp.llama_vocab_is_eog(words, end)]
        return [str(tokenizer.convert_ids_to_tokens(end)) for end in lost]
    finally:
        ours.close()


def spelled(tokenizer: Any) -> list[str]:
    """A line of code for each token beside the vocabulary, in which it is spelled."""
    return [f'x = "{token}"  # {token}\n' for token in map(str, tokenizer.added_tokens_decoder.values())]


def compare(
    file: Path, spans: list[tuple[list[int], int]], long: "tuple[list[int], int, np.ndarray]", reference: Reference
) -> dict[str, float]:
    """kl: mean over the answers' tokens of KL(reference || file) in nats; top1: share of equal first choices.

    spans: tokens, and the first position compared. kl_far: the mean KL at the end of the `long` one, as of `long_text`.
    """
    import numpy as np

    from jobs.inference.llama_cpp import opened

    (far_tokens, far_first, far_logits) = long
    model = opened(file, n_ctx=max(len(tokens) for tokens in [far_tokens, *(tokens for tokens, _ in spans)]))
    divergences, agreements = [], []
    try:
        far = kl(far_logits, logits(model, far_tokens, far_first))
        for tokens, first in progress(spans, label=file.name):
            expected, got = reference.logits(tokens, first), logits(model, tokens, first)
            divergences.append(kl(expected, got))
            agreements.append(expected.argmax(-1) == got.argmax(-1))
    finally:
        model.close()
    all_kl = np.concatenate(divergences)
    return {
        "kl": float(all_kl.mean()),
        "kl_p99": float(np.quantile(all_kl, 0.99)),
        "kl_far": float(far.mean()),
        "top1": float(np.concatenate(agreements).mean()),
    }


def logits(model: Any, tokens: list[int], first: int) -> "np.ndarray":
    """(positions from `first`, vocabulary) float32 logits of llama.cpp, which keeps no others in memory."""
    import numpy as np

    model.reset()
    model.eval(tokens[:first])
    rows = np.empty((len(tokens) - first, model.n_vocab()), np.float32)
    for start in range(first, len(tokens), BATCH):
        part = tokens[start : start + BATCH]
        model._batch.set_batch(part, n_past=start, logits_all=True)
        model._ctx.decode(model._batch)
        flat = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(len(part) * rows.shape[1],))
        rows[start - first : start - first + len(part)] = flat.reshape(len(part), -1)
        model.n_tokens += len(part)
    return rows


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


def check_template(file: Path, template: str) -> None:
    """The template inside must render the prompt that training used."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    probe = 'def f(x):\n    """Say {{ \'x\' }} <b>."""\n'
    formatter = Jinja2ChatFormatter(template, eos_token="<|endoftext|>", bos_token="")
    rendered = formatter(messages=messages(probe)).prompt  # type: ignore[arg-type]
    if rendered != chat_prompt(probe):
        raise JobError(f"{file.name}: its chat template renders another prompt than training's")
