"""The base model: fetched from the Hub at a pinned revision, taken from this machine, or made at toy size.

\b
    python -m jobs base --out models/base

Reads params, and the folder or GGUF file that they name. Writes models/base: config, safetensors, tokenizer, chat
template. Where it comes from, the first that is set:

\b
    base.toy     a Qwen3-architecture model, trained from scratch on generated functions, part of which is wrong, so that
                 it is mediocre when sampled, as base models are (jobs/toy/pretrain.py); with base.folder as well, the toy
                 model in that folder, trained further
    base.gguf    a GGUF file, whose weights are dequantized into safetensors
    base.folder  a model folder, of which the same files are taken as of the Hub's
    base.repo    the Hub at base.revision: only the model's safetensors, the tokenizer's and config's files, and the
                 licence, each checked against the hash that the Hub records for it

Says at once which later stage will refuse the model, and why, as far as configuration, weights, tokenizer and the present
params of these stages tell (jobs/weights/families.py).
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, replace_dir, set_record, sha256, write_json
from jobs.plumbing.cli import job, log, progress, writes
from jobs.plumbing.outputs import FOLDER
from jobs.plumbing.provenance import provenance
from jobs.weights import byte_level, families
from jobs.weights.identity import LICENCE_FILES
from jobs.weights.safetensors import INDEX, shards
from jobs.weights.tokenizer import given_back, left_out, load_tokenizer, unlike_gguf

if TYPE_CHECKING:
    from jobs.plumbing.params import Base, LocalBase, Params

TRACES = {"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "token", "use_auth_token"}
STAGES: tuple[str, ...] = ("sft", "grpo", "sample", "gguf")  # that load weights and tokenizer
PROBE = "def Add(a, B):\n    if a != B:\n\n        return  a + B\n"
SMALL_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
    *LICENCE_FILES,
}


@job("base", "tasks.seed", "tasks.toy", "tasks.toy_stdin")
@writes("--out", "models/base", "The model folder.", FOLDER)
def command(params: "Params", out: Path) -> None:
    run(params, out)
    click.echo(json.dumps({"model": str(out), "sha256": sha256(out)}))


def run(params: "Params", out: Path) -> None:
    facts: dict = {}
    licence = None
    with replace_dir(out) as partial:
        if params.base.toy is not None:
            from jobs.toy import pretrain

            if params.tasks.toy is None:
                raise JobError("base.toy needs tasks.toy: the corpus leaves out the tasks of every split")
            start = pinned("base.folder", params.base.folder) if params.base.folder else None
            counts, whole = params.tasks.toy.model_dump(), params.tasks.toy_stdin
            pretrain.make(params.base.toy, params.tasks.seed, counts, partial, whole=whole, start=start)
        elif params.base.gguf is not None:
            facts = {"gguf": dequantized(params.base.gguf, partial)}
        elif params.base.folder is not None:
            copied(params.base.folder, partial)
        else:
            licence = fetch(params.base, partial)
        set_chat_template(partial)
        set_architecture(partial)
        take_out_traces(partial)
        set_record(partial, source=source(params.base) | ({"license": licence} if licence else {}))
        refused, unread = about_tokenizer(partial)
        refused = about_params(params, partial) | refused | about_weights(params, partial) | families.refusals(partial)
    for stage, reason in refused.items():
        log.warning("%s will refuse this model: it %s", stage, reason)
    provenance("base", refused=refused, unread_bytes=unread, **facts)


def about_tokenizer(model_dir: Path) -> tuple[dict[str, str], list[int]]:
    """Why the stages that load the tokenizer refuse it, by stage, and the bytes that it has no token for.

    Texts with such a byte are trained and answered as if it were not there. Of a tokenizer that changes text otherwise, as
    one without capitals does, the log tells.
    """
    try:
        tokenizer = load_tokenizer(model_dir)
    except JobError as error:
        reason = f"has no tokenizer to work with: {str(error).removeprefix(f'{model_dir}: ')}"
        return dict.fromkeys(STAGES, reason), []
    refused = {}
    config = read_json(model_dir / "config.json")
    rows = (config.get("text_config") or config).get("vocab_size")
    if rows and len(tokenizer) > rows:
        refused = dict.fromkeys(STAGES, f"embeds {rows} tokens, and its tokenizer has {len(tokenizer)}")
    elif odd := unlike_gguf(tokenizer):
        refused = {"gguf": odd}
    elif not byte_level.is_known(tokenizer):
        log.warning(
            "gguf will refuse this model unless llama.cpp's converter knows its tokenizer by itself: it splits text as "
            "none of the %d names does that are known here",
            len(byte_level.SPLITS),
        )
    if unread := left_out(model_dir):
        named = ", ".join(f"0x{byte:02X}" for byte in unread)
        log.warning(
            "the tokenizer has no token for the bytes %s: characters with these are left out of what is read", named
        )
    elif (back := given_back(tokenizer, PROBE)) != PROBE:
        log.warning("the tokenizer gives back %r for %r: so will code be learned and answered", back, PROBE)
    return refused, unread


def about_weights(params: "Params", model_dir: Path) -> dict[str, str]:
    """Why the stages that load the weights refuse them, by stage: they are not those that the configuration describes, or
    they make a model that is not sampled by the engine of the present params."""
    from jobs.weights import cache
    from jobs.weights.model import linear_layers, require_names, require_whole

    stages, refused = STAGES, {}
    engines = {"grpo": params.grpo.rollout, "sample": params.evaluate.engine}
    try:
        model = require_whole(model_dir)
        stages = families.TRAINING
        if model is not None:
            if reason := cache.refusal(model):
                refused = {stage: reason for stage, engine in engines.items() if engine == "transformers"}
            require_names(model_dir, linear_layers(model))
    except JobError as error:
        reason = str(error).removeprefix(f"{model_dir}/config.json: ").removeprefix(f"{model_dir}: ")
        refused |= dict.fromkeys(stages, reason)
    return refused


def about_params(params: "Params", model_dir: Path) -> dict[str, str]:
    """Why later stages' present params do not fit the model, by stage."""
    try:
        return families.unfit(model_dir, params)
    except JobError:  # no model's configuration, of which `about_weights` tells
        return {}


