"""Adds adapters into a base model once, in float64, and measures how much of the training the stored weights keep.

\b
  python -m jobs merge --base models/base --adapter models/adapters/grpo --out models/grpo \\
      --metrics metrics/merge-grpo.json --plot plots/merge-grpo.csv

Reads a model folder in safetensors and one or more PEFT LoRA adapters (--adapter is repeatable); writes a model folder
with the same shards, the configuration and the tokenizer copied byte for byte (but for the dtype in config.json, and an end
of text that generation_config.json lacks), and how much of the update survived storing as `merge.dtype`: metrics in all
and by layer, and the layers as a CSV to plot.
Stops, keeping nothing, if less than `merge.min_retention` of the update survived or a weight overflowed.

It works tensor by tensor, so its memory does not grow with the model.
"""

import functools
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.errors import JobError
from jobs.common.files import (
    hash_of_metrics,
    read_json,
    replace_dir,
    replace_file,
    set_record,
    write_json,
    write_metrics,
)
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS, TABLE
from jobs.plumbing.provenance import provenance
from jobs.weights.floats import FLOATS
from jobs.weights.identity import made_of
from jobs.weights.lora import Update, updates_of
from jobs.weights.safetensors import with_dtype
from jobs.weights.sum import Kept, Storage, retained, sum_of, write_model
from jobs.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}  # not copied


def run(params: "Params", base: Path, adapters: list[Path], out: Path, metrics: Path, plot: Path) -> dict:
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise JobError(f"{base}: is quantized; adapters can only be added to the original weights")
    updates = updates_of(base, adapters)
    storage = Storage(FLOATS[params.merge.dtype], params.merge.rounding == "stochastic", params.seed)
    with replace_dir(out) as partial:
        kept, record = write_model(base, updates, storage, partial, functools.partial(made_of, base, adapters))
        total = sum_of(kept)
        if not total.uu:
            raise JobError(f"{', '.join(map(str, adapters))}: changes nothing in {base}")
        figures = total.figures()
        if figures["retention"] < params.merge.min_retention:
            raise JobError(shortfall(figures["retention"], base, updates, storage, params.merge.min_retention))
        copy_rest(base, partial, params.merge.dtype)
        layers = {layer: sum_of(part).figures() for layer, part in by_layer(kept).items()}
        measured = figures | {"layers": layers}
        set_record(partial, **record, stored=str(storage), metrics=hash_of_metrics(measured))
    write_metrics(metrics, measured)
    write_plot(plot, layers)
    provenance(f"merge-{out.name}", base=str(base), adapters=[str(adapter) for adapter in adapters])
    return {"out": str(out), "stored": str(storage), **figures}


def shortfall(retention: float, base: Path, updates: dict[str, list[Update]], storage: Storage, least: float) -> str:
    """The message for a merge that lost too much: measures the other ways to store and names those that pass."""
    others = [Storage("F16"), Storage("BF16", True, storage.seed), Storage("BF16"), Storage("F32")]
    passing = []
    for other in others:
        if (other.dtype, other.stochastic) != (storage.dtype, storage.stochastic):
            share = sum_of(retained(base, updates, other)).figures()["retention"]
            if share >= least:
                passing.append(f"{other} ({share:.1%})")
    return f"{storage} keeps {retention:.1%} of the update, less than merge.min_retention = {least:.1%}; " + (
        f"these would pass: {', '.join(passing)}" if passing else "no dtype or rounding would pass"
    )


def by_layer(kept: dict[str, Kept]) -> dict[str, dict[str, Kept]]:
    """The parts by layer number in order, then those outside any layer by their names."""
    layers: dict[str, dict[str, Kept]] = {}
    for name, part in kept.items():
        match = re.search(r"\.layers\.(\d+)\.", name)
        layers.setdefault(match[1] if match else name, {})[name] = part
    return dict(sorted(layers.items(), key=lambda item: (not item[0].isdigit(), item[0].zfill(6))))


def write_plot(path: Path, layers: dict[str, dict[str, float]]) -> None:
    names = ["retention", "relative_error", "unchanged", "update_rms"]
    with replace_file(path) as partial:
        lines = [",".join(["layer", *names])]
        lines += [",".join([layer, *(f"{figures[name]:.6g}" for name in names)]) for layer, figures in layers.items()]
        partial.write_text("\n".join(lines) + "\n")


def copy_rest(base: Path, out: Path, dtype: str) -> None:
    """Tokenizer, configuration and licence byte for byte; in config.json the dtype says what the weights now are."""
    for file in sorted(base.iterdir()):
        if file.name == "config.json":
            (out / file.name).write_text(with_dtype(file.read_text(encoding="utf-8"), dtype), encoding="utf-8")
        elif file.is_file() and file.suffix not in WEIGHTS and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    add_end(out)


def add_end(folder: Path) -> None:
    """Has generation_config.json name the tokenizer's end of text, which training ended every answer with.

    Programs that read the folder stop at what that file names, and some bases lack it, or name another token.
    """
    found = end_of(folder)
    if found is None:
        return
    file = folder / "generation_config.json"
    config = read_json(file) if file.is_file() else {}
    known = config.get("eos_token_id", read_json(folder / "config.json").get("eos_token_id"))
    ends = known if isinstance(known, list) else [known] if known is not None else []
    if found not in ends or "eos_token_id" not in config:
        ends = ends if found in ends else [*ends, found]
        write_json(file, config | {"eos_token_id": ends[0] if len(ends) == 1 else ends})


def end_of(folder: Path) -> int | None:
    """The number of the tokenizer's end of text; None in a folder without one."""
    settings, tokenizer = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if settings.is_file() and tokenizer.is_file():  # which most have, and transformers takes seconds to be imported
        token = read_json(settings).get("eos_token")
        text = token.get("content") if isinstance(token, dict) else token
        held = read_json(tokenizer)
        numbers = {added["content"]: added["id"] for added in held.get("added_tokens") or []}
        vocabulary = held.get("model", {}).get("vocab")
        found = numbers.get(text, vocabulary.get(text) if isinstance(vocabulary, dict) else None)
        if found is not None:
            return found
    try:
        return load_tokenizer(folder).eos_token_id
    except JobError:  # no stage answers with such a folder
        return None


@job("merge", "seed")
@reads("--base", "models/base", "The base model's folder.")
@reads("--adapter", None, "A PEFT adapter's folder; repeatable.", multiple=True, required=True)
@writes("--out", "models/grpo", "The merged model's folder.", FOLDER)
@writes("--metrics", "metrics/merge-grpo.json", "Retention in all and by layer.", METRICS)
@writes("--plot", "plots/merge-grpo.csv", "Retention by layer, to plot.", TABLE("layer", "retention"))
def command(params: "Params", base: Path, adapter: tuple[Path, ...], out: Path, metrics: Path, plot: Path) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded: there is a process a core
    result = run(params, base, list(adapter), out, metrics, plot)
    log.info("kept %.2f %% of the update as %s", 100 * result["retention"], result["stored"])
    click.echo(json.dumps(result))
