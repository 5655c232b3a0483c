"""Supervised fine-tuning: a LoRA adapter trained on the distilled examples, loss on the response only.

\b
    python -m jobs sft --base models/base --examples data/distill/examples.jsonl --out models/adapters/sft

\b
Reads   --base        a model folder
        --examples    rows with `prompt` (the task's) and `answer` (in the tag format)
Writes  --out         a PEFT adapter, and trainer.json: the settings that the trainer really used
        --metrics     loss, tokens, examples        --curve     loss by step, as CSV

A killed run resumes at its last checkpoint in .checkpoints/sft.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.files import read_jsonl, replace_dir, write_metrics
from jobs.plumbing import checkpoint
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS, TABLE
from jobs.plumbing.provenance import provenance
from jobs.weights import families

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer

    from jobs.plumbing.params import Params

CURVE = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
}

IGNORED = -100  # the label that PyTorch's cross entropy leaves out


@job("sft", "checkpoints", "seed")
@reads("--base", "models/base", "The model folder to train on.")
@reads("--examples", "data/distill/examples.jsonl", "Distilled examples.")
@writes("--out", "models/adapters/sft", "The adapter.", FOLDER)
@writes("--metrics", "metrics/sft.json", "Metrics of the run.", METRICS)
@writes("--curve", "plots/sft.csv", "Loss and accuracy by step.", TABLE("step", "loss"))
def command(params: "Params", base: Path, examples: Path, out: Path, metrics: Path, curve: Path) -> None:
    click.echo(json.dumps(run(params, base, examples, out, metrics, curve)))


def run(params: "Params", base: Path, examples: Path, out: Path, metrics: Path, curve: Path) -> dict:
    from jobs.training import loop

    rows = read_jsonl(examples)
    if not rows:
        raise JobError(f"{examples}: has no examples")
    families.require_taken("sft", base, params.sft.lora.targets)
    loop.prepare(params.sft.engine)
    tokenizer = loop.load_tokenizer(base)
    where = f"{examples}: row"
    encoded = [encode(row, tokenizer, params.sft.max_length, f"{where} {i}") for i, row in enumerate(rows, 1)]
    directory = checkpoint.folder(
        "sft",
        {"sft": params.sft.model_dump(), "seed": params.seed, "checkpoints": params.checkpoints.model_dump()},
        base,
        examples,
        packages=loop.packages(params.sft),
    )
    trainer = make_trainer(params, base, tokenizer, encoded, directory)
    loop.train(trainer, directory, params.checkpoints.keep)
    with replace_dir(out) as partial:
        loop.save_adapter(trainer.model, partial)
        loop.save_settings(trainer.args, base, partial)
    history = loop.write_curve(trainer.state.log_history, CURVE, curve)
    result = {
        "examples": len(rows),
        "steps": trainer.state.global_step,
        "response_tokens": sum(label != IGNORED for row in encoded for label in row["labels"]),
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
    }
    write_metrics(metrics, result)
    provenance(
        "sft",
        packages=loop.packages(params.sft),
        tokens_per_second=trainer.state.log_history[-1].get("train_tokens_per_second"),
        train_seconds=trainer.state.log_history[-1].get("train_runtime"),
    )
    log.info("sft: loss %.3f -> %.3f in %d steps", result["first_loss"], result["last_loss"], result["steps"])
    return result


def make_trainer(
    params: "Params", base: Path, tokenizer: "PreTrainedTokenizerBase", encoded: list[dict], directory: Path
) -> "SFTTrainer":
    """The trainer over `encoded` rows, its model loaded by sft.engine; `directory` is of its checkpoints."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from jobs.training import loop

    settings = params.sft
    if settings.engine == "unsloth":
        from jobs.training import unsloth

        model = unsloth.load(params, base, None, rollout=False)
    else:
        model = loop.load_model(base, settings.lora, None, params.seed)
    loop.check_fits(model, tokenizer, base)
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(encoded),
        args=SFTConfig(
            **loop.arguments(settings, params.checkpoints, directory, params.seed),
            num_train_epochs=settings.epochs,
            gradient_checkpointing=settings.gradient_checkpointing,
            max_length=settings.max_length,
            packing=False,
            padding_free=False,
            shuffle_dataset=False,
            completion_only_loss=True,
            assistant_only_loss=False,
            loss_type="nll",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
    )


def encode(row: dict, tokenizer: "PreTrainedTokenizerBase", max_length: int, where: str) -> dict[str, list[int]]:
    """Token ids of prompt + answer + end of text, and labels that ignore the prompt.

    The prompt and the answer are encoded apart, as they are at generation. Errors: JobError for a row without its
    keys, and for one longer than `max_length`: a cut answer would teach the model to stop in the middle.
    """
    try:
        task, answer = row["prompt"], row["answer"]
    except KeyError as error:
        raise JobError(f"{where} has no {error}") from None
    if not isinstance(task, str) or not isinstance(answer, str):
        raise JobError(f"{where}: 'prompt' and 'answer' must be strings")
    before = tokenizer(answer_format.chat_prompt(task), add_special_tokens=False).input_ids
    after = tokenizer(answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    if len(before) + len(after) > max_length:
        raise JobError(f"{where} has {len(before) + len(after)} tokens; sft.max_length is {max_length}")
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}
