"""Attacks on jobs/weights: broken files, and rounding against torch's."""

import json
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jobs.common.errors import JobError
from jobs.weights import floats
from jobs.weights import safetensors as files
from tests.exact import nearest


def write(path, entries, data=b"", length=None):
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": shape or [(end - start) // 4], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("entries", "data", "length", "says"),
    [
        (b"", b"", 1 << 60, "not a safetensors file"),
        (b"{", b"", None, "broken"),
        (b"[1]", b"", None, "broken"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"abcd", None, "broken"),
        ({"a": {"dtype": "F32", "shape": 7, "data_offsets": [0, 4]}}, b"abcd", None, "broken"),
        ({"a": entry(0, 4, "Q4")}, b"abcd", None, "unknown type"),
        ({"a": entry(0, 8)}, b"abcd", None, "bytes long"),
        ({"a": entry(0, 4)}, b"abcdefgh", None, "bytes long"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12, None, "starts at byte"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"x" * 12, None, "starts at byte"),
        ({"a": entry(0, 4, shape=[2])}, b"x" * 4, None, "bytes long"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, entries, data, length, says):
    path = write(tmp_path / "model.safetensors", entries, data, length)
    with pytest.raises(JobError, match=says) as caught:
        files.header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_a_cut_file_is_refused(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(8)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(JobError):
        files.header(path)


def test_a_file_cut_after_its_header_was_read_is_an_error_not_zeros(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(8)}, path)
    tensor = files.header(path)[1][0]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(JobError, match="ends at byte"):
        tensor.values()


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for where in ({"a": "one.safetensors"}, {"a": "one.safetensors", "b": "two.safetensors"}, {}, [1]):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(JobError, match=r"index\.json"):
            files.shards(tmp_path)
    index.unlink()
    with pytest.raises(JobError, match="no safetensors file"):
        files.shards(tmp_path)


def test_a_file_beside_the_index_of_others_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in files.shards(tmp_path)] == ["model-00001-of-00001.safetensors"]
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(JobError, match="beside an index of other files"):
        files.shards(tmp_path)


def test_a_tensor_in_two_files_is_refused_whichever_the_index_names(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "two.safetensors")
    for name in ("one", "two"):
        where = {"b": "one.safetensors", "a": f"{name}.safetensors"}
        index = {"weight_map": where | ({} if name == "two" else {"c": "two.safetensors"})}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(JobError, match=r"one\.safetensors and two\.safetensors both hold a"):
            files.shards(tmp_path)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "gemma2"}, True),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, False),
        ({"model_type": "llama"}, False),
        ({"model_type": "gemma3", "text_config": {"tie_word_embeddings": False}}, False),
        ({"tie_word_embeddings": True}, True),
    ],
)
def test_ties_are_the_familys_where_the_config_does_not_say(tmp_path, config, tied):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert files.is_tied(tmp_path) is tied


def test_a_config_of_no_known_family_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "a_family_of_next_year"}')
    with pytest.raises(JobError, match=r"config\.json: cannot be read as a model's"):
        files.is_tied(tmp_path)


