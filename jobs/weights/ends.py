"""What ends an answer: in a GGUF file keys and tokens' names, in a model folder generation_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.common.files import read_json

KEYS = ("eot", "eom")  # of a GGUF file, beside its eos: places for two
# Tokens at which llama.cpp ends an answer wherever a vocabulary has them (src/llama-vocab.cpp).
# Those that it ends at as well since they part files from one another (<|fim_pad|>, <|repo_name|>) are left out.
NAMES = frozenset(
    (
        *(
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|return|>",
            "<|call|>",
            "<|flush|>",
            "<|calls|>",
            "<|eom_id|>",
            "[e~[",
        ),
        *(
            "<|endoftext|>",
            "<|end_of_text|>",
            "<end_of_turn>",
            "<end_of_utterance>",
            "<｜end▁of▁sentence｜>",
            "<turn|>",
        ),
        *("</s>", "<eos>", "[EOS]", "<EOT>", "_<EOT>", "[EOT]", "<|tool_response>"),
    )
)


def by_name(vocabulary: Mapping[str, int]) -> set[int]:
    """The tokens at which llama.cpp ends an answer by their names."""
    found = {name: vocabulary[name] for name in NAMES & vocabulary.keys()}
    if {"<|call|>", "<|calls|>"} & found.keys() and {"<|return|>", "<|flush|>"} & found.keys():
        found.pop("<|end|>", None)  # which parts there the channels of an answer
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return set(found.values())


def of_file(facts: dict, tokenizer: Any) -> list[int]:
    """The numbers of the tokens that end an answer by a GGUF file, its end of text first.

    facts: its metadata. tokenizer: its own, whose end of text is set.
    """
    named = (facts.get(f"tokenizer.ggml.{key}_token_id") for key in KEYS)
    others = {int(end) for end in named if end is not None} | by_name(tokenizer.get_vocab())
    return [tokenizer.eos_token_id, *sorted(others - {tokenizer.eos_token_id})]


def beside(folder: Path, tokenizer: Any) -> list[int]:
    """The tokens that end an answer beside the end of text, by generation_config.json.

    First come those that need a key of a GGUF file, since llama.cpp does not know them by name.
    """
    file = folder / "generation_config.json"
    named = read_json(file).get("eos_token_id") if file.is_file() else None
    others = {*(named if isinstance(named, list) else [named])} - {tokenizer.eos_token_id, None}
    known = by_name(tokenizer.get_vocab())
    return sorted(others, key=lambda end: (end in known, end))
