import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from jobs.inference.llama_cpp import nucleus

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.95), (0.2, 0.5), (1.5, 0.9), (1.0, 1.0)])
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(temperature, top_p):
    logits = np.random.default_rng(0).normal(0, 3, 500).astype(np.float32)
    expected = torch.from_numpy(logits)[None].clone()
    for warper in (TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)):
        expected = warper(None, expected)
    ours = nucleus(logits.copy(), temperature, top_p)
    assert np.isfinite(ours).sum() < 500 or top_p == 1.0
    np.testing.assert_allclose(ours, expected[0].numpy(), rtol=1e-6)


def test_the_likeliest_token_is_always_left():
    ours = nucleus(np.array([0.0, 9.0, 1.0], dtype=np.float32), 0.5, 1e-9)
    assert np.isfinite(ours).tolist() == [False, True, False]


def vocabulary(path, pre="qwen2", tokens=("a", "b", "<|end|>")):
    """A GGUF file of a few tokens and no weights."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path):
    code = f"from pathlib import Path\nfrom jobs.inference.llama_cpp import vocabulary\nvocabulary(Path({str(path)!r}))"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_file_at_which_llama_cpp_stops_ends_the_job_in_one_line(tmp_path):
    done = load(vocabulary(tmp_path / "twice.gguf", tokens=("a", "a", "b", "<|end|>")))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith(f"error: {tmp_path / 'twice.gguf'}: llama.cpp stops: GGML_ASSERT(")
        and "llama-vocab.cpp:" in line
    )


def test_why_a_file_is_not_loaded_is_what_llama_cpp_logs(tmp_path):
    from jobs.common.errors import JobError
    from jobs.inference import llama_cpp

    with pytest.raises(
        JobError, match=r"someones\.gguf: cannot be loaded by llama\.cpp \(.*unknown pre-tokenizer type: 'x'\)"
    ):
        llama_cpp.vocabulary(vocabulary(tmp_path / "someones.gguf", pre="x"))
    llama_cpp.vocabulary(vocabulary(tmp_path / "good.gguf")).close()
    (tmp_path / "text.gguf").write_bytes(b"not a model")
    with pytest.raises(JobError, match=r"text\.gguf: cannot be loaded by llama\.cpp") as caught:
        llama_cpp.vocabulary(tmp_path / "text.gguf")
    assert "someones" not in str(caught.value) and "'x'" not in str(caught.value)