TORCH = {"F16": torch.float16, "BF16": torch.bfloat16}
EDGES = np.array(
    [
        0.0,
        -0.0,
        1e-45,
        -1e-40,
        2.0**-24,
        2.0**-25,
        3 * 2.0**-25,
        2.0**-14,
        6.1e-5,
        65504,
        65519.99,
        1 + 2.0**-8,
        1 + 2.0**-9,
        1 + 3 * 2.0**-9,
        -3.3895e38,
        1.0039062,
        1.0039063,
    ],
    np.float32,
)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_rounding_is_torchs_bit_for_bit(dtype):
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), EDGES, -EDGES])
    values = values[np.isfinite(values)]
    with np.errstate(all="ignore"):
        rounded, stored = floats.encoded(values, dtype)
        ours = stored.view(np.uint16)
    theirs = torch.from_numpy(values).to(TORCH[dtype])
    assert (ours == theirs.view(torch.uint16).numpy()).all()
    fits = theirs.isfinite().numpy()
    assert (rounded[fits].view(np.uint32) == theirs.float().numpy()[fits].view(np.uint32)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_float64_is_rounded_once(dtype):
    """At and beside every kind of place where rounding turns, where two roundings in a row go wrong."""
    draw = np.random.default_rng(1)
    power = draw.integers(-30, 14, 4000)
    kept = {"F16": 10, "BF16": 7, "F32": 23}[dtype]
    grid = (2**kept + draw.integers(0, 2**kept, 4000)) * 2.0**-kept  # numbers that the format holds, in [1, 2)
    off = draw.choice([0, 1, 2**-40, -(2.0**-40), 2**-28, -(2.0**-28)], 4000) + draw.choice([0, 0.5, 1], 4000)
    values = draw.choice([-1, 1], 4000) * (grid + off * 2.0**-kept) * 2.0**power
    rounded, stored = floats.encoded(values, dtype)
    expected = np.array([nearest(Fraction(x), dtype) for x in values])
    assert (floats.widened(stored.view(np.uint16) if dtype == "BF16" else stored) == expected).all()
    assert (rounded == expected).all()
    twice = floats.widened(floats.encoded(values.astype(np.float32), dtype)[1])
    assert dtype == "F32" or (twice != expected).sum() > 100, "no value tells one rounding from two"


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_number_survives_reading_and_writing(dtype):
    raw = np.arange(2**16, dtype=np.uint16)
    values = floats.decoded(raw.tobytes(), dtype, "x")
    kept = ~np.isnan(values)
    assert (floats.encoded(values, dtype)[1].view(np.uint16)[kept] == raw[kept]).all()


def test_infinity_is_seen_in_every_format():
    for dtype, large in (("F16", 65520.0), ("BF16", 3.4e38), ("F32", np.inf)):
        assert not floats.finite(floats.encoded(np.array([1.0, large], np.float32), dtype)[1])
        assert floats.finite(floats.encoded(np.array([1.0, 65504.0], np.float32), dtype)[1])


def test_bfloat16_becomes_float16_as_through_float32():
    every = np.arange(1 << 16, dtype=np.uint16)
    ours = floats.float16_of_bfloat16(every)
    with np.errstate(over="ignore"):
        assert (ours.view(np.uint16) == floats.widened(every).astype(np.float16).view(np.uint16)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_noise_is_one_stream_however_it_is_cut(rows, columns, data):
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    whole = floats.noise(7, slice(0, rows), columns)
    assert (floats.noise(7, slice(first, last), columns) == whole[first:last]).all()


def test_stochastic_rounding_goes_to_a_neighbour_and_is_unbiased():
    value = np.full((1000, 1000), 1 + 0.3 * 2.0**-7, np.float32)  # three tenths of the way between two neighbours
    value[::2] *= -1
    stored = floats.encoded(value, "BF16", floats.noise(1, slice(0, 1000), 1000))[1].astype(np.uint32) << 16
    magnitudes = np.abs(stored.view(np.float32))
    assert set(np.unique(magnitudes)) == {np.float32(1), np.float32(1 + 2.0**-7)}
    share = (magnitudes > 1).mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 1e6) ** 0.5
    exact = np.array([[1.5, -2.0, 0.0]], np.float32)  # what bfloat16 holds exactly never moves
    up = floats.encoded(exact, "BF16", np.full((1, 3), 0xFFFF, np.uint16))
    assert (up[1] == floats.encoded(exact, "BF16")[1]).all()


def test_only_the_dtype_of_a_config_changes():
    text = '{\n  "a": "dtype",  "torch_dtype" : "bfloat16",\n "dtype": "float32", "b": null}\n'
    changed = files.with_dtype(text, "float16")
    assert changed == text.replace('"bfloat16"', '"float16"').replace('"float32"', '"float16"')
