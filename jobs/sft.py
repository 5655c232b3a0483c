"""Supervised fine-tuning: a LoRA adapter trained on the distilled examples, loss on the response only.

\b
    python -m jobs sft --base models/base --examples data/distill/examples.jsonl --out models/adapters/sft

\b
Reads   --base        a model folder
        --examples    rows with `prompt` (the task's) and `answer` (in the tag format)
                      sft.validation of them are not trained on: their loss is measured after every epoch
Writes  --out         a PEFT adapter, and trainer.json: the settings that the trainer really used
                      with sft.keep_epochs also epoch-1, epoch-2 ...: the adapters after the earlier epochs
        --metrics     loss, tokens, examples        --curve     loss by step, as CSV

A killed run resumes at its last checkpoint in .checkpoints/sft.
"""

import json
import math
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, replace_dir, write_metrics
from jobs.plumbing import checkpoint, launch
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS, TABLE
from jobs.plumbing.provenance import provenance
from jobs.weights import families
from jobs.weights.tokenizer import load_tokenizer, special_inside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from jobs.plumbing.params import Params

CURVE = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "eval_loss": "validation_loss",
}

SHOWN = 400  # characters of an example in the log
IGNORED = -100  # the label that PyTorch's cross entropy leaves out


@job("sft", "checkpoints", "seed", "tracking")
@reads("--base", "models/base", "The model folder to train on.")
@reads("--examples", "data/distill/examples.jsonl", "Distilled examples.")
@writes("--out", "models/adapters/sft", "The adapter.", FOLDER)
@writes("--metrics", "metrics/sft.json", "Metrics of the run.", METRICS)
@writes("--curve", "plots/sft.csv", "Loss and accuracy by step.", TABLE("step", "loss"))
def command(params: "Params", base: Path, examples: Path, **outputs: Path) -> None:
    launch.on_ranks(
        "sft.processes",
        params.sft.processes,
        check=lambda: rows_of(params, base, examples),
        work=lambda: run(params, base, examples, **outputs),
    )


def run(params: "Params", base: Path, examples: Path, out: Path, metrics: Path, curve: Path) -> dict | None:
    """The metrics; None on a rank that is not the first one, which writes nothing."""
    from jobs.training import curves, loop, ranks

    rows, aside = rows_of(params, base, examples)
    loop.prepare(params.sft.engine)
    with ranks.joined("sft.processes", params.sft.processes):
        trainer, train, epochs = trained(params, base, examples, rows, aside, curve)
    if not ranks.main():
        return None
    with replace_dir(out) as partial:
        loop.save_adapter(trainer.model, base, partial)
        teachers = sorted({str(row.get("teacher")) for row in rows})
        record = loop.run_record(
            "sft", params, params.sft, base, None, {"examples": examples}, examples=len(train), teachers=teachers
        )
        loop.save_settings(trainer.args, base, partial, record)
        for number in range(1, params.sft.epochs) if params.sft.keep_epochs else ():
            shutil.copytree(loop.kept_epoch(epochs, number), partial / f"epoch-{number}")
    history = curves.write_curve(trainer.state.log_history, CURVE, curve)
    result = summary(train, len(aside), history)
    write_metrics(metrics, result)
    provenance(
        "sft",
        packages=loop.packages(params.sft),
        processes=params.sft.processes,
        tokens_per_second=trainer.state.log_history[-1].get("train_tokens_per_second"),
        train_seconds=trainer.state.log_history[-1].get("train_runtime"),
    )
    log.info("sft: loss %.3f -> %.3f in %d steps", result["first_loss"], result["last_loss"], result["steps"])
    return result


def rows_of(params: "Params", base: Path, examples: Path) -> tuple[list[dict], set[int]]:
    """The examples, and the numbers of those to measure by.

    Errors: JobError and UsageError for what a run with these params and files would stop at.
    """
    from jobs.training import loop

    rows = read_jsonl(examples)
    if not rows:
        raise JobError(f"{examples}: has no examples")
    families.require_taken("sft", base, params.sft.lora.targets)
    aside = set_aside(len(rows), params.sft.validation, examples)
    passes = math.ceil((len(rows) - len(aside)) / (params.sft.batch_size * params.sft.gradient_accumulation))
    loop.require_learning("sft", params.sft, passes * params.sft.epochs)
    return rows, aside


def resume_folder(params: "Params", base: Path, examples: Path) -> Path:
    """Where this run's checkpoints are; other params, inputs or code have another folder."""
    from jobs.training import loop

    settings = {"sft": params.sft.model_dump(), "seed": params.seed, "checkpoints": params.checkpoints.model_dump()}
    return checkpoint.folder("sft", settings, base, examples, packages=loop.packages(params.sft))


