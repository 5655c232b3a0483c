import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from jobs.inference.llama_cpp import nucleus


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
