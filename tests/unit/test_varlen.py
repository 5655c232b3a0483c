"""Keys that several heads share, for an attention that knows of none."""

import torch

from jobs.training.varlen import with_shared_keys


def plain(query, key, value, scale=1.0):
    """(tokens, heads, width) each, as many heads of keys as of queries."""
    assert query.shape[1] == key.shape[1] == value.shape[1]
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value)


def test_shared_keys_are_those_of_each_head_and_their_gradients_add_up():
    torch.manual_seed(0)
    query, key, value = (torch.randn(5, heads, 8, requires_grad=True) for heads in (6, 2, 2))
    found = with_shared_keys(plain)(query, key, value, scale=0.5, enable_gqa=True)
    shared = torch.nn.functional.scaled_dot_product_attention(
        *(each.transpose(0, 1)[None] for each in (query, key, value)), scale=0.5, enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(found, shared)
    weights = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((each * weights).sum(), (query, key, value)) for each in (found, shared))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_an_attention_that_knows_of_shared_keys_is_taken_as_it_is():
    def knows(query, key, value, enable_gqa=False): ...

    assert with_shared_keys(knows) is knows
