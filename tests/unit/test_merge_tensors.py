"""Attacks on jobs/weights/tensors.py: broken files, and rounding against torch's."""

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jobs.common.errors import JobError
from jobs.weights import tensors


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
        tensors.header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_a_cut_file_is_refused(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(8)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(JobError):
        tensors.header(path)


def test_a_file_cut_after_its_header_was_read_is_an_error_not_zeros(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(8)}, path)
    tensor = tensors.header(path)[1][0]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(JobError, match="ends at byte"):
        tensor.values()


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for where in ({"a": "one.safetensors"}, {"a": "one.safetensors", "b": "two.safetensors"}, {}, [1]):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(JobError, match=r"index\.json"):
            tensors.shards(tmp_path)
    index.unlink()
    with pytest.raises(JobError, match="neither"):
        tensors.shards(tmp_path)


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
        rounded, stored = tensors.encoded(values, dtype)
        ours = stored.view(np.uint16)
    theirs = torch.from_numpy(values).to(TORCH[dtype])
    assert (ours == theirs.view(torch.uint16).numpy()).all()
    fits = theirs.isfinite().numpy()
    assert (rounded[fits].view(np.uint32) == theirs.float().numpy()[fits].view(np.uint32)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_near_a_tie_misses_nothing_that_the_slack_can_change(dtype):
    draw = np.random.default_rng(1)
    power = draw.integers(-30, 10, (300, 400))
    values = (draw.uniform(1, 2, (300, 400)) * 2.0**power * draw.choice([-1, 1], (300, 400))).astype(np.float32)
    values[:, :40] = tensors.widened(tensors.encoded(values[:, :40], dtype)[1])  # on the grid itself,
    values[:, 40:60] = 2.0 ** power[:, 40:60] * (1 + draw.integers(-3, 4, (300, 20)) * 2.0**-23)  # by powers of two
    slack = (10.0 ** draw.uniform(-14, -1, (300, 1))).astype(np.float32)
    low, high = (tensors.encoded(values + end, dtype)[1].view(np.uint16) for end in (-slack, slack))
    near = np.zeros(values.size, bool)
    near[tensors.near_a_tie(values, slack, dtype)] = True
    changed = (low != high).reshape(-1)
    assert changed.sum() > 1000
    assert not (changed & ~near).any()
    small = slack[:, 0] < 1e-9
    normal = np.abs(values[small]) > 2.0**-8
    assert near.reshape(300, 400)[small][normal].mean() < 0.01, "nearly everything is near"


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_number_survives_reading_and_writing(dtype):
    raw = np.arange(2**16, dtype=np.uint16)
    values = tensors.decoded(raw.tobytes(), dtype, "x")
    kept = ~np.isnan(values)
    assert (tensors.encoded(values, dtype)[1].view(np.uint16)[kept] == raw[kept]).all()


def test_infinity_is_seen_in_every_format():
    for dtype, large in (("F16", 65520.0), ("BF16", 3.4e38), ("F32", np.inf)):
        assert not tensors.finite(tensors.encoded(np.array([1.0, large], np.float32), dtype)[1])
        assert tensors.finite(tensors.encoded(np.array([1.0, 65504.0], np.float32), dtype)[1])


def test_bfloat16_becomes_float16_as_through_float32():
    every = np.arange(1 << 16, dtype=np.uint16)
    ours = tensors.float16_of_bfloat16(every)
    with np.errstate(over="ignore"):
        assert (ours.view(np.uint16) == tensors.widened(every).astype(np.float16).view(np.uint16)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_noise_is_one_stream_however_it_is_cut(rows, columns, data):
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    whole = tensors.noise(7, slice(0, rows), columns)
    assert (tensors.noise(7, slice(first, last), columns) == whole[first:last]).all()


def test_stochastic_rounding_goes_to_a_neighbour_and_is_unbiased():
    value = np.full((1000, 1000), 1 + 0.3 * 2.0**-7, np.float32)  # three tenths of the way between two neighbours
    value[::2] *= -1
    stored = tensors.encoded(value, "BF16", tensors.noise(1, slice(0, 1000), 1000))[1].astype(np.uint32) << 16
    magnitudes = np.abs(stored.view(np.float32))
    assert set(np.unique(magnitudes)) == {np.float32(1), np.float32(1 + 2.0**-7)}
    share = (magnitudes > 1).mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 1e6) ** 0.5
    exact = np.array([[1.5, -2.0, 0.0]], np.float32)  # what bfloat16 holds exactly never moves
    up = tensors.encoded(exact, "BF16", np.full((1, 3), 0xFFFF, np.uint16))
    assert (up[1] == tensors.encoded(exact, "BF16")[1]).all()


def test_only_the_dtype_of_a_config_changes():
    text = '{\n  "a": "dtype",  "torch_dtype" : "bfloat16",\n "dtype": "float32", "b": null}\n'
    changed = tensors.with_dtype(text, "float16")
    assert changed == text.replace('"bfloat16"', '"float16"').replace('"float32"', '"float16"')
