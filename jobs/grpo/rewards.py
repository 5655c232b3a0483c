"""What an answer earns: format, reasoning, correctness. Each is in [0, 1]; params weigh them. A punishment of
too long answers, in [-1, 0], can come beside them.

The tests run in the sandbox's workers, beside the trainer: `Scorer.start` sends a batch off, and the reward functions
collect it. Where the sandbox fails, rather than the answer, all rewards are None: TRL then leaves the sample out
of its group's baseline and out of the loss. A zero would teach the model that a right answer is wrong.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.task import Task
from jobs.grpo.special_cases import special_cased
from jobs.plumbing import launch
from jobs.plumbing.cli import log
from jobs.plumbing.params import Rewards
from jobs.sandbox import Sandbox, Verdict

MOST_INFRASTRUCTURE_ERRORS = 0.25  # of a batch; beyond it something is broken that training on would hide


@dataclass(frozen=True)
class Score:
    """One answer's rewards; None where the sandbox could not judge it. `verdict` is None for an answer without code."""

    format: float
    reasoning: float
    correctness: float | None
    verdict: Verdict | None


def format_of(completion: str) -> float:
    """1 for an answer that obeys the tag format strictly, else 0."""
    return float(answer_format.parse(completion) is not None)


def reasoning_of(completion: str, characters: int) -> float:
    """Linear in the length of the reasoning up to `characters`; 0 for an answer that breaks the format."""
    answer = answer_format.parse(completion)
    return min(len(answer.reasoning) / characters, 1.0) if answer else 0.0


def correctness_of(verdict: Verdict, all_tests_only: bool) -> float | None:
    """The fraction of tests passed, or 1 only where all passed; None where there is no verdict on any answer."""
    if verdict.status == "infrastructure_error" or (verdict.status == "unsupported" and not verdict.tests_total):
        return None
    if all_tests_only:
        return float(verdict.passed)
    return verdict.tests_passed / verdict.tests_total if verdict.tests_total else 0.0


Pending = dict[tuple[str, str], "Future[Verdict] | None"]  # by text and task


