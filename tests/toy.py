"""Tiny random Qwen3 models and LoRA adapters for tests: real files in the real formats, made in about a second."""

import json
from pathlib import Path
from types import SimpleNamespace

# Qwen2's splitting of text before byte-level BPE, which the GGUF pre-tokenizer "qwen2" repeats.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # as in params.yaml
CORPUS = [
    "def add(a, b):\n    return a + b\n\n\ndef first(items):\n    for item in items:\n        return item\n",
    "You are a code-generation engine.\nYou must output your response in the following exact format:\n",
    "<START_WORKING_OUT>\nConcise reasoning steps.\n</END_WORKING_OUT>\n<SOLUTION>\nValid Python code.\n</SOLUTION>",
    "assert add(1, 2) == 3\nassert first([4, 5, 6]) == 4\nimport math\nclass Stack(list):\n    pass\n",
]


def with_keys(file: Path, keys: dict) -> Path:
    """The folder of a JSON file, in which these keys are then set."""
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return file.parent


def make_tokenizer(dir: Path, vocab: int = 512, bos: bool = False) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a byte-level BPE of at most `vocab` tokens.

    bos: it puts <|begin_of_text|> before every text, as Llama 3's does.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from jobs.common.answer_format import CHAT_TEMPLATE

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
        vocab_size=vocab,
        special_tokens=["<|endoftext|>", *(["<|begin_of_text|>"] if bos else [])],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if bos:
        begin_with(tokenizer, "<|begin_of_text|>")
        special["bos_token"] = "<|begin_of_text|>"
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(dir)


def begin_with(tokenizer, token: str) -> None:
    """Has the tokenizer put `token` before every text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def make_pieces_tokenizer(dir: Path, prepend: bool, vocab: int = 512) -> None:
    """Writes the same files of a SentencePiece's BPE, with bytes as a fallback, that puts <bos> before every text.

    prepend: a space comes before every text, as in Llama 2, Mistral and Phi 3; without, as in Gemma.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    from jobs.common.answer_format import CHAT_TEMPLATE

    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    learner = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(names), show_progress=False)
    learner.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    tokenizer = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate([*names, *pieces])},
            [tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prepend else spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:4]])
    begin_with(tokenizer, "<bos>")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(dir)


def make_model(
    dir: Path,
    seed: int = 0,
    tie: bool = True,
    hidden: int = 256,
    layers: int = 2,
    vocab: int = 512,
    dtype: str = "float32",
    shard: str = "5GB",
) -> Path:
    """Writes a random Qwen3 model (head_dim 64, weights ~N(0, 0.02)) with its tokenizer and returns `dir`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    make_tokenizer(dir, vocab)
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        head_dim=64,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 128),
        vocab_size=vocab,
        tie_word_embeddings=tie,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.to(getattr(torch, dtype)).save_pretrained(dir, max_shard_size=shard)
    return dir


def make_adapter(base_dir: Path, dir: Path, rank: int = 8, scale: float = 1e-2, seed: int = 0, **options) -> Path:
    """Writes a PEFT LoRA adapter with random A and B ~N(0, `scale`); `options` go to peft's LoraConfig."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options = {"target_modules": TARGETS, "lora_alpha": 2 * rank} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(r=rank, task_type="CAUSAL_LM", **options))
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(tensor.data, std=scale)
            elif tensor.requires_grad:  # modules_to_save and biases: moved a little from the base
                tensor.data.add_(torch.randn_like(tensor) * scale)
    model.save_pretrained(dir)
    return dir


def make_world(folder: Path) -> None:
    """What GRPO with validation begins with: base/, sft/, six tasks in train.jsonl and three in validation.jsonl."""
    from jobs.common.files import write_jsonl
    from jobs.toy import world

    make_model(folder / "base")
    make_adapter(folder / "base", folder / "sft")
    rows = world.tasks(1, {"train": 9})["train"]
    write_jsonl(folder / "train.jsonl", rows[:6])
    write_jsonl(folder / "validation.jsonl", rows[6:])


def make_trained(folder: Path) -> Path:
    """A model, `base`, and an adapter of rank 4 on it, `sft`, in `folder`."""
    make_model(folder / "base")
    make_adapter(folder / "base", folder / "sft", rank=4, lora_alpha=16)
    return folder


def grpo_trainer(trained: Path, directory: Path, params, passes: int = 1, tasks: int = 2, reward=None):
    """GRPO's trainer, on a CPU, of what `make_trained` has made, about to train on a step of so many passes.

    It samples nothing by itself: completions are to be given. reward: TRL's function of them; without it none earns any.
    """
    from datasets import Dataset

    from jobs.grpo.job import configuration
    from jobs.grpo.trainer import Trainer
    from jobs.training import loop
    from jobs.weights.tokenizer import load_tokenizer

    loop.prepare("transformers")

    def nothing(completions, **_):
        return [0.0] * len(completions)

    trainer = Trainer(
        scorer=SimpleNamespace(waited=0.0),
        grpo=params.grpo,
        directory=directory,
        weights=[1.0] * tasks,
        model=loop.load_model(trained / "base", params.sft.lora, trained / "sft", 1),
        processing_class=load_tokenizer(trained / "base"),
        reward_funcs=[reward or nothing],
        train_dataset=Dataset.from_list([{"prompt": f"task {i}", "task_id": str(i)} for i in range(tasks)]),
        args=configuration(params, [1.0], directory),
    )
    trainer.current_gradient_accumulation_steps = passes
    trainer.model.train()
    return trainer
