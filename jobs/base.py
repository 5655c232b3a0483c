"""The base model: fetched from the Hub at a pinned revision, or made at toy size.

\b
    python -m jobs base --out models/base

Reads nothing but params. Writes models/base: config, safetensors, tokenizer, chat template. With `base.toy` set, a
Qwen3-architecture model is trained from scratch on generated functions, part of which is wrong, so that it is mediocre
when sampled, as base models are (jobs/toy/pretrain.py). Otherwise `base.repo` at `base.revision` is fetched: only
safetensors and the tokenizer's and config's files, each checked against the hash that the Hub records for it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.files import replace_dir, sha256
from jobs.plumbing.cli import job, progress, writes
from jobs.plumbing.outputs import FOLDER
from jobs.plumbing.provenance import provenance

if TYPE_CHECKING:
    from jobs.plumbing.params import Base, Params

SMALL_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
}


@job("base", "tasks.seed", "tasks.toy")
@writes("--out", "models/base", "The model folder.", FOLDER)
def command(params: "Params", out: Path) -> None:
    run(params, out)
    click.echo(json.dumps({"model": str(out), "sha256": sha256(out)}))


def run(params: "Params", out: Path) -> None:
    with replace_dir(out) as partial:
        if params.base.toy is not None:
            from jobs.toy import pretrain

            if params.tasks.toy is None:
                raise JobError("base.toy needs tasks.toy: the corpus leaves out the tasks of every split")
            pretrain.make(params.base.toy, params.tasks.seed, params.tasks.toy.model_dump(), partial)
        else:
            fetch(params.base, partial)
        set_chat_template(partial)
    provenance("base")


def set_chat_template(model_dir: Path) -> None:
    """One template for training, evaluation and GGUF; the file wins over what tokenizer_config.json may hold."""
    (model_dir / "chat_template.jinja").write_text(answer_format.CHAT_TEMPLATE, encoding="utf-8")


def fetch(base: "Base", out: Path) -> None:
    """Downloads the pinned revision's safetensors, config and tokenizer files into `out`.

    Errors: JobError naming the repo, or the file whose bytes differ from the hash that the Hub records for it.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    repo, revision = str(base.repo), str(base.revision)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        wanted = [
            f
            for f in info.siblings or []
            if f.rfilename in SMALL_FILES or (f.rfilename.endswith(".safetensors") and "/" not in f.rfilename)
        ]
        if not any(f.rfilename.endswith(".safetensors") for f in wanted):
            raise JobError(f"base.repo: {repo} at {revision} has no safetensors files; nothing else is loaded")
        for file in progress(wanted, label="base: fetching"):
            path = Path(hf_hub_download(repo, file.rfilename, revision=revision, local_dir=out))
            verify(path, file.lfs.sha256 if file.lfs else None, file.blob_id)
    except (HfHubHTTPError, OSError) as error:
        raise JobError(f"base.repo: {repo} at {revision} cannot be fetched ({error})") from error
    from shutil import rmtree

    rmtree(out / ".cache", ignore_errors=True)


def verify(path: Path, lfs_sha256: str | None, blob_id: str | None) -> None:
    """Checks a file against its LFS sha256, or its git blob id where it is not in LFS."""
    if lfs_sha256:
        expected, found = lfs_sha256, sha256(path)
    else:
        data = path.read_bytes()
        expected = str(blob_id)
        found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if found != expected:
        raise JobError(f"{path.name}: its hash is {found}, the Hub records {expected}")