class Scorer:
    """Scores batches of completions against tasks, in a sandbox that it does not own."""

    def __init__(self, sandbox: Sandbox, rewards: Rewards, tasks: dict[str, Task], most: int) -> None:
        """most: tokens of a completion, grpo.max_completion_length."""
        self.sandbox, self.rewards, self.tasks, self.most = sandbox, rewards, tasks, most
        self.pending: Pending = {}
        self.scored: tuple[list[tuple[str, str]], list[Score]] = ([], [])
        self.waited = 0.0  # seconds the trainer stood still for verdicts

    def start(self, completions: Sequence[str], task_ids: Sequence[str], pending: Pending | None = None) -> None:
        """Sends the answers to the sandbox and returns at once; equal answers to a task are judged once.

        pending: where the verdicts to come are noted, of a step that has not come yet.
        """
        pending = self.pending if pending is None else pending
        for pair in zip(completions, task_ids, strict=True):
            if pair not in pending:
                answer = answer_format.parse(pair[0])
                pending[pair] = self.sandbox.submit(self.tasks[pair[1]], answer.code) if answer else None

    def judging(
        self, tokenizer, prompts: list[list[int]], task_ids: Sequence[str], pending: Pending | None = None
    ) -> Callable[[list[int], list[int]], None]:
        """What sends an answer to the sandbox the moment it has ended, while others are still being written.

        prompts: token ids, one row for each of `task_ids`. pending: as of `start`.
        The function takes a prompt's and its completion's token ids. Where two tasks have one prompt it sends nothing:
        whose answer it is, `start` is told once all have ended.
        """
        tasks = tasks_by_prompt(prompts, task_ids)

        def judge(prompt: list[int], completion: list[int]) -> None:
            found = tasks.get(tuple(prompt), set())
            if len(found) == 1:
                self.start([tokenizer.decode(completion, skip_special_tokens=True)], [*found], pending)

        return judge

    def verdicts(self, completions: Sequence[str], task_ids: Sequence[str]) -> list[Verdict | None]:
        """The verdict on each answer, None where it obeys no format; waits for them, and `scores` need not."""
        self.start(completions, task_ids)
        began = time.monotonic()
        futures = [self.pending[pair] for pair in zip(completions, task_ids, strict=True)]
        found = [future.result() if future else None for future in futures]
        self.waited += time.monotonic() - began
        return found

    def scores(self, completions: Sequence[str], task_ids: Sequence[str]) -> list[Score]:
        """One score a completion, in order; waits for the verdicts.

        Errors: JobError when more than a quarter of the batch met an infrastructure error.
        """
        pairs = list(zip(completions, task_ids, strict=True))
        if self.scored[0] == pairs:
            return self.scored[1]
        verdicts = dict(zip(pairs, self.verdicts(completions, task_ids), strict=True))
        self.pending.clear()
        scores = [self.score(text, verdicts[text, task_id]) for text, task_id in pairs]
        broken = [s.verdict for s in scores if s.correctness is None]
        if broken:
            log.warning(
                "rewards: %d of %d answers left out, the sandbox failed: %s",
                len(broken),
                len(scores),
                broken[0].error if broken[0] else "",
            )
        if len(broken) > MOST_INFRASTRUCTURE_ERRORS * len(scores):
            raise JobError(
                f"rewards: the sandbox failed for {len(broken)} of {len(scores)} answers; "
                f"the first says: {broken[0].error if broken[0] else ''}"
            )
        self.scored = (pairs, scores)
        return scores

    def score(self, text: str, verdict: Verdict | None) -> Score:
        correctness = 0.0 if verdict is None else correctness_of(verdict, self.rewards.all_tests_only)
        return Score(format_of(text), reasoning_of(text, self.rewards.reasoning_characters), correctness, verdict)

    def log_suspects(self, answers: list[tuple[str, str, Score]], log_metric: Callable[[str, float], None]) -> None:
        """How many answers look as if they earned without solving: shares of those that pass any test, or the base tests.

        One value an answer, of which TRL takes the mean over all ranks.
        special_cased: see special_cases.py. base_only: the base tests passed and evalplus's further inputs did not, which
        is what base tests alone would have paid for wrongly.
        """
        earned = [
            (text, self.tasks[name], s.verdict) for text, name, s in answers if s.verdict and s.verdict.tests_passed
        ]
        for text, task, verdict in earned:
            log_metric("special_cased", float(self.is_suspect(text, task)))
            if verdict.base_passed and verdict.plus_passed is not None:
                log_metric("base_only", float(not verdict.plus_passed))

    def is_suspect(self, text: str, task: Task) -> bool:
        answer = answer_format.parse(text)
        return answer is not None and special_cased(answer.code, task["entry_point"], task.get("tests") or [])

    def overlong(self, completions, completion_ids, task_id, **_) -> list[float | None]:
        """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), in [-1, 0], by TRL's own function."""
        from trl.rewards import get_soft_overlong_punishment

        punished = get_soft_overlong_punishment(self.most, min(self.rewards.overlong_tokens, self.most))(completion_ids)
        scores = self.scores(completions, task_id)
        return [None if s.correctness is None else value for s, value in zip(scores, punished, strict=True)]

    def functions(self) -> tuple[list[Callable], list[float]]:
        """Reward functions for TRL, named as the curves name them, and their weights."""

        def of(name: str) -> Callable:
            def reward(completions, task_id, log_metric=None, log_extra=None, **_):
                scores = self.scores(completions, task_id)
                if name == "correctness":
                    judged = [s for s in scores if s.correctness is not None]
                    if log_metric is not None and judged:
                        for s in judged:
                            log_metric("all_tests_passed", float(bool(s.verdict and s.verdict.passed)))
                        # TRL takes the mean over the ranks, and this is their sum.
                        log_metric("infrastructure_errors", float(len(scores) - len(judged)) * launch.ranks())
                        self.log_suspects(list(zip(completions, task_id, scores, strict=True)), log_metric)
                    if log_extra is not None:
                        log_extra("task_id", list(task_id))
                        log_extra("status", [s.verdict.status if s.verdict else "no answer" for s in scores])
                return [None if s.correctness is None else getattr(s, name) for s in scores]

            reward.__name__ = name
            return reward

        names = ("format", "reasoning", "correctness")
        found, weights = [of(name) for name in names], [getattr(self.rewards, name) for name in names]
        if not self.rewards.overlong:
            return found, weights

        def overlong(**given):
            return self.overlong(**given)

        return [*found, overlong], [*weights, self.rewards.overlong]


def tasks_by_prompt(prompts: list[list[int]], task_ids: Sequence[str]) -> dict[tuple[int, ...], set[str]]:
    found: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for ids, task_id in zip(prompts, task_ids, strict=True):
        found[tuple(ids)].add(task_id)
    return found
