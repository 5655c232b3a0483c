"""The SentencePiece tokenizer that a GGUF file holds: BPE by scores, with bytes as a fallback.

llama.cpp joins the neighbours whose piece scores highest; here a merge comes the earlier the higher its piece scores.
transformers leaves out what such a file puts before a text: Llama 2, Mistral and Gemma would be trained without BOS.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError
from jobs.weights.byte_level import fields_of, put_apart, put_around

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_of(path: Path) -> "Tokenizer":
    """The tokenizer of the GGUF file `path`, whose tokens are those of llama.cpp for every text.

    Errors: JobError for a vocabulary without scores, or without the bytes that everything else falls back to.
    """
    from gguf import TokenType
    from tokenizers import Tokenizer, decoders, models, normalizers

    fields = fields_of(path)
    tokens, scores = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.scores")
    types = fields.get("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    if not scores or TokenType.BYTE not in types:
        raise JobError(f"{path}: its pieces have no scores or no bytes (tokenizer.ggml.scores, token_type)")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    normal = {
        token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == TokenType.NORMAL
    }
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    model = models.BPE(vocabulary, merges(normal, vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    spaces = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    put_apart(tokenizer, zip(tokens, types, strict=True), {TokenType.CONTROL, TokenType.UNKNOWN})
    put_around(tokenizer, fields, begin=True)
    return tokenizer


def merges(scores: dict[str, float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, those of the highest score first."""
    pairs = [
        (-score, vocabulary[piece], piece[:at], piece[at:])
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    return [(left, right) for _, _, left, right in sorted(pairs)]
