r"""The byte-level BPE tokenizer that a GGUF file holds, cut into words as the file itself says.

The file names how text is split before its merges apply (`tokenizer.ggml.pre`). transformers does not read that name and
splits by the family: SmolLM2, a Llama in its architecture, then loses the splitting of digits. The expressions here are
llama.cpp's for these names (src/llama-vocab.cpp), not the models' own, from which some differ outside ASCII: each splits
what those before it have left, and matches and the text between them are words alike.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
OTHERS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
UPPER, LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"]
PATHS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    rf"|{SPACES}"
)

# The names that are split alike, and the expressions.
GROUPS: list[tuple[str, list[str]]] = [
    (
        "gpt-2 phi-2 jina-es jina-de gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling",
        [WORDS],
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        [r"\p{N}", WORDS],
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe chatglm-bpe glm4 glm5",
        [rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{OTHERS}"],
    ),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        [rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{OTHERS}"],
    ),
    (
        "qwen35",
        [rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"],
    ),
    (
        "seed-coder",
        [rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"],
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        [
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
            r"\s*[\r\n]|\s+(?!\S)|\s+"
        ],
    ),
    (
        "tekken",
        ["|".join([*CASED, r"\p{N}", PATHS])],
    ),
    (
        "gpt-4o llama4 kanana2 minimax-m2",
        ["|".join([*(f"{word}{SUFFIX}?" for word in CASED), r"\p{N}{1,3}", PATHS])],
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm",
        [r"\p{N}{1,3}", CJK, DEEPSEEK],
    ),
    (
        "deepseek-coder",
        [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
    ),
    (
        "falcon",
        [r"[\p{P}\$\+<=>\^~\|`]+", WORDS, "[0-9][0-9][0-9]"],
    ),
    (
        "poro-chat bloom gpt3-finnish",
        [r" ?[^(\s|.,!?…。，、।۔،)]+"],
    ),
    (
        "viking",
        [r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"],
    ),
    (
        "default",
        [r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", "[0-9][0-9][0-9]"],
    ),
]
SPLITS = {name: split for names, split in GROUPS for name in names.split()}
# Texts that the expressions split differently.
PROBES = [
    "def add(a, b):\n    return a + 12345 != b\n\n\n\t#  it's 1.5e10\r\n",
    "WE'LL DON'T HTTPServer2 camelCase __init__ x=-1 ...!!! a/b\\n  ",
    "ünïcode e\u0301 漢字かな 한국어 привет १२३ 🙂",
]
LLAMA_3 = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
WHOLE_WORDS = LLAMA_3 | {"glm4", "glm5", "tekken"}  # a word that is a token is that token, whatever the merges say
BEGIN = LLAMA_3 | {"tekken"}  # a text begins with BOS where the file does not say


def tokenizer_of(path: Path) -> "Tokenizer":
    """The tokenizer of the GGUF file `path`, whose tokens are those of llama.cpp for every text.

    A byte for which the vocabulary has no token is left out, as llama.cpp leaves it out, and parts the tokens around it.
    Errors: JobError for a pre-tokenizer that is not known here, and for merges that do not fit the vocabulary.
    """
    from gguf import TokenType
    from tokenizers import Tokenizer, decoders, models
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    fields = fields_of(path)
    pre = fields.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        said = f"names a pre-tokenizer that is not known here, {pre}" if pre else "names no pre-tokenizer"
        raise JobError(
            f"{path}: {said} (tokenizer.ggml.pre), and its text would be cut into other tokens; take the model from its "
            f"folder, or one of {', '.join(sorted(SPLITS))}"
        )
    tokens, types = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type") or []
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [(merge[: (at := merge.index(" ", 1))], merge[at + 1 :]) for merge in fields["tokenizer.ggml.merges"]]
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS))
    except Exception as error:  # tokenizers raises nothing more special
        raise JobError(f"{path}: its merges do not fit its vocabulary ({one_line(error)})") from error
    missing = [letter for letter in bytes_to_unicode().values() if letter not in vocabulary]
    tokenizer.pre_tokenizer = splitting(SPLITS[pre], missing)
    tokenizer.decoder = decoders.ByteLevel()
    put_apart(tokenizer, zip(tokens, types, strict=False), {TokenType.CONTROL})
    put_around(tokenizer, fields, begin=pre in BEGIN)
    return tokenizer


def is_known(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether one of these names is of how a tokenizer splits text; True for one that is no byte-level BPE."""
    from tokenizers import Tokenizer

    held: Any = tokenizer
    if '"ByteLevel"' not in json.dumps(json.loads(held.backend_tokenizer.to_str()).get("pre_tokenizer")):
        return True
    expected = [held(text, add_special_tokens=False).input_ids for text in PROBES]
    tried = Tokenizer.from_str(held.backend_tokenizer.to_str())
    for _, split in GROUPS:
        tried.pre_tokenizer = splitting(split)
        if [tried.encode(text, add_special_tokens=False).ids for text in PROBES] == expected:
            return True
    return False


def splitting(split: list[str], missing: Iterable[str] = ()) -> Any:
    """The pre-tokenizer of these expressions; missing: the letters of bytes that no token is for."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(one), "isolated") for one in split]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    if missing:
        steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, missing))), "removed"))
    return pre_tokenizers.Sequence(steps)


def put_apart(tokenizer: "Tokenizer", kinds: Iterable[tuple[str, int]], special: set[int]) -> None:
    """Has the tokenizer take tokens whole that no merge makes: those of `special` types, and the user's own."""
    from gguf import TokenType
    from tokenizers import AddedToken

    kinds = list(kinds)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind in special]
    )
    own = [token for token, kind in kinds if kind == TokenType.USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in own])


def put_around(tokenizer: "Tokenizer", fields: dict, *, begin: bool) -> None:
    """Has the tokenizer put BOS before a text, and EOS after it, as the file says; begin: BOS where it does not."""
    from tokenizers import processors

    tokens = fields["tokenizer.ggml.tokens"]

    def named(kind: str, default: bool) -> list[str]:
        number = fields.get(f"tokenizer.ggml.{kind}_token_id")
        wanted = fields.get(f"tokenizer.ggml.add_{kind}_token", default)
        return [tokens[number]] if wanted and number is not None else []

    first, last = named("bos", begin), named("eos", False)
    if first or last:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=[(token, tokens.index(token)) for token in {*first, *last}],
        )


def fields_of(path: Path) -> dict:
    """What the file says of its tokenizer, by key."""
    import gguf

    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.ggml.")}
