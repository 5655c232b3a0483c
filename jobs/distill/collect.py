"""Works through the sequence of candidates until there are enough examples, several requests at a time.

The result depends on the responses alone, not on their order of arrival: it is the shortest beginning of the sequence
with enough valid answers, and a request is sent only when it must belong to that beginning.
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError
from jobs.distill.cache import Responses, request
from jobs.distill.examine import REASONS, Benchmarks, Candidate, examine, shingles
from jobs.distill.references import References
from jobs.distill.reply import read
from jobs.plumbing.cli import progress

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.distill.teacher import Teacher
    from jobs.extraction.worker import Extractor
    from jobs.plumbing.params import Distill
    from jobs.sandbox import Sandbox

ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


@dataclass
class Collection:
    """What the beginning of the sequence, as far as it is decided, has come to."""

    similarity: float
    benchmarks: Benchmarks
    accepted: list[Candidate] = field(default_factory=list)
    decided: list[Candidate] = field(default_factory=list)
    grams: list[set[tuple[str, ...]]] = field(default_factory=list)
    in_a_row: int = 0

    def decide(self, candidate: Candidate) -> None:
        """Takes the sequence's next candidate, whose own checks are done, and compares it with what is there."""
        if not candidate.reason:
            assert candidate.answer is not None
            grams = shingles(candidate)
            twin = next(
                (
                    earlier.task["task_id"]
                    for earlier, other in zip(self.accepted, self.grams, strict=True)
                    if len(grams & other) >= self.similarity * len(grams | other)
                ),
                "",
            )
            if shared := self.benchmarks.shared(candidate.answer):
                candidate.reason, candidate.detail = "contaminated", shared
            elif twin:
                candidate.reason, candidate.detail = "near_duplicate", twin
            else:
                self.accepted.append(candidate)
                self.grams.append(grams)
        self.decided.append(candidate)
        self.in_a_row = self.in_a_row + 1 if candidate.reason else 0

    def counts(self) -> dict[str, int]:
        found = Counter(candidate.reason for candidate in self.decided)
        return {reason: found[reason] for reason in REASONS}

    def tokens(self) -> tuple[int, int]:
        replies = [candidate.reply for candidate in self.decided if candidate.reply]
        return sum(reply.tokens_in for reply in replies), sum(reply.tokens_out for reply in replies)

    def dollars(self, settings: "Distill") -> float:
        tokens_in, tokens_out = self.tokens()
        return (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6

    def summary(self) -> str:
        """The counts, and for each reason the first detail: what a user reads when a run ends too early."""
        details: dict[str, str] = {}
        for candidate in self.decided:
            if candidate.detail:
                details.setdefault(candidate.reason, f" ({candidate.detail[:200]})")
        rejected = ", ".join(
            f"{reason} {count}{details.get(reason, '')}" for reason, count in self.counts().items() if count
        )
        return f"{len(self.accepted)} examples from {len(self.decided)} answers; rejected: {rejected or 'none'}"


def sequence(tasks: "list[Task]", settings: "Distill") -> Iterator[Candidate]:
    for attempt in range(settings.attempts):
        for task in tasks:
            yield Candidate(task, attempt, request(settings, task["prompt"], attempt))


class Collector:
    """Asks, checks and decides, until `collection` has enough examples."""

    def __init__(
        self,
        tasks: "list[Task]",
        settings: "Distill",
        collection: Collection,
        responses: Responses,
        teacher: "Teacher | References",
        sandbox: "Sandbox",
        extractor: "Extractor",
    ) -> None:
        self.settings, self.collection, self.responses = settings, collection, responses
        self.teacher, self.sandbox, self.extractor = teacher, sandbox, extractor
        self.upcoming = sequence(tasks, settings)
        self.waiting: Candidate | None = None  # the sequence's next, which could not be asked yet
        self.done: set[str] = set()  # tasks with an example, which are passed over from then on
        self.undecided: deque[Candidate] = deque()
        self.running: dict[asyncio.Task, Candidate] = {}
        self.spent = 0

    async def collect(self) -> Collection:
        """Errors: JobError with the counts when the budget, the attempts or the patience end first."""
        with progress(total=self.settings.examples, label="distill") as bar:
            try:
                while True:
                    self.decide(bar)
                    if len(self.collection.accepted) == self.settings.examples:
                        return self.collection
                    self.start()
                    if not self.running:
                        raise JobError(self.ended())
                    finished, _ = await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
                    for task in finished:
                        task.result()
                        self.spent += self.running.pop(task).cost
            except JobError:
                self.teacher.closing = True  # what is under way is paid for: let it arrive, and be kept
                await asyncio.gather(*self.running, return_exceptions=True)
                raise
            finally:
                await self.teacher.close()

    def decide(self, bar: Any) -> None:
        """Decides the candidates at the head of the sequence whose checks are done."""
        working = set(map(id, self.running.values()))
        while self.undecided and id(self.undecided[0]) not in working:
            candidate = self.undecided.popleft()
            self.collection.decide(candidate)
            if not candidate.reason:
                self.done.add(candidate.task["task_id"])
                bar.update()
            if self.collection.in_a_row >= self.settings.patience:
                raise JobError(f"{self.collection.in_a_row} rejections in a row; {self.collection.summary()}")
        bar.set_postfix_str(
            f"{len(self.collection.decided)} answers, ${self.collection.dollars(self.settings):.2f}", refresh=False
        )

    def start(self) -> None:
        """Starts what is needed if all that is under way turns out right: so never one request too many."""
        hoped_for = len(self.collection.accepted) + sum(not candidate.reason for candidate in self.undecided)
        open_tasks = {candidate.task["task_id"] for candidate in self.undecided}
        while len(self.running) < self.settings.concurrency and hoped_for < self.settings.examples:
            self.waiting = self.waiting or next(self.upcoming, None)
            if self.waiting is not None and self.waiting.task["task_id"] in self.done:
                self.waiting = None
                continue
            if self.waiting is None or self.waiting.task["task_id"] in open_tasks or not self.affordable(self.waiting):
                break
            candidate, self.waiting = self.waiting, None
            self.undecided.append(candidate)
            open_tasks.add(candidate.task["task_id"])
            self.running[asyncio.create_task(self.try_out(candidate))] = candidate
            hoped_for += 1

    def affordable(self, candidate: Candidate) -> bool:
        reserved = sum(other.cost for other in self.running.values())
        return (
            len(self.collection.decided) + len(self.undecided) + self.teacher.failed < self.settings.max_requests
            and self.spent + reserved + candidate.cost <= self.settings.max_total_tokens
        )

    def ended(self) -> str:
        if self.settings.references:
            end = "every task's reference was tried"
        else:
            end = "the budget ended" if self.waiting else f"every task was asked {self.settings.attempts} times"
        return (
            f"{end} before there were {self.settings.examples} examples; {self.collection.summary()}; "
            "the responses are kept for the next try"
        )

    async def response(self, candidate: Candidate) -> dict:
        if isinstance(self.teacher, References):
            return self.teacher.response(candidate.task, candidate.request)
        response = self.responses.get(candidate.request)
        if response is None:
            if self.responses.recorded:
                raise JobError(
                    f"{self.responses.recorded}: has no response for {candidate.task['task_id']}, attempt "
                    f"{candidate.attempt}, as params have it asked; record it anew"
                )
            response = await self.teacher.ask(candidate.request)
            self.responses.put(candidate.request, response)
        elif "error" not in response:
            self.teacher.answered += 1  # by an earlier run, asked in the same way: that the endpoint works is known
        return response

    async def try_out(self, candidate: Candidate) -> None:
        """Gets the candidate's response, from the cache or the teacher, and checks it by itself."""
        candidate.reply = read(candidate.request, await self.response(candidate))
        loop = asyncio.get_running_loop()
        reason, detail = await loop.run_in_executor(
            self.extractor.thread, examine, candidate, self.settings, self.extractor
        )
        if not reason:
            assert candidate.answer is not None
            verdict = await asyncio.wrap_future(self.sandbox.submit(candidate.task, candidate.answer.code))
            if verdict.status == "infrastructure_error":
                raise JobError(f"the sandbox failed on {candidate.task['task_id']}: {verdict.error}")
            if not verdict.passed:
                reason, detail = verdict.status, ADDRESS.sub("0x...", verdict.error)
        candidate.reason, candidate.detail = reason, detail
