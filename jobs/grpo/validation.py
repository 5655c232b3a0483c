"""Validation while training: how many held-out tasks the present adapter solves, and which adapter is the best so far.

Every grpo.validate_every steps, and before the first and after the last, each held-out task is answered once greedily
and grpo.validate_samples times as in training, by the engine of the rollouts. The pass rates are curves like any other,
`validation_greedy` and `validation_sampled`. The adapter with the best of them lies in the folder of the checkpoints.

Of several ranks each answers a part of the tasks, and all know the whole result, so they decide alike.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.files import read_json, replace_dir, write_json
from jobs.common.task import Task
from jobs.grpo.rewards import MOST_INFRASTRUCTURE_ERRORS, correctness_of
from jobs.plumbing.cli import log
from jobs.training import ranks
from jobs.training.loop import save_adapter

if TYPE_CHECKING:
    from jobs.grpo.trainer import Trainer

GREEDY, SAMPLED = "validation/greedy", "validation/sampled"  # in the trainer's log
BEFORE = "validation-before.json"  # of the SFT adapter, in the folder of the checkpoints


class Validation(TrainerCallback):
    """Measures, logs, keeps the best adapter, and stops a run that has not become better for a while.

    What was measured lies in the trainer's log, which checkpoints keep. So a resumed run knows no more than it did there.
    """

    def __init__(self, trainer: "Trainer", tasks: list[Task], base: Path) -> None:
        self.trainer, self.tasks, self.settings, self.base = trainer, tasks, trainer.grpo, base
        self.folder: Path = trainer.directory
        self.start: dict[str, float] = {}  # of the SFT adapter

    @property
    def by(self) -> str:
        """The rate that decides which adapter is the best."""
        return SAMPLED if self.settings.validate_samples else GREEDY

    def on_train_begin(self, args, state, control, **_) -> None:
        file = self.folder / BEFORE
        if not ranks.from_main(file.exists):
            if state.global_step:  # a resumed run, whose model is no longer the one it began with
                raise JobError(f"{file}: is gone; remove the folder to start anew")
            measured = self.measure()
            if ranks.main():
                write_json(file, measured)
        self.start = ranks.from_main(lambda: read_json(file))

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step % self.settings.validate_every and state.global_step != state.max_steps:
            return
        measured = self.trainer.timed("validation", self.measure)
        best_step, best = self.best(state.log_history)
        for name, value in measured.items():
            self.trainer._metrics["train"][name].append(value)
        log.info("step %d: of the held-out tasks %s are solved", state.global_step, shown(measured))
        if measured[self.by] > best:
            if ranks.main():
                with replace_dir(self.place(state.global_step)) as partial:
                    save_adapter(self.trainer.model, self.base, partial)
            return
        since = [row["step"] for row in state.log_history if row.get(self.by) is not None and row["step"] > best_step]
        if self.settings.validate_patience and len(since) + 1 >= self.settings.validate_patience:
            log.info("stopped at step %d: none of %d validations was better", state.global_step, len(since) + 1)
            control.should_training_stop = True

    def on_step_begin(self, args, state, control, **_) -> None:
        """Removes earlier best adapters once a checkpoint is whole: no resumed run goes back behind it."""
        if not ranks.main() or not (self.folder / f"checkpoint-{state.global_step}" / "MANIFEST.json").exists():
            return
        step = self.best(state.log_history)[0]
        for path in self.folder.glob("best-*"):
            if path.name < self.place(step).name:
                shutil.rmtree(path)

    def place(self, step: int) -> Path:
        return self.folder / f"best-{step:06d}"

    def before(self) -> dict[str, float]:
        return self.start or read_json(self.folder / BEFORE)  # a run killed after its last step does not begin anew

    def best(self, history: list[dict]) -> tuple[int, float]:
        """The first step with the best rate, and the rate; step 0 is the SFT adapter, which is what was given."""
        found = [(row["step"], row[self.by]) for row in history if row.get(self.by) is not None]
        return max([(0, self.before()[self.by]), *found], key=lambda pair: (pair[1], -pair[0]))

    def summary(self, history: list[dict]) -> dict[str, Any]:
        """For the metrics: the rates before, at the best step and at the end, and which step is the best."""
        step, _ = self.best(history)
        rows: list[dict[str, Any]] = [
            {"step": row["step"]} | rates(row) for row in history if row.get(self.by) is not None
        ]
        before: dict[str, Any] = {"step": 0, **rates(self.before())}
        best = next((row for row in rows if row["step"] == step), before)
        return {"tasks": len(self.tasks), "before": before, "best": best, "last": rows[-1] if rows else before}

    def measure(self) -> dict[str, float]:
        """The shares of greedy and of sampled answers that pass all tests of their task.

        Errors: JobError if the sandbox failed on more than a quarter of them.
        """
        drawn = {GREEDY: (1, 0.0), SAMPLED: (self.settings.validate_samples, self.settings.temperature)}
        tasks = self.tasks[ranks.number() :: ranks.count()]
        prompts = [answer_format.chat_prompt(task["prompt"]) for task in tasks]
        waiting = {}
        for name, (count, temperature) in drawn.items():
            if count:
                texts = self.trainer.answers(prompts, count, temperature) if tasks else []
                waiting[name] = [
                    self.submitted(task, text) for task, of_task in zip(tasks, texts, strict=True) for text in of_task
                ]
        return {name: rate([result() for result in results]) for name, results in waiting.items()}

    def submitted(self, task: Task, text: str) -> Callable[[], float | None]:
        answer = answer_format.parse(text)
        if answer is None:
            return lambda: 0.0
        future = self.trainer.scorer.sandbox.submit(task, answer.code)
        return lambda: correctness_of(future.result(), all_tests_only=True)


def rate(passed: list[float | None]) -> float:
    """The share of answers that passed, of those of all ranks that were judged. passed: this rank's."""
    judged = [value for value in passed if value is not None]
    solved, known, answers = ranks.total(sum(judged), len(judged), len(passed))
    if answers - known > MOST_INFRASTRUCTURE_ERRORS * answers:
        raise JobError(f"validation: the sandbox failed for {answers - known:g} of {answers:g} answers")
    return solved / known


def rates(row: dict) -> dict[str, float]:
    return {name.partition("/")[2]: row[name] for name in (GREEDY, SAMPLED) if row.get(name) is not None}


def shown(measured: dict[str, float]) -> str:
    return ", ".join(f"{value:.1%} ({name})" for name, value in rates(measured).items())
