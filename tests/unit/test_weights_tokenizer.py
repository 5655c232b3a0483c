"""One loader of tokenizers: text is text, numbers are the file's, and what is written goes on from what was read."""

import json

import pytest

from jobs.common.errors import JobError
from jobs.weights.tokenizer import continuation, load_tokenizer
from tests.toy import make_pieces_tokenizer, make_tokenizer

CODE = "def f(a):\n    return a  # naïve 日本\n"


def with_tokens(folder, **added):
    """The byte-level tokenizer with further tokens: name -> (number behind the last one, special)."""
    make_tokenizer(folder)
    held = json.loads((folder / "tokenizer.json").read_text())
    plain, first = held["added_tokens"][0], len(held["model"]["vocab"])
    for name, (number, special) in added.items():
        held["added_tokens"].append(plain | {"id": first + number, "content": name, "special": special})
    (folder / "tokenizer.json").write_text(json.dumps(held))
    return folder


@pytest.mark.parametrize("make", [make_tokenizer, lambda out: make_pieces_tokenizer(out, prepend=True)])
def test_what_is_written_keeps_its_indentation(tmp_path, make):
    make(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer(CODE, add_special_tokens=False).input_ids
    written = [continuation(tokenizer, ids[start:]) for start in range(len(ids))]
    begins_with_space = [text for text in written if text.startswith(" ")]
    assert begins_with_space
    # The first of the pieces has the space that the tokenizer put before the text.
    assert all(f" {CODE}".endswith(text) for text in written if "\ufffd" not in text)
    assert continuation(tokenizer, [*ids, tokenizer.eos_token_id]) == continuation(tokenizer, ids)


def test_a_token_that_looks_special_is_text_though_it_is_not_called_so(tmp_path):
    names = {"<|im_start|>": (0, True), "<|fim_prefix|>": (1, False), "<think>": (2, False)}
    tokenizer = load_tokenizer(with_tokens(tmp_path, **names))
    lengths = {name: len(tokenizer(name).input_ids) for name in names}
    assert lengths["<think>"] == 1 < min(lengths["<|im_start|>"], lengths["<|fim_prefix|>"])


def test_a_token_with_another_number_than_the_file_gives_it_is_refused(tmp_path):
    with pytest.raises(JobError, match=r"tokenizer\.json: numbers <\|far\|> \d+, but it is loaded as \d+$"):
        load_tokenizer(with_tokens(tmp_path, **{"<|far|>": (8, True)}))
