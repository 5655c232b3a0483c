"""A prompt in one forward pass for all completions of its group, by Unsloth's PrefixGrouper; off, and set by hand to be
measured.

Unsloth lays a group into one row, [prompt, completion, completion, ...], in which a completion sees the prompt and itself.
It does so where a pass holds whole groups, one behind the other, and not where completions come from vLLM: it finds that
little is gained there. `use_vllm` of the trainer is what it asks, and else needs for the importance correction alone. The
first passes, and longer ones later, it computes by packed rows too, and takes those where log-probabilities are apart.
Source: utils/prefix_grouper.py of unsloth 2026.10.7, grpo_accumulated_loss of unsloth_zoo 2026.10.7.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs.common.errors import UsageError

if TYPE_CHECKING:
    from jobs.plumbing.params import Grpo

SWITCH = "UNSLOTH_GRPO_PREFIX_GROUPER"


def prepare() -> None:
    """Before Unsloth is imported: it is off where nothing is set, as else with what it needs."""
    os.environ.setdefault(SWITCH, "0")
    if os.environ[SWITCH] == "1":
        os.environ.setdefault("UNSLOTH_GRPO_SEQ_PACKING", "1")
        # By itself Unsloth shares prompts that are more than a quarter of the tokens or so.
        os.environ.setdefault("UNSLOTH_GRPO_PREFIX_GROUPER_TOKR", "1.0")


def wanted(settings: "Grpo") -> bool:
    return settings.engine == "unsloth" and os.environ.get(SWITCH) == "1"


def check(settings: "Grpo") -> None:
    """Errors: UsageError where prompts are to be shared and these params let Unsloth share none."""
    if not wanted(settings):
        return
    wrong = {
        f"grpo.batch_size must be a multiple of grpo.generations ({settings.generations})": settings.batch_size
        % settings.generations,
        "grpo.beta must be 0": settings.beta,
        "grpo.entropy must be 0": settings.entropy,
        "grpo.importance_correction must be false": settings.importance_correction,
    }
    for said, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(f"{said} with {SWITCH}=1")


@contextmanager
def allowed(trainer: Any) -> Iterator[None]:
    """Within it Unsloth's loss may share prompts, if that is wanted."""
    before = trainer.use_vllm
    trainer.use_vllm = before and not wanted(trainer.grpo)
    try:
        yield
    finally:
        trainer.use_vllm = before


def longest(model: Any) -> int:
    """Tokens of the longest pass in which Unsloth shared prompts, once it had compared it; 0 if there was none."""
    found = getattr(model, "_unsloth_prefix_grouper_grad_verified", None) or {}
    return max((tokens for tokens, _ in found.values()), default=0)
