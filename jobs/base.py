"""The base model: fetched from the Hub at a pinned revision, or made at toy size.

\b
    python -m jobs base --out models/base

Reads nothing but params. Writes models/base: config, safetensors, tokenizer, chat template. With `base.toy` set, a
Qwen3-architecture model is trained from scratch on the corpus of jobs/toy/world.py, part of which is wrong, so that it is
mediocre when sampled, as base models are. Otherwise `base.repo` at `base.revision` is fetched: only safetensors and
the tokenizer's and config's files, each checked against the hash that the Hub records for it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.files import replace_dir, sha256
from jobs.plumbing import checkpoint
from jobs.plumbing.cli import job, log, progress, writes
from jobs.plumbing.outputs import FOLDER

if TYPE_CHECKING:
    from jobs.plumbing.params import Base, Params, ToyBase

# Qwen2's split, which llama.cpp knows as its pre-tokenizer "qwen2".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END, PAD = "<|endoftext|>", "<|pad|>"  # Unsloth refuses a padding token that also ends the text
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
            make_toy(params, params.base.toy, partial)
        else:
            fetch(params.base, partial)
        set_chat_template(partial)
    checkpoint.provenance("base")


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


def make_toy(params: "Params", toy: "ToyBase", out: Path) -> None:
    from jobs.toy import world as world

    if params.tasks.toy is None:
        raise JobError("base.toy needs tasks.toy: the corpus leaves out the tasks of every split")
    reserved = {p for split in world.splits(params.tasks.seed, params.tasks.toy.model_dump()).values() for p in split}
    documents = list(world.corpus(toy.seed, toy.documents, toy.wrong, reserved))
    tokenizer = train_tokenizer(documents, toy.vocab_size)
    model = pretrain(tokenizer, documents, toy)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train_tokenizer(documents: list[str], vocab_size: int):
    """A byte-level BPE tokenizer with Qwen2's pre-tokenizer; end-of-text and padding are its special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[AddedToken(name, special=True) for name in (END, PAD)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, bos_token=None, unk_token=None, model_max_length=2048
    )


def pretrain(tokenizer, documents: list[str], toy: "ToyBase"):
    """A Qwen3 model trained on the documents, AdamW with a cosine schedule; returns it in float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, get_cosine_schedule_with_warmup

    torch.manual_seed(toy.seed)
    end = tokenizer.eos_token_id
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=toy.hidden_size,
            intermediate_size=toy.intermediate_size,
            num_hidden_layers=toy.layers,
            num_attention_heads=toy.heads,
            num_key_value_heads=toy.kv_heads,
            head_dim=toy.head_dim,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            initializer_range=toy.hidden_size**-0.5,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)  # layers start as the identity; without it a small model learns far slower
    log.info("base: %.2f M parameters, %d tokens of vocabulary", model.num_parameters() / 1e6, len(tokenizer))
    encoded = sorted((tokenizer(text).input_ids + [end] for text in documents), key=len)
    optimizer = torch.optim.AdamW(model.parameters(), lr=toy.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, toy.steps // 10, toy.steps)
    generator = torch.Generator().manual_seed(toy.seed)
    model.train()
    bar = progress(range(toy.steps), label="base: pre-training")
    for _ in bar:
        # Documents of like length share a batch, so that little of it is padding.
        start = int(torch.randint(len(encoded) - toy.batch_size + 1, (1,), generator=generator))
        batch = encoded[start : start + toy.batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in batch])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in batch])
        loss = model(input_ids=ids, attention_mask=(labels != -100).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()
