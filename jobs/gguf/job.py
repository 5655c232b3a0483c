"""Writes GGUF files from a base model and its adapters, and keeps only those that pass a check.

\b
  python -m jobs gguf --base models/base --adapter models/adapters/grpo --tasks data/tasks/humaneval.jsonl \\
      --out models/gguf --metrics metrics/gguf.json

Reads a model folder in safetensors, PEFT adapters (--adapter is repeatable; none writes the base), and a benchmark to
check on; writes one NAME-TYPE.gguf for each of `gguf.types` and what each kept. llama.cpp's own converter writes the
float32 sum of base and adapters, for every family that it knows; from that, llama.cpp makes each type once. Every file
is then run by llama.cpp beside the same model in float32 by transformers (see jobs/gguf/check.py), and the job fails,
keeping nothing, if one cuts text into other tokens or is further off than its limits in `gguf.limits`.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.errors import JobError
from jobs.common.files import hash_of_metrics, remove, replace_dir, set_record, write_metrics
from jobs.gguf.convert import convert
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS
from jobs.plumbing.provenance import provenance
from jobs.weights import families
from jobs.weights.identity import made_of
from jobs.weights.lora import updates_of

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

DIRECT = ("F32", "F16", "BF16")  # what the converter writes itself
FLOAT16_MAX = 65504
QUANTIZE_BUFFER = 1 << 30  # bytes of rows llama.cpp holds at once


def run(params: "Params", base: Path, adapters: list[Path], tasks: Path, out: Path, metrics: Path) -> dict:
    from jobs.gguf.check import hold_to_reference, lost_ends

    settings = params.gguf
    for kind in settings.types:
        file_type(kind)
    families.require_taken("gguf", base)
    updates_of(base, adapters)  # refuses what cannot be summed before anything is written
    name = (adapters[-1] if adapters else base).resolve().name
    with replace_dir(out) as partial:
        files = {kind: partial / f"{name}-{kind}.gguf" for kind in settings.types}
        write(base, adapters, files, name)
        figures = hold_to_reference(params, base, adapters, tasks, files)
        if lost := lost_ends(files[settings.types[0]], base):
            log.warning("%s end an answer by %s's generation_config.json and not in the files", ", ".join(lost), base)
        for kind, file in files.items():
            figures[kind] |= sizes(file, kind)
        set_record(partial, **made_of(base, adapters), metrics=hash_of_metrics(figures))
    write_metrics(metrics, figures)
    provenance("gguf", base=str(base), adapters=[str(adapter) for adapter in adapters], lost_ends=lost)
    return {"out": str(out), **figures}


def write(base: Path, adapters: list[Path], files: dict[str, Path], name: str) -> None:
    """All files by their types: one type that the converter has by it alone, else each from a file in float32.

    Errors: JobError as `convert` and `quantize`, and for weights too large for float16.
    """
    (first, *others) = files
    if first in DIRECT and not others:
        log.info("write %s", files[first].name)
        convert(base, adapters, first, files[first], name)
    else:
        source = files.get("F32") or next(iter(files.values())).with_name("float32.gguf")
        log.info("write %s", source.name)
        convert(base, adapters, "F32", source, name)
        for kind, file in files.items():
            if kind != "F32":
                quantize(source, file, kind)
        if source not in files.values():
            remove(source)
    if first == "F16" and not others:
        check_fits(files[first], first)


def check_fits(file: Path, kind: str) -> None:
    """Errors: JobError naming the matrix that holds a number beyond float16's 65,504, which `kind` cannot store."""
    import gguf
    import numpy as np

    for tensor in gguf.GGUFReader(file).tensors:
        if len(tensor.shape) > 1 and tensor.data.dtype in (np.float16, np.float32):
            flat = tensor.data.reshape(-1)
            for start in range(0, len(flat), 1 << 22):
                if not (abs(flat[start : start + (1 << 22)]) <= FLOAT16_MAX).all():
                    raise JobError(f"gguf.types: {tensor.name} does not fit {kind}; BF16 and F32 have its range")


def file_type(kind: str) -> int:
    """llama.cpp's number of a file type such as Q4_K_M."""
    import gguf

    name = f"ALL_{kind}" if kind == "F32" else f"MOSTLY_{kind}"
    if name not in gguf.LlamaFileType.__members__:
        raise JobError(f"gguf.types: llama.cpp has no type {kind}")
    return int(gguf.LlamaFileType[name])


def quantize(source: Path, path: Path, kind: str) -> None:
    """llama.cpp's own quantization of a float32 file; its result does not depend on the number of threads.

    Errors: JobError for a type that it cannot make, and for weights too large for it.
    """
    from jobs.inference.llama_cpp import SAID, begin

    llama_cpp = begin(source)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type(kind)
    settings.nthread = os.cpu_count() or 1
    settings.max_buf_size = QUANTIZE_BUFFER
    log.info("quantize %s", path.name)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings)
    if code != 0:
        check_fits(source, kind)
        why = SAID[-1] if SAID else f"it returned {code}"
        raise JobError(f"gguf.types: llama.cpp could not quantize to {kind} ({why}; below 3 bits it wants an imatrix)")


def sizes(path: Path, kind: str) -> dict[str, float]:
    """A file's bytes, bits a weight, and how many tensors llama.cpp stored as another type than asked for.

    Most types hold a block of weights together, of 32 or of 256: a row that it does not divide is stored as another type,
    which llama.cpp does with no more than a line in its log. Named here, tensor by tensor.
    """
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    weights, block = sum(int(t.n_elements) for t in tensors), block_of(kind)
    fallen = [t for t in tensors if len(t.shape) > 1 and t.shape[0] % block]
    for tensor in fallen:
        log.warning(
            "%s: %s has rows of %d, which %d does not divide: stored as %s",
            path.name,
            tensor.name,
            tensor.shape[0],
            block,
            tensor.tensor_type.name,
        )
    size = path.stat().st_size
    return {"bytes": size, "bits_per_weight": 8 * size / weights, "fallback_tensors": len(fallen)}


def block_of(kind: str) -> int:
    """How many weights of a row a file type such as Q4_K_M holds together: by its tensors' type, Q4_K, or else 256."""
    import gguf

    for name in (kind, kind.rpartition("_")[0]):
        if name in gguf.GGMLQuantizationType.__members__:
            return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]
    return 256


@job("gguf", "sandbox")
@reads("--base", "models/base", "The base model's folder.")
@reads("--adapter", None, "A PEFT adapter's folder; repeatable.", multiple=True)
@reads("--tasks", "data/tasks/humaneval.jsonl", "The benchmark to check on.")
@writes("--out", "models/gguf", "The folder of GGUF files.", FOLDER)
@writes("--metrics", "metrics/gguf.json", "What each file kept, and its size.", METRICS)
def command(params: "Params", base: Path, adapter: tuple[Path, ...], tasks: Path, out: Path, metrics: Path) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded: the workers are the threads
    click.echo(json.dumps(run(params, base, list(adapter), tasks, out, metrics)))
