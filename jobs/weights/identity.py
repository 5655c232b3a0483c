"""By which hash a model, an adapter or a GGUF file is known, in the records of what was made of it and measured on it.

The hash is of every byte of the files that a reader of the folder takes, and of no others: a card or a mark beside them
makes no other model.
"""

import hashlib
import logging
from pathlib import Path

from jobs.common.errors import JobError
from jobs.common.files import foreign, record_of, sha256, sha256_each
from jobs.weights.adapter import RECORD, WEIGHTS
from jobs.weights.safetensors import shards

log = logging.getLogger("jobs")
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
)
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md")
ADAPTER_FILES = ("adapter_config.json", WEIGHTS)


def model_files(folder: Path) -> list[Path]:
    """The files that a model folder consists of. Errors: JobError as `shards`, and for a folder without config.json."""
    if not (folder / "config.json").is_file():
        raise JobError(f"{folder}: has no config.json")
    return sorted([*shards(folder), *(folder / name for name in MODEL_FILES if (folder / name).is_file())])


def adapter_files(folder: Path) -> list[Path]:
    """The files that a PEFT adapter consists of. Errors: JobError for a folder that lacks one."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise JobError(f"{folder}: has no {name}")
    return [folder / name for name in ADAPTER_FILES]


def identity(files: list[Path]) -> str:
    """The hash of these files' names and contents."""
    lines = [f"{file.name} {digest}" for file, digest in zip(files, sha256_each(files), strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def model_identity(path: Path) -> str:
    """Of a model folder, or of a GGUF file, whose hash is its own."""
    return sha256(path) if path.suffix == ".gguf" else identity(model_files(path))


def adapter_identity(folder: Path) -> str:
    """Of an adapter with the record of its training, where it has one: a step that changed no weight was a step."""
    record = [folder / RECORD] if (folder / RECORD).is_file() else []
    return identity([*adapter_files(folder), *record])


def source_of(base: Path) -> dict | None:
    """Where the base comes from, as `base` recorded it; None where it did not, or the model's files are others by now."""
    source = record_of(base).get("source")
    changed = sorted({file.name for file in model_files(base)} & set(foreign(base))) if source else []
    if changed:
        log.warning("%s: %s is not as base wrote it; where the model comes from is not known", base, ", ".join(changed))
    return None if changed else source


def made_of(base: Path, adapters: list[Path]) -> dict:
    """The record of what is made of a base and its adapters: both by their hashes, and where the base comes from."""
    return {
        "base": model_identity(base),
        "source": source_of(base),
        "adapters": [adapter_identity(adapter) for adapter in adapters],
    }
