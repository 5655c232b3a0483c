"""A model folder's tokenizer, loaded alike for training, sampling and answering: text is text, and padding ends nothing.

A string in a text that spells a special token (`<|im_end|>` in an answer about chat templates) is encoded as the characters
that it is: as the token it would end the text in the middle, in training as in a prompt. What the tokenizer itself puts
before a text (a BOS) stays, in every job.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line
from jobs.common.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that llama.cpp takes for special whatever their tokenizer calls them: Qwen's <|fim_prefix|>, Gemma's <unused7>.
LOOKS_SPECIAL = re.compile(r"<[|｜].*[|｜]>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
NEVER_TEXT = ("ÿ", "<0xFF>")  # how byte-level BPE and SentencePiece write the byte 0xFF, which no UTF-8 text has


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, with a padding token that is not its end of text.

    Errors: JobError for one that cannot be loaded, that has no end of text, that puts a token after every text, or whose
    file gives a token another number than it has when loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, split_special_tokens=True)
        make_special(tokenizer)
        probe, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    except Exception as error:  # a broken file surfaces as one of many types
        raise JobError(f"{folder}: its tokenizer cannot be loaded ({one_line(error)})") from error
    check_numbers(folder, tokenizer)
    if tokenizer.eos_token_id is None:
        raise JobError(f"{folder}: its tokenizer has no end-of-sequence token")
    if probe[-len(bare) :] != bare:
        last = tokenizer.convert_ids_to_tokens(probe[-1])
        raise JobError(
            f"{folder}: its tokenizer ends every text with {last}, prompts too (add_eos_token, post_processor)"
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # A trainer leaves padding out of the loss by its id, and with it would leave out the end of every answer.
        try:
            tokenizer.pad_token = padding(tokenizer, tokenizer.eos_token, len(tokenizer))
        except JobError as error:
            raise JobError(f"{folder}: {error}") from None
    return tokenizer


def check_numbers(folder: Path, tokenizer) -> None:
    """Errors: JobError for a token that tokenizer.json gives another number than it has: `tokenizers` closes every gap
    between the vocabulary and what is added to it, and such a token would be another row of the model. So would an end of
    text that the file does not have, which transformers adds."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    held = read_json(file)
    added, vocabulary = held.get("added_tokens") or [], (held.get("model") or {}).get("vocab")
    known = {token["content"] for token in added}
    if isinstance(vocabulary, dict) and tokenizer.eos_token not in {None, *vocabulary, *known}:
        raise JobError(
            f"{file}: does not have the end of text {tokenizer.eos_token} (eos_token of tokenizer_config.json)"
        )
    for token in added:
        found = tokenizer.convert_tokens_to_ids(token["content"])
        if found != token["id"]:
            raise JobError(f"{file}: numbers {token['content']} {token['id']}, but it is loaded as {found}")


def make_special(tokenizer) -> None:
    """Has the tokens that look special be special, so that a text that spells one is text to every engine alike."""
    from tokenizers import AddedToken

    held = tokenizer.added_tokens_decoder.values()
    looking = [str(token) for token in held if not token.special and LOOKS_SPECIAL.fullmatch(str(token))]
    if looking:
        tokenizer.backend_tokenizer.add_special_tokens([AddedToken(name, special=True) for name in looking])


def left_out(folder: Path) -> list[int]:
    """The bytes of text for which the folder's byte-level BPE has no token, and which it therefore does not read at all.

    Empty for any other tokenizer, and for one that puts a token of its own in their place.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    file = folder / "tokenizer.json"
    held = read_json(file) if file.is_file() else {}
    model = held.get("model") or {}
    if (
        model.get("type") != "BPE"
        or model.get("unk_token")
        or '"ByteLevel"' not in json.dumps(held.get("pre_tokenizer"))
    ):
        return []
    in_utf8 = set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
    return sorted(byte for byte in in_utf8 if bytes_to_unicode()[byte] not in model["vocab"])


def given_back(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """What the tokenizer makes of `text` and back."""
    return continuation(tokenizer, list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def ids_of(tokenizer: "PreTrainedTokenizerBase", prompt: str | tuple[str, ...]) -> list[int]:
    """The tokens of a text, or of a conversation's turns, each of which but the last ends with the end of text."""
    first, *others = (prompt,) if isinstance(prompt, str) else prompt
    ids = list(tokenizer(first)["input_ids"])
    for turn in others:
        ids += [tokenizer.eos_token_id, *tokenizer(turn, add_special_tokens=False)["input_ids"]]
    return ids


def unlike_gguf(tokenizer: Any) -> str | None:
    """Why no GGUF file cuts text as the tokenizer does, if that is so."""
    kind = type(tokenizer.backend_tokenizer.model).__name__
    if kind != "BPE":
        return f"cuts text by {kind}, and llama.cpp by BPE alone"
    probe, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    before = probe[: len(probe) - len(bare)]
    if before not in ([], [tokenizer.bos_token_id]):
        put = ", ".join(tokenizer.convert_ids_to_tokens(before))
        return f"begins every text with {put}, where a GGUF file can have one BOS before it"
    return None


def special_inside(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """The special tokens that `text` spells."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted({token for token in special if token in text} - {*NEVER_TEXT, ""})


def continuation(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text that `ids` add to a text before them, special tokens left out.

    Decoded by themselves they would lose their first space where the tokenizer puts one before every text (Llama 2,
    Mistral, Phi 3), and a body of code its indentation.
    """
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return text([*anchor, *ids])[len(text(anchor)) :]


def end_tokens(tokenizer: "PreTrainedTokenizerBase", model) -> set[int]:
    """The tokens that end an answer: the tokenizer's end of text, and the model's own."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return ends - {None}


def padding(tokenizer: "PreTrainedTokenizerBase", end: str, rows: int) -> str:
    """A token that may pad: a special one that is called so, else one that ends texts, else any but `end`, else one that
    fills up the vocabulary, else a byte that no text has; of the model's `rows`, as transformers adds some beyond them.

    Errors: JobError if there is none.
    """
    special = [
        str(token)
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and str(token) != end and number < rows
    ]
    for word in ("pad", "endoftext", "unk", ""):
        found = next((token for token in special if word in token.lower()), None)
        if found is not None:
            return found
    vocabulary = tokenizer.get_vocab()
    filling = [token for token, number in vocabulary.items() if "[pad" in token.lower() and number < rows]
    if filling:
        return min(filling)
    for token in NEVER_TEXT:
        if token != end and vocabulary.get(token, rows) < rows:
            return token
    raise JobError(f"the tokenizer has no token beside its end of text, {end}, that could pad")
