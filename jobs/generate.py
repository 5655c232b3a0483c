"""Answers one prompt with any of the models: base, adapter, merged or GGUF; the text streams as it is written.

\b
    python -m jobs generate --model models/grpo 'Write a function `mean(xs)` ...'
    python -m jobs generate --model models/base --adapter models/adapters/grpo --draw - < prompt.txt
    python -m jobs generate --model models/gguf/grpo-Q4_K_M.gguf --json '...' | jq -r .code

\b
Reads   --model    a model folder, or a GGUF file
        --adapter  a PEFT adapter that is not merged
        PROMPT     what to program, as in a task's prompt; - reads it from stdin
Writes  to stdout, the answer as it comes; with --json, one object: text, reasoning and code (null where the answer does
        not obey the tag format), tokens and finish

The most likely answer, up to `evaluate.max_tokens`; with --draw, one drawn as `evaluate.sampled` says, by `evaluate.seed`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.common.answer_format import chat_prompt, parse
from jobs.common.errors import UsageError
from jobs.common.files import printable
from jobs.inference import Sampling, sample_seed
from jobs.plumbing.cli import job, reads
from jobs.weights.adapter import attach
from jobs.weights.model import load_model
from jobs.weights.tokenizer import end_tokens

if TYPE_CHECKING:
    from jobs.plumbing.params import Params


def run(
    params: "Params", model: Path, adapter: Path | None, prompt: str, draw: bool
) -> Iterator[tuple[str, int, str | None]]:
    """Pieces of the answer: (text, tokens so far, None, or why it ended: "stop" or "length")."""
    if not prompt.strip():
        raise UsageError("PROMPT: is empty")
    drawn = params.evaluate.sampled
    sampling = Sampling(
        1,
        drawn.temperature if draw else 0.0,
        drawn.top_p if draw else 1.0,
        params.evaluate.max_tokens,
        seed=params.evaluate.seed,
    )
    if model.suffix == ".gguf":
        if adapter is not None:
            raise UsageError(f"--adapter: {model} holds its adapters already")
        from jobs.inference import llama_cpp

        return llama_cpp.stream(llama_cpp.File(model), chat_prompt(prompt), sampling)
    return by_transformers(model, adapter, chat_prompt(prompt), sampling)


def loaded(path: Path, adapter: Path | None) -> tuple[Any, Any, set[int]]:
    """Tokenizer, model and the tokens that end an answer, of a folder and an adapter that is not merged."""
    import torch
    from transformers import GenerationConfig

    tokenizer, model = load_model(path, "auto", "sdpa")
    ends = end_tokens(tokenizer, model)
    # Not the model's own settings: a repetition penalty there would give another answer than the likeliest.
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
    if adapter is not None:
        model = attach(model, adapter, path)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return tokenizer, model, ends


def by_transformers(
    path: Path, adapter: Path | None, prompt: str, sampling: Sampling
) -> Iterator[tuple[str, int, str | None]]:
    """One sequence from a model folder in the dtype it is stored in."""
    import threading

    import torch
    from transformers import TextIteratorStreamer

    tokenizer, model, ends = loaded(path, adapter)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    torch.manual_seed(sample_seed(sampling.seed, prompt, 0))
    choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    written: list = []

    def write() -> None:
        try:
            written.append(
                model.generate(
                    **inputs,
                    max_new_tokens=sampling.max_tokens,
                    streamer=streamer,
                    **(choice if sampling.temperature else {"do_sample": False}),
                )
            )
        except BaseException as error:
            written.append(error)
            streamer.end()

    worker = threading.Thread(target=write, daemon=True)
    worker.start()
    for piece in streamer:
        yield piece, 0, None
    worker.join()
    if isinstance(written[0], BaseException):
        raise written[0]
    tokens = written[0].shape[1] - inputs["input_ids"].shape[1]
    ended = tokens < sampling.max_tokens or int(written[0][0, -1]) in ends
    yield "", tokens, "stop" if ended else "length"


@job("evaluate.max_tokens", "evaluate.sampled", "evaluate.seed")
@reads("--model", "models/grpo", "A model folder, or a GGUF file.")
@reads("--adapter", None, "A PEFT adapter that is not merged.")
@click.option("--draw", is_flag=True, help="Draw an answer instead of the most likely one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the text.")
@click.argument("prompt")
def command(params: "Params", model: Path, adapter: Path | None, draw: bool, as_json: bool, prompt: str) -> None:
    texts, tokens, finish = [], 0, None
    for text, count, end in run(params, model, adapter, sys.stdin.read() if prompt == "-" else prompt, draw):
        texts.append(text)
        tokens, finish = count or tokens, end or finish
        if not as_json:
            click.echo(printable(text), nl=False)
            sys.stdout.flush()
    answer = parse("".join(texts))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "text": "".join(texts),
                    "reasoning": answer.reasoning if answer else None,
                    "code": answer.code if answer else None,
                    "tokens": tokens,
                    "finish": finish,
                }
            )
        )
    else:
        click.echo()
        if answer is None:
            click.echo(
                "the answer does not obey the tag format"
                + (": it was cut at evaluate.max_tokens" if finish == "length" else ""),
                err=True,
            )
