"""Completions one step ahead (grpo.staleness: 1): while a step trains, those of the next are being sampled.

At the beginning of step k its completions are taken up, and those of step k + 1 are asked for, by the adapter as it then
is: after step k - 1. So the completions of step k are of the adapter after step k - 2, one optimizer step older than what
trains on them; those of the first two steps are of the adapter that the run began with. It hangs on no clock which adapter
that is. A checkpoint waits for the completions that are under way and keeps them.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from jobs.common.errors import JobError
from jobs.common.files import read_json, write_json
from jobs.grpo.rollout_server import RemoteRollout, Sampled

if TYPE_CHECKING:
    from jobs.grpo.trainer import Trainer

FILE = "ahead.json"  # in a checkpoint


@dataclass
class Batch:
    """A step's completions, under way or there.

    policy: after how many steps the adapter was what samples them. verdicts: of those that have ended, by text and task.
    """

    step: int
    policy: int
    prompts: list[list[int]]
    task_ids: list[str]
    sampled: "Future[Sampled]"
    verdicts: dict = field(default_factory=dict)


class Ahead:
    """Of a trainer whose completions `remote` samples: which batch is under way."""

    def __init__(self, trainer: "Trainer", remote: RemoteRollout) -> None:
        self.trainer, self.remote = trainer, remote
        self.batch: Batch | None = None
        self.epoch: tuple[int, list[list[int]]] = (-1, [])
        # The thread that hears of completions has a tokenizer of its own: the trainer's cannot be asked twice at once.
        self.tokenizer = copy.deepcopy(trainer.processing_class)

    def take(self, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        """The completions of this step's prompts of token ids, and their log-probabilities; asks for the next step's."""
        trainer, done = self.trainer, self.trainer.state.global_step
        batch = self.batch or self.ask(done + 1, prompts, trainer.task_ids)
        self.batch = None
        if (batch.step, batch.prompts, batch.task_ids) != (done + 1, prompts, trainer.task_ids):
            raise JobError(f"step {done + 1}: what was sampled for it is of other tasks; remove the checkpoints")
        found = batch.sampled.result()
        trainer.scorer.pending |= batch.verdicts
        trainer._metrics["train"]["staleness"].append(float(done - batch.policy))
        trainer.seconds["sampling"] += found.seconds
        if done + 1 < trainer.args.max_steps:
            rows = [trainer.train_dataset[i] for i in self.tasks_of(done + 1)]
            texts = [row["prompt"] for row in rows]
            self.batch = self.ask(done + 2, trainer._tokenize_prompts(texts)[0], [row["task_id"] for row in rows])
        return found.ids, found.logps

    def ask(self, step: int, prompts: list[list[int]], task_ids: list[str]) -> Batch:
        """Has a step's completions sampled by the adapter as it is now."""
        trainer = self.trainer
        batch = Batch(step, trainer.state.global_step, prompts, list(task_ids), Future())
        judge = trainer.scorer.judging(self.tokenizer, prompts, task_ids, batch.verdicts)
        model = trainer.accelerator.unwrap_model(trainer.model)
        batch.sampled = self.remote.sample(model, prompts, drawn_seed(), {*trainer.eos_token_ids}, judge)
        return batch

    def tasks_of(self, number: int) -> list[int]:
        """The numbers of the tasks of the run's step `number`, counted from 0, one for each completion."""
        whole = self.epoch_of(0)
        epoch, place = divmod(number, len(whole))
        return self.epoch_of(epoch)[place]

    def epoch_of(self, epoch: int) -> list[list[int]]:
        """By step of an epoch, what the trainer's own sampler will give; an order that is planned has but one epoch."""
        if self.epoch[0] != epoch:
            self.epoch = (epoch, list(self.steps(epoch)))
        return self.epoch[1]

    def steps(self, epoch: int) -> Iterator[list[int]]:
        sampler = self.trainer._get_train_sampler()
        if self.trainer.order is None:
            sampler.set_epoch(epoch)
        args = self.trainer.args
        numbers, size = list(sampler), args.generation_batch_size
        for start in range(0, len(numbers), size * args.steps_per_generation):  # a batch comes once for every pass
            yield numbers[start : start + size]

    def save(self, checkpoint: Path) -> None:
        """Waits for the completions under way, and keeps them in the folder of a checkpoint."""
        if self.batch is None:
            return
        found = self.batch.sampled.result()
        facts = {name: getattr(self.batch, name) for name in ("step", "policy", "prompts", "task_ids")}
        write_json(checkpoint / FILE, facts | {"ids": found.ids, "logps": found.logps})

    def load(self, checkpoint: Path) -> None:
        """Errors: JobError where a checkpoint has no completions."""
        kept = read_json(checkpoint / FILE)
        ready: Future = Future()
        ready.set_result(Sampled(kept.pop("ids"), kept.pop("logps"), 0.0))
        self.batch = Batch(**kept, sampled=ready)


def drawn_seed() -> int:
    """By torch's generator, whose state checkpoints keep."""
    return int(torch.randint(2**62, (1,)))
