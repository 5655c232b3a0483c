"""TRL's GRPOTrainer with what the job adds: groups without a signal, logged completions, times per phase."""

import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from trl import GRPOTrainer

from jobs.files import read_jsonl, write_jsonl
from jobs.params import Grpo
from jobs.rewards import Scorer


class Trainer(GRPOTrainer):
    """GRPOTrainer over a Scorer.

    `grpo.equal_groups` says what becomes of groups whose rewards are all equal, and so carry no signal: `keep` them as
    TRL does, `drop` their tokens from the loss and its normaliser, or `refill` the batch with other tasks' groups.
    """

    def __init__(self, *, scorer: Scorer, grpo: Grpo, directory: Path, **options) -> None:
        super().__init__(**options)
        self.scorer, self.grpo, self.directory = scorer, grpo, directory
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, phase: str, function, *arguments, **options):
        began = time.perf_counter()
        result = function(*arguments, **options)
        self.seconds[phase] += time.perf_counter() - began
        return result

    def _generate_single_turn(self, *arguments, **options):
        return self.timed("rollout", super()._generate_single_turn, *arguments, **options)

    def _calculate_rewards(self, *arguments, **options):
        return self.timed("reward", super()._calculate_rewards, *arguments, **options)

    def training_step(self, *arguments, **options):
        return self.timed("step", super().training_step, *arguments, **options)

    def times(self) -> dict[str, float]:
        """Seconds by phase: what is left of a step after rollout and reward is training."""
        seconds = dict(self.seconds)
        whole = seconds.pop("step", 0.0)
        seconds["train"] = whole - sum(seconds.values())
        return {k: round(v, 3) for k, v in seconds.items()} | {"waiting_for_verdicts": round(self.scorer.waited, 3)}

    def _generate(self, prompts: list):
        result = super()._generate(prompts)
        return result

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        output = super()._generate_and_score_completions(inputs)
        self.log_completions_table()
        if self.grpo.equal_groups != "keep":
            output = self.without_equal_groups(output)
        return output

    def without_equal_groups(self, output: dict) -> dict:
        """Masks the completions of groups whose advantages are all zero, and counts the rest anew for the normaliser."""
        size = self.num_generations
        live = (output["advantages"].view(-1, size) != 0).any(dim=1).repeat_interleave(size)
        output["completion_mask"] = output["completion_mask"] * live.unsqueeze(1).to(output["completion_mask"].dtype)
        output["num_items_in_batch"] = output["completion_mask"].sum().clamp(min=1).to(output["num_items_in_batch"])
        return output

    def log_completions_table(self) -> None:
        """Keeps this step's completions in the checkpoint folder, so that a resumed run has the earlier ones."""
        every, step = self.grpo.log_completions_every, self.state.global_step + 1
        if not every or (step != 1 and step % every):
            return
        logs, count = self._logs, self.args.generation_batch_size
        columns = {"task_id": logs["extra"]["task_id"], "completion": logs["completion"],
                   "status": logs["extra"]["status"], **logs["rewards"], "advantage": logs["advantages"]}
        recent = {name: list(values)[-count:] for name, values in columns.items()}
        write_jsonl(self.directory / f"completions-{step:06d}.jsonl",
                    ({"step": step, **{n: rounded(v[i]) for n, v in recent.items()}} for i in range(count)))

    def logged_completions(self) -> list[dict]:
        return [row for path in sorted(self.directory.glob("completions-*.jsonl")) for row in read_jsonl(path)]


def rounded(value):
    return round(value, 6) if isinstance(value, float) else value
