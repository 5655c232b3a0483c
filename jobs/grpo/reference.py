"""Whether GRPO's KL term is measured against the model that the run began with."""

from transformers import TrainerCallback

from jobs.common.errors import JobError

MOST = 0.01  # of KL in the first step: rounding in bfloat16 gives less than 0.001, another model 0.1 and more


class ReferenceCheck(TrainerCallback):
    """Ends a run whose policy is not its own reference in the first step, before anything was learned.

    An engine may take the base for the reference; the KL term then undoes what SFT has taught.
    """

    def on_log(self, args, state, control, logs=None, **_) -> None:
        kl = (logs or {}).get("kl")
        if state.global_step == 1 and kl is not None and abs(kl) > MOST:
            raise JobError(
                f"step 1: the KL to the reference is {kl:.3g} before any step was taken, so the reference is not the model "
                "that this run began with; set grpo.beta to 0, or another grpo.engine"
            )
