"""Writes GGUF files straight from a base model and its adapters, and keeps only those that pass a check.

\b
  python -m jobs gguf --base models/base --adapter models/adapters/grpo --tasks data/tasks/humaneval.jsonl \\
      --out models/gguf --metrics metrics/gguf.json

Reads a Qwen3 model folder in safetensors, PEFT adapters (--adapter is repeatable; none writes the base), and a
benchmark to check on; writes one NAME-TYPE.gguf for each of `gguf.types` and what each kept. F32, F16 and BF16 are
written here, from the float32 sum of base and adapters; every other type is made by llama.cpp from a float32 file, so
that nothing is rounded twice. Every file is then run by llama.cpp beside the same model in float32 by transformers (see
jobs/gguf/check.py), and the job fails, keeping nothing, if one is further off than its limits in `gguf.limits`.
"""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.answer_format import CHAT_TEMPLATE
from jobs.common.errors import JobError
from jobs.common.files import read_json, remove, replace_dir, write_metrics
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS
from jobs.plumbing.provenance import provenance
from jobs.weights.lora import Update, updates_of
from jobs.weights.safetensors import Tensor, tensors_of
from jobs.weights.sum import Storage, pooled, units, write_rows

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

# Qwen2's splitting of text, which llama.cpp knows by the name "qwen2". Its converter tells tokenizers apart by a hash
# of their output, and so stops at every tokenizer that it has not seen, ours among them.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIRECT = ("F32", "F16", "BF16")
ALIGNMENT = 32
QUANTIZE_BUFFER = 1 << 30  # bytes of rows llama.cpp holds at once


def run(params: "Params", base: Path, adapters: list[Path], tasks: Path, out: Path, metrics: Path) -> dict:
    from jobs.gguf.check import check

    settings = params.gguf
    updates = updates_of(base, adapters)
    name = (adapters[-1] if adapters else base).name
    with replace_dir(out) as partial:
        files = {kind: partial / f"{name}-{kind}.gguf" for kind in settings.types}
        source = files.get("F32", partial / "float32.gguf")
        direct = [kind for kind in settings.types if kind in DIRECT]
        for kind in direct if len(direct) == len(files) else dict.fromkeys([*direct, "F32"]):
            write_gguf(base, updates, kind, files.get(kind, source))
        for kind, file in files.items():
            if kind not in DIRECT:
                quantize(source, file, kind)
        if source not in files.values():
            remove(source)
        figures = check(params, base, adapters, tasks, files)
        for kind, file in files.items():
            figures[kind] |= sizes(file, kind)
    write_metrics(metrics, figures)
    provenance("gguf", base=str(base), adapters=[str(adapter) for adapter in adapters])
    return {"out": str(out), **figures}


