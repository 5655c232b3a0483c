"""Loading by Unsloth: its model, its kernels, and for GRPO its vLLM engine in the same process, on shared weights.

vLLM reads the adapter natively at every step (Unsloth's load_lora), so the base weights never change.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.plumbing.params import Grpo, Params, Sft
from jobs.training import dropout
from jobs.training.loop import check_adapter, load_adapter, targets_in
from jobs.weights.adapter import check_base
from jobs.weights.model import require_whole


def load(params: Params, base: Path, adapter: Path | None, settings: Sft | Grpo, *, rollout: bool = False):
    """The base in bfloat16 with a trainable LoRA adapter; with `rollout`, a vLLM engine on the same weights.

    Errors: JobError for an adapter that is not of the shape in sft.lora, or whose tensors do not fit the model.
    """
    from unsloth import FastLanguageModel  # isort: skip  (before torch and peft, which it patches)
    import torch

    require_whole(base)
    lora = params.sft.lora
    if isinstance(settings, Grpo):
        length = settings.max_prompt_length + settings.max_completion_length
    else:
        length = settings.max_length
    engine = (
        {"fast_inference": True, "max_lora_rank": lora.rank, "gpu_memory_utilization": params.grpo.gpu_memory}
        if rollout
        else {}
    )
    model, _ = FastLanguageModel.from_pretrained(
        str(base),
        max_seq_length=length,
        dtype=torch.bfloat16,
        load_in_4bit=False,
        trust_remote_code=False,
        random_state=params.seed,
        **engine,
    )
    dropout.turn_off(model, base)
    targets = targets_in(model, lora, base)
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        use_rslora=False,
        max_seq_length=length,
        random_state=params.seed,
        use_gradient_checkpointing=settings.gradient_checkpointing,
    )
    if adapter is not None:
        check_adapter(adapter, lora, targets)
        check_base(adapter, base)
        load_adapter(model, adapter)
        if isinstance(settings, Grpo) and settings.beta:
            keep_reference(model)
    return model


def keep_reference(model: Any) -> None:
    """From now on a PEFT model "with its adapter disabled" is the one with the adapter that it has now.

    GRPO's KL term is to hold the policy to the SFT model. TRL copies a given adapter for that. Unsloth takes the copy
    out, and what is left is TRL's other way, the adapter disabled: the base, which SFT has moved far away from.
    """
    given = {name: weights.detach().clone() for name, weights in model.named_parameters() if ".default." in name}

    @contextlib.contextmanager
    def disable_adapter() -> Iterator[None]:
        parameters = {name: weights for name, weights in model.named_parameters() if name in given}
        trained = {name: weights.data for name, weights in parameters.items()}
        try:
            for name, weights in parameters.items():
                weights.data = given[name]
            yield
        finally:
            for name, weights in parameters.items():
                weights.data = trained[name]

    model.disable_adapter = disable_adapter
