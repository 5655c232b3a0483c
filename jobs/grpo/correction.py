"""The correction of what trainer and rollout make differently of the same tokens, out of the pass that has the gradient.

TRL and Unsloth compare the rollout's log-probabilities to the trainer's "old" ones, which cost a forward pass of their own.
Where a batch is trained on once, before any weight has changed, the old ones are those of the pass with the gradient.
"""

import inspect
from functools import wraps
from typing import Any

import torch


def importance_ratio(
    logps: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, mode: str, cap: float
) -> torch.Tensor:
    """TRL's ratio of policy to rollout, (completions, tokens) or by `mode` (completions, 1), without a gradient.

    logps, sampled: (completions, tokens) log-probabilities by the trainer and by the rollout, which has NaN where it knows
    of none: there the ratio is 1. mask: the tokens in the loss. mode: grpo.importance_mode. cap: the largest ratio.
    Source: GRPOTrainer._generate_and_score_completions of TRL 1.14.
    """
    difference = torch.nan_to_num((logps.detach() - sampled) * mask, nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = difference.exp()
    return ratio.clamp(max=cap) if mode.endswith("truncate") else ratio.masked_fill(ratio > cap, 0.0)


def statistics(logps: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, ratio: torch.Tensor) -> dict[str, float]:
    """TRL's curves of the correction, of one pass; none of a pass without a token."""
    mask = mask.bool()
    difference = (logps.detach() - sampled)[mask].abs()
    difference = difference[~difference.isnan()]
    ratios = ratio[mask.any(dim=1)].flatten() if ratio.shape[1] == 1 else ratio[mask]
    named: dict[str, torch.Tensor] = {}
    if difference.numel():
        named |= {"sampling_logp_difference/mean": difference.mean(), "sampling_logp_difference/max": difference.max()}
    if ratios.numel():
        named |= {f"importance_sampling_ratio/{n}": getattr(ratios, n)() for n in ("min", "mean", "max")}
    return {f"sampling/{name}": value.item() for name, value in named.items()}


def take_own_for_old(trainer: type) -> None:
    """Unsloth's loss takes the log-probabilities that it differentiates for old ones where it is given none.

    trainer: the class of Unsloth's trainer, or one that comes from it. Unsloth does so itself but in the correction, which
    it computes within its autograd function: there `old` is subtracted from whatever it is.
    """
    loss = loss_function(trainer)
    if not hasattr(loss.forward, "__wrapped__"):
        loss.forward = staticmethod(own_for_old(loss.forward))


def loss_function(trainer: type) -> Any:
    """UnslothEfficientGRPO of the file that Unsloth has written the trainer to."""
    for kind in trainer.__mro__:
        if "compute_loss" in vars(kind):
            written = inspect.unwrap(vars(kind)["compute_loss"]).__globals__
            if "UnslothEfficientGRPO" in written:
                return written["UnslothEfficientGRPO"]
    raise LookupError("Unsloth's trainer has no UnslothEfficientGRPO, which grpo.importance_correction is computed in")


def own_for_old(forward):
    """`forward(ctx, new, old, reference, sampled, ...)`, log-probabilities of (completions, tokens)."""

    @wraps(forward)
    def with_old(ctx, new, old, reference, sampled, *arguments, **options):
        if old is None and sampled is not None:
            old = new.detach()
        return forward(ctx, new, old, reference, sampled, *arguments, **options)

    return with_old