def write_gguf(base: Path, updates: dict[str, list[Update]], kind: str, path: Path) -> None:
    """Writes base + updates as F32, F16 or BF16, norms and biases always as F32, as llama.cpp's own converter does.

    Errors: JobError for an architecture, a tokenizer or a tensor that is not Qwen3's, or a weight too large for `kind`.
    """
    import gguf
    import numpy as np

    config = read_json(base / "config.json")
    if config.get("model_type") != "qwen3":
        raise JobError(f"{base}: is a {config.get('model_type')} model; only qwen3 is written to GGUF")
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, "qwen3")
    describe(writer, base, config, kind)
    add_tokenizer(writer, base, config)
    tensors = mapped(base, config)
    starts, storages, end, weights = {}, {}, 0, 0
    for name, tensor in tensors.items():
        vector = len(tensor.shape) == 1 or name.endswith("_norm.weight")
        storages[tensor.name] = Storage("F32" if vector else kind)
        nbytes = tensor.rows * tensor.columns * (4 if vector or kind == "F32" else 2)
        starts[tensor.name] = end
        weights += tensor.rows * tensor.columns
        end += nbytes + -nbytes % ALIGNMENT
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), nbytes, gguf.GGMLQuantizationType["F32" if vector else kind]
        )
    writer.add_size_label(gguf.size_label(weights, 0, 0, 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = path.stat().st_size
    data += -data % ALIGNMENT
    with open(path, "r+b") as target:
        target.truncate(data + end)  # what no tensor covers is padding, and zero

        def work(tensor: Tensor, rows: slice):
            return write_rows(
                tensor,
                rows,
                updates.get(tensor.name, []),
                storages[tensor.name],
                target.fileno(),
                data + starts[tensor.name],
            )

        pooled(work, units(list(tensors.values())), f"write {kind}")


def describe(writer, base: Path, config: dict, kind: str) -> None:
    """The architecture's numbers. Errors: JobError naming what llama.cpp's Qwen3 would not do as this model does."""
    import gguf

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise JobError(f"{base}: scales its rotary positions ({rope}); only the default is written to GGUF")
    if config.get("use_sliding_window") or config.get("attention_bias") or config.get("hidden_act", "silu") != "silu":
        raise JobError(f"{base}: has sliding windows, attention biases or another activation than llama.cpp's Qwen3")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_file_type(file_type(kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer, base: Path, config: dict) -> None:
    """The vocabulary, the merges, and the project's own chat template whatever the base's is.

    Rows of the embedding that no token has are filled up with unused ones. Errors: JobError for a tokenizer that is not
    byte-level BPE with Qwen2's splitting, for llama.cpp would cut text into other tokens without a word.
    """
    import gguf

    tokenizer = read_json(base / "tokenizer.json")
    splits = [
        part.get("pattern", {}).get("Regex")
        for part in (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
        if part.get("type") == "Split"
    ]
    if tokenizer["model"].get("type") != "BPE" or splits != [QWEN2_SPLIT]:
        raise JobError(f"{base}/tokenizer.json: is not byte-level BPE with the pre-tokenizer of Qwen2")
    tokens = [f"[PAD{i}]" for i in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        text, i = added["content"], added["id"]
        control = added["special"] or (text.startswith("<|") and text.endswith("|>"))
        tokens[i], types[i] = text, gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(base, load_merges=True)
    special.chat_template = CHAT_TEMPLATE
    special.add_special_token["bos"] = False
    special.add_to_gguf(writer, quiet=True)


def mapped(base: Path, config: dict) -> dict[str, Tensor]:
    """The base's tensors by their GGUF names. A tied lm_head is the embedding again, and is left out."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    found: dict[str, Tensor] = {}
    for name, tensor in tensors_of(base).items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None or new in found:
            raise JobError(f"{tensor.file}: {name} is no tensor of llama.cpp's Qwen3")
        found[new] = tensor
    return found


def file_type(kind: str) -> int:
    """llama.cpp's number of a file type such as Q4_K_M."""
    import gguf

    name = f"ALL_{kind}" if kind == "F32" else f"MOSTLY_{kind}"
    if name not in gguf.LlamaFileType.__members__:
        raise JobError(f"gguf.types: llama.cpp has no type {kind}")
    return int(gguf.LlamaFileType[name])


def quantize(source: Path, path: Path, kind: str) -> None:
    """llama.cpp's own quantization of a float32 file; its result does not depend on the number of threads."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type(kind)
    settings.nthread = os.cpu_count() or 1
    settings.max_buf_size = QUANTIZE_BUFFER
    log.info("quantize %s", path.name)
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings)
    if code != 0:
        raise JobError(f"gguf.types: llama.cpp could not quantize to {kind} (below 3 bits it wants an imatrix)")


def sizes(path: Path, kind: str) -> dict[str, float]:
    """A file's bytes, bits a weight, and how many tensors llama.cpp stored as another type than asked for.

    K-quants hold 256 weights a block: a row that 256 does not divide is stored as another type, which llama.cpp does
    with no more than a line in its log. Named here, tensor by tensor.
    """
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    weights = sum(int(t.n_elements) for t in tensors)
    fallen = [t for t in tensors if "_K" in kind and len(t.shape) > 1 and t.shape[0] % 256]
    for tensor in fallen:
        log.warning(
            "%s: %s has rows of %d, which 256 does not divide: stored as %s",
            path.name,
            tensor.name,
            tensor.shape[0],
            tensor.tensor_type.name,
        )
    size = path.stat().st_size
    return {"bytes": size, "bits_per_weight": 8 * size / weights, "fallback_tensors": len(fallen)}


@job("gguf", "sandbox")
@reads("--base", "models/base", "The base model's folder.")
@reads("--adapter", None, "A PEFT adapter's folder; repeatable.", multiple=True)
@reads("--tasks", "data/tasks/humaneval.jsonl", "The benchmark to check on.")
@writes("--out", "models/gguf", "The folder of GGUF files.", FOLDER)
@writes("--metrics", "metrics/gguf.json", "What each file kept, and its size.", METRICS)
def command(params: "Params", base: Path, adapter: tuple[Path, ...], tasks: Path, out: Path, metrics: Path) -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded: the workers are the threads
    click.echo(json.dumps(run(params, base, list(adapter), tasks, out, metrics)))
