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


def changed(folder, file="tokenizer.json", **keys):
    held = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(held | keys))
    return folder


def test_a_token_after_every_text_is_refused_whether_it_is_the_end_or_not(tmp_path):
    with_tokens(tmp_path, **{"<|sep|>": (0, True)})
    held = json.loads((tmp_path / "tokenizer.json").read_text())
    number = held["added_tokens"][-1]["id"]
    steps = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|sep|>", "type_id": 0}}]
    after = {
        "type": "TemplateProcessing",
        "single": steps,
        "pair": [*steps, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|sep|>": {"id": "<|sep|>", "ids": [number], "tokens": ["<|sep|>"]}},
    }
    with pytest.raises(JobError, match=r"ends every text with <\|sep\|>, prompts too"):
        load_tokenizer(changed(tmp_path, post_processor=after))
    load_tokenizer(changed(tmp_path, post_processor=after | {"single": steps[::-1]}))


def test_an_end_of_text_that_the_file_does_not_have_is_refused(tmp_path):
    make_tokenizer(tmp_path)
    with pytest.raises(JobError, match=r"tokenizer\.json: does not have the end of text <\|never\|>"):
        load_tokenizer(changed(tmp_path, "tokenizer_config.json", eos_token="<|never|>"))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(JobError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_length_that_the_file_would_cut_texts_to_cuts_none(tmp_path):
    make_tokenizer(tmp_path)
    expected = load_tokenizer(tmp_path)(CODE).input_ids
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}
    pad |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    changed(tmp_path, truncation=cut, padding=pad)
    assert load_tokenizer(changed(tmp_path, "tokenizer_config.json", model_max_length=4))(CODE).input_ids == expected
