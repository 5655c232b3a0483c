"""Byte-level BPE out of GGUF files, beside llama.cpp's own tokenizer on the same files."""

import json
import random

import pytest

from jobs.common.errors import JobError
from jobs.gguf.texts import PIECES, TEXTS, mixed
from jobs.weights.byte_level import GROUPS, SPLITS, WHOLE_WORDS, tokenizer_of
from jobs.weights.tokenizer import left_out

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

END, BEGIN, MINE = "<|end|>", "<|begin|>", "<mine>"
CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
# Letters, digits, marks, punctuation and spaces of many scripts, and what no model was made for.
BLOCKS = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x530), (0x590, 0xE80), (0x1100, 0x1300), (0x2000, 0x2C00)]
BLOCKS += [(0x3000, 0xA000), (0xAC00, 0xD7A0), (0xF900, 0xFFFF), (0x1F300, 0x1FA00), (0, 0x20)]


def drawn(count, seed):
    """Texts of pieces of code and characters of all blocks."""
    draw = random.Random(seed)

    def piece():
        return draw.choice(PIECES) if draw.random() < 0.5 else chr(draw.randrange(*draw.choice(BLOCKS)))

    return ["".join(piece() for _ in range(draw.randint(1, 12))) for _ in range(count)]


FUZZ = [*TEXTS, *mixed(200, seed=7), *drawn(800, seed=1)]


@pytest.fixture(scope="module")
def learned():
    """Tokens and merges of a BPE that no word's bound has held back, so that every bound shows in the ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        max_token_length=8,
        show_progress=False,
        special_tokens=[END, BEGIN, MINE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*TEXTS, *mixed(400, seed=3), *drawn(400, seed=2)], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return [*tokens, "Ġunreachable"], [" ".join(merge) for merge in model["merges"]]  # one that no merge makes


def write(path, learned, pre, **more):
    """A GGUF file of nothing but that vocabulary."""
    tokens, merges = learned
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    types = [CONTROL, CONTROL, USER_DEFINED]
    writer.add_token_types([*types, *[NORMAL] * (len(tokens) - len(types))])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def differing(path, texts):
    from jobs.inference.llama_cpp import vocabulary

    ours, theirs = tokenizer_of(path), vocabulary(path)
    try:
        return [text for text in texts if ours.encode(text).ids != theirs.tokenize(text.encode(), True, False)]
    finally:
        theirs.close()


@pytest.mark.parametrize("name", [names.split()[0] for names, _ in GROUPS])
def test_text_is_cut_as_llama_cpp_cuts_it(tmp_path, learned, name):
    assert differing(write(tmp_path / "v.gguf", learned, name), FUZZ) == []


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_every_name_is_one_of_llama_cpps_with_these_splits(tmp_path, learned, name):
    hard = ["x = 12345 ½ ௧௨\n\n  I'LL we'll 12.5/7\t\t_é", "ΑΒΓ camelCase नमस्ते 中文12a  \r\n ", "it unreachable <mine>"]
    assert differing(write(tmp_path / "v.gguf", learned, name), hard) == []


def test_a_word_that_is_a_token_is_that_token_where_llama_cpp_looks_it_up(tmp_path, learned):
    number = learned[0].index("Ġunreachable")
    for name in ("llama-bpe", "qwen2"):
        ids = tokenizer_of(write(tmp_path / f"{name}.gguf", learned, name)).encode("it unreachable").ids
        assert (number in ids) == (name in WHOLE_WORDS)


def test_what_stands_around_a_text_is_what_the_file_says(tmp_path, learned):
    cases = [
        ("qwen2", {}, []),
        ("qwen2", {"add_bos_token": True}, [1]),
        ("llama-bpe", {}, [1]),
        ("llama-bpe", {"add_bos_token": False}, []),
    ]
    for i, (pre, more, begin) in enumerate(cases):
        path = write(tmp_path / f"{i}.gguf", learned, pre, **more)
        assert tokenizer_of(path).encode("ab").ids[: len(begin) or 1] != [] and differing(path, ["ab", ""]) == []
        assert tokenizer_of(path).encode("").ids == begin


def test_a_byte_without_a_token_is_left_out_and_parts_its_neighbours(tmp_path, learned):
    from transformers import PreTrainedTokenizerFast

    tokens, merges = learned
    gone = {"Ć", "ñ", "À"}  # how byte-level BPE writes 0x06, 0xF1 and 0xC0
    kept = [token for token in tokens if not gone & set(token)]
    fitting = [merge for merge in merges if not gone & set(merge) and "".join(merge.split(" ")) in set(kept)]
    path = write(tmp_path / "v.gguf", (kept, fitting), "smollm")
    texts = ["==\x06==", "a\x06b", "\x06", "  \x06  x", "\U00050000", "=\U00050000=", *FUZZ]
    assert differing(path, texts) == []
    assert tokenizer_of(path).encode("a\x06").ids == tokenizer_of(path).encode("a").ids
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(path)).save_pretrained(tmp_path)
    assert left_out(tmp_path) == [0x06, 0xF1]  # 0xC0 is in no UTF-8 text


@pytest.mark.parametrize(("pre", "said"), [("someones-own", "not known here, someones-own"), (None, "names no pre-")])
def test_a_pre_tokenizer_that_is_not_known_is_refused_in_one_line(tmp_path, learned, pre, said):
    with pytest.raises(JobError, match=said) as caught:
        tokenizer_of(write(tmp_path / "v.gguf", learned, pre))
    assert "v.gguf" in str(caught.value) and "tokenizer.ggml.pre" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merges_of_another_vocabulary_are_refused_in_one_line(tmp_path, learned):
    tokens, merges = learned
    with pytest.raises(JobError, match=r"v\.gguf: its merges do not fit its vocabulary") as caught:
        tokenizer_of(write(tmp_path / "v.gguf", (tokens[:300], merges), "qwen2"))
    assert "\n" not in str(caught.value)