def trained(
    params: "Params", base: Path, examples: Path, rows: list[dict], aside: set[int], curve: Path
) -> tuple["Trainer", list[dict], Path]:
    """The trainer after its last step, the encoded examples that it has learned, and where the epochs' adapters are."""
    from jobs.training import curves, loop, ranks

    tracking = curves.trackers(params.tracking, "sft")
    settings = params.sft
    tokenizer = load_tokenizer(base)
    tell_of_special(rows, tokenizer, examples)
    encoded = [encode(row, tokenizer, settings.max_length, f"{examples}: row {i}") for i, row in enumerate(rows, 1)]
    lengths = [len(row["input_ids"]) for row in encoded]
    families.require_room(base, f"row {lengths.index(max(lengths)) + 1} of {examples}", max(lengths))
    if settings.engine == "unsloth":
        from jobs.training import unsloth

        model = unsloth.load(params, base, None, params.sft)
    else:
        model = loop.load_model(base, settings.lora, None, params.seed)
    loop.check_fits(model, tokenizer, base)
    directory = ranks.from_main(lambda: resume_folder(params, base, examples))
    train = [row for i, row in enumerate(encoded) if i not in aside]
    trainer = make_trainer(params, model, tokenizer, train, [encoded[i] for i in sorted(aside)], directory)
    log.info("sft: of the first example it learns %s", learned(train[0], tokenizer))
    if settings.keep_epochs:
        trainer.add_callback(loop.epochs_kept(base, directory))
    loop.train(trainer, directory, params.checkpoints.keep, curves.growing(CURVE, curve), tracking)
    return trainer, train, directory


def make_trainer(
    params: "Params",
    model,
    tokenizer: "PreTrainedTokenizerBase",
    train: list[dict],
    validation: list[dict],
    directory: Path,
):
    """TRL's trainer on encoded examples, with every setting that matters written out."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from jobs.training import loop, ranks
    from jobs.training.order import Order

    settings = params.sft
    several = ranks.count() > 1
    silent = {"input_ids": [tokenizer.eos_token_id] * 2, "labels": [IGNORED] * 2}

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, dataset=None):
            """In an order that seed and epoch decide, of which accelerate then gives each rank its part."""
            lengths = [len(row["input_ids"]) for row in train]
            batch = settings.batch_size * settings.gradient_accumulation
            return Order(lengths, batch, params.seed, by_length=settings.group_by_length, filled=several)

        def get_train_dataloader(self):
            return loop.seen_through(super().get_train_dataloader())

    return Trainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([*train, silent] if several else train),
        eval_dataset=Dataset.from_list(validation) if validation else None,
        args=SFTConfig(
            **loop.arguments(settings, params.checkpoints, directory, params.seed),
            num_train_epochs=settings.epochs,
            train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
            eval_strategy="epoch" if validation else "no",
            per_device_eval_batch_size=settings.batch_size,
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


def summary(train: list[dict], aside: int, history: list[dict]) -> dict[str, Any]:
    """The metrics: sizes, and losses of the first and the last step and, where it was measured, of each epoch's end."""
    result: dict[str, Any] = {
        "examples": len(train),
        "steps": history[-1]["step"],
        "response_tokens": sum(label != IGNORED for row in train for label in row["labels"]),
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
    }
    measured = [row["validation_loss"] for row in history if "validation_loss" in row]
    if measured:
        losses = {f"loss_after_epoch_{epoch}": loss for epoch, loss in enumerate(measured, 1)}
        result["validation"] = {"examples": aside} | losses
        if min(measured) < measured[-1]:
            best = measured.index(min(measured)) + 1
            log.warning("sft: the validation loss was lowest after epoch %d of %d; see sft.epochs", best, len(measured))
    return result


def set_aside(count: int, wanted: int, examples: Path) -> set[int]:
    """Numbers of the examples to measure by, the same whatever the seed. Errors: UsageError if none would be left."""
    if wanted >= count:
        raise UsageError(f"sft.validation: {wanted} of the {count} examples of {examples} cannot be set aside")
    return set(random.Random("sft validation").sample(range(count), wanted))


def encode(row: dict, tokenizer: "PreTrainedTokenizerBase", max_length: int, where: str) -> dict[str, list[int]]:
    """Token ids of prompt + answer + end of text, and labels that ignore the prompt.

    The prompt and the answer are encoded apart, as they are at generation; a string in them that spells a special token is
    the characters that it is. Errors: JobError for a row without its
    keys, and for one longer than `max_length`: a cut answer would teach the model to stop in the middle.
    """
    try:
        task, answer = row["prompt"], row["answer"]
    except KeyError as error:
        raise JobError(f"{where} has no {error}") from None
    if not isinstance(task, str) or not isinstance(answer, str):
        raise JobError(f"{where}: 'prompt' and 'answer' must be strings")
    for name, text in (("prompt", task), ("answer", answer)):
        if not text.strip():
            raise JobError(f"{where}: its {name} is empty")
    before = tokenizer(answer_format.chat_prompt(task), split_special_tokens=True).input_ids  # with the BOS, if any
    after = tokenizer(answer, add_special_tokens=False, split_special_tokens=True).input_ids + [tokenizer.eos_token_id]
    if len(before) + len(after) > max_length:
        raise JobError(f"{where} has {len(before) + len(after)} tokens; sft.max_length is {max_length}")
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}


def tell_of_special(rows: list[dict], tokenizer: "PreTrainedTokenizerBase", examples: Path) -> None:
    spelled = {t for row in rows for t in special_inside(tokenizer, f"{row.get('prompt')}{row.get('answer')}")}
    if spelled:
        log.warning("%s: spells %s, trained as text and not as the token", examples, ", ".join(sorted(spelled)))


def learned(row: dict[str, list[int]], tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the loss is computed on, as one line: seen in the log, that it is the answer and its end alone."""
    text = tokenizer.decode([label for label in row["labels"] if label != IGNORED])
    return json.dumps(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}")
