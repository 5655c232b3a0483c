"""The toy base model: a Qwen3 of about a million parameters, trained from scratch on the toy world's corpus.

It knows the task and is mediocre when sampled, as base models are. How mediocre are two quantities of the corpus,
`base.toy.wrong` and `base.toy.signed`, and no accident of the training: the first `base.toy.clean` of the steps show right
programs alone, and by their end the model looks up every digit. The rest teaches it how often a digit is another one,
and how often the sign is forgotten, at a learning rate that falls to zero.

Where `base.folder` is set as well, its model is trained further, with its own tokenizer: so the twin, whose answers are
whole programs, comes to know them in a few steps.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.plumbing.cli import log, progress
from jobs.toy import world

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from jobs.plumbing.params import ToyBase

# Qwen2's split, which llama.cpp knows as its pre-tokenizer "qwen2".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END, PAD = "<|endoftext|>", "<|pad|>"  # Unsloth refuses a padding token that also ends the text
SHARED = 32  # tokens from which on it pays to read what all documents of a batch begin with only once
IGNORED = -100  # the label that PyTorch's cross entropy leaves out


def make(
    toy: "ToyBase",
    tasks_seed: int,
    counts: Mapping[str, int],
    out: Path,
    *,
    whole: bool = False,
    start: Path | None = None,
) -> None:
    """Writes the model and its tokenizer into the folder `out`.

    tasks_seed, counts: what the splits' tasks are drawn by, see `world.splits`; the corpus leaves them all out.
    whole: the corpus is the twin's. start: a toy model to train further, in the place of a new one.
    """
    reserved = {p for split in world.splits(tasks_seed, counts).values() for p in split}
    shares = toy.clean, toy.wrong, toy.signed
    batches = list(world.corpus(toy.seed, toy.steps, toy.batch_size, *shares, reserved, whole=whole))
    if start is None:
        tokenizer, model = train_tokenizer([text for batch in batches for text in batch], toy.vocab_size), None
    else:
        tokenizer, model = begun(start)
    model = train(tokenizer, batches, toy, model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def begun(folder: Path) -> "tuple[PreTrainedTokenizerFast, Qwen3ForCausalLM]":
    """The tokenizer and the model of a folder that `make` wrote, to be trained further."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    return tokenizer, model


def train_tokenizer(documents: list[str], vocab_size: int) -> "PreTrainedTokenizerFast":
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


def new_model(tokenizer: "PreTrainedTokenizerFast", toy: "ToyBase") -> "Qwen3ForCausalLM":
    """A random Qwen3 in float32; torch's global seed decides its weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weight)  # layers start as the identity; without it a small model learns far slower
    return model


def train(
    tokenizer: "PreTrainedTokenizerFast",
    batches: list[list[str]],
    toy: "ToyBase",
    model: "Qwen3ForCausalLM | None" = None,
) -> "Qwen3ForCausalLM":
    """The model, or a new one, after one step on each batch of documents, by AdamW with a cosine schedule to zero."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    torch.manual_seed(toy.seed)
    model = model or new_model(tokenizer, toy)
    log.info("base: %.2f M parameters, %d tokens of vocabulary", model.num_parameters() / 1e6, len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=toy.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, toy.steps // 10, toy.steps)
    model.train()
    bar = progress(batches, label="base: pre-training")
    for batch in bar:
        rows = [ids + [tokenizer.eos_token_id] for ids in tokenizer(batch).input_ids]
        loss = loss_of(model, rows, tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def loss_of(model: "Qwen3ForCausalLM", rows: list[list[int]], pad: int) -> "torch.Tensor":
    """Mean cross entropy of the documents' tokens, in nats.

    What all rows begin with is read once, where it is long, and its keys and values serve every row. It is context alone:
    its own tokens are not in the loss. The tagged answers' system prompt is two fifths of a document.
    """
    import torch

    columns = zip(*rows, strict=False)
    shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), 0)
    shared = shared if shared >= SHARED else 0
    width = max(map(len, rows))
    ids = torch.tensor([row[shared:] + [pad] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) - shared for row in rows])
    labels = ids.where(torch.arange(ids.shape[1]) < lengths[:, None], IGNORED)
    cache = None
    if shared:
        cache = model(input_ids=torch.tensor(rows[:1])[:, :shared], use_cache=True, logits_to_keep=1).past_key_values
        for layer in cache.layers:
            layer.keys, layer.values = (t.expand(len(rows), -1, -1, -1) for t in (layer.keys, layer.values))
    # Padding follows the text, so that the causal mask alone hides it from every token that counts.
    return model(input_ids=ids, labels=labels, past_key_values=cache, use_cache=cache is not None).loss