def source(base: "Base") -> dict:
    """Where the base comes from, for the records of all that is made of it."""
    if base.toy is not None:
        return {"toy": True}
    if base.gguf is not None:
        return {"gguf": Path(base.gguf.path).name, "sha256": base.gguf.sha256}
    if base.folder is not None:
        return {"folder": Path(base.folder.path).name, "sha256": base.folder.sha256}
    return {"repo": base.repo, "revision": base.revision}


def pinned(key: str, base: "LocalBase") -> Path:
    """The path that `key` names. Errors: UsageError where nothing is there, or what is there has another hash."""
    path = Path(base.path)
    if not path.exists():
        raise UsageError(f"{key}.path: {path} does not exist")
    if (found := sha256(path)) != base.sha256:
        raise UsageError(f"{key}.sha256: is {base.sha256}, and {path} has {found}")
    return path


def dequantized(base: "LocalBase", out: Path) -> dict:
    from jobs.weights import dequantize

    path = pinned("base.gguf", base)
    return {"file": path.name, "sha256": base.sha256, **dequantize.to_folder(path, out)}


def copied(base: "LocalBase", out: Path) -> None:
    """Copies a folder's weights, config and tokenizer files: nothing else in it is read."""
    path = pinned("base.folder", base)
    weights = shards(path)  # whole, in safetensors, and no others that lie beside them: vLLM would read all
    for file in sorted(path.iterdir()):
        if file.name in SMALL_FILES or file in weights:
            shutil.copyfile(file, out / file.name)


def set_chat_template(model_dir: Path) -> None:
    """One template for training, evaluation and GGUF; the file wins over what tokenizer_config.json may hold."""
    (model_dir / "chat_template.jinja").write_text(answer_format.CHAT_TEMPLATE, encoding="utf-8")


def set_architecture(model_dir: Path) -> None:
    """Names the family's class where config.json names none: vLLM and llama.cpp's converter go by it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = model_dir / "config.json"
    config = read_json(file)
    found = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES).get(str(config.get("model_type")))
    if found and not config.get("architectures"):
        write_json(file, config | {"architectures": [found]})


def take_out_traces(model_dir: Path) -> None:
    """Takes out of the configurations what tells of the machine that saved them: all that is made of the base repeats it.

    Older versions of transformers keep the folder that a model was read from, and the token that it was fetched with.
    """
    for name in ("config.json", "tokenizer_config.json"):
        file = model_dir / name
        held = read_json(file) if file.is_file() else {}
        parts = [held, *(part for part in held.values() if isinstance(part, dict))]
        if [part.pop(key) for part in parts for key in TRACES & part.keys()]:
            write_json(file, held)


def fetch(base: "Base", out: Path) -> str | None:
    """Downloads the pinned revision's safetensors, config and tokenizer files into `out`.

    Returns the licence that the repository's card names.

    Errors: JobError naming the repo, or the file whose bytes differ from the hash that the Hub records for it.
    """
    import httpx
    from huggingface_hub import HfApi, hf_hub_download

    repo, revision = str(base.repo), str(base.revision)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        listed = {file.rfilename: file for file in info.siblings or []}

        def download(names: Iterable[str]) -> None:
            for file in progress([listed[name] for name in sorted(names)], label="base: fetching"):
                path = Path(hf_hub_download(repo, file.rfilename, revision=revision, local_dir=out))
                verify(path, file.lfs.sha256 if file.lfs else None, file.blob_id)

        weights = {name for name in listed if name.endswith(".safetensors") and "/" not in name}
        if not weights:
            raise JobError(f"base.repo: {repo} at {revision} has no safetensors files; nothing else is loaded")
        download(SMALL_FILES & listed.keys())
        download(of_the_model(out, weights))
    except (httpx.HTTPError, OSError) as error:  # the first is that of a connection, and of what the Hub answers
        raise JobError(f"base.repo: {repo} at {revision} cannot be fetched ({' '.join(str(error).split())})") from error
    shutil.rmtree(out / ".cache", ignore_errors=True)
    named = (getattr(info, "card_data", None) or {}).get("license")
    return named if isinstance(named, str) else None


def of_the_model(folder: Path, weights: set[str]) -> set[str]:
    """Those of the files that the model consists of, by its index: vLLM would read all that lie in its folder."""
    index = folder / INDEX
    named = set((read_json(index).get("weight_map") or {}).values()) if index.exists() else {"model.safetensors"}
    return weights & named or weights


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
