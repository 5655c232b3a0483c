"""What an answer must be to be kept, as far as it can be seen without running its code."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.contamination import ngrams
from jobs.common.files import read_jsonl
from jobs.distill.reply import CUT, REFUSALS, Reply, one_line, reservation, same_model
from jobs.distill.teacher import LARGEST

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.extraction.worker import Extractor
    from jobs.plumbing.params import Distill

# Why an answer is not kept, in the order of the checks.
REASONS = {
    "too_large": f"the response is larger than {LARGEST >> 20} MiB",
    "malformed": "the response is no chat completion, try after try",
    "refused": "the endpoint, or the model, refuses the request",
    "model": "another model answered than the one asked for",
    "truncated": "the answer was cut at max_tokens, or ended for another reason than its own end",
    "tags": "the tag format is not obeyed",
    "characters": "reasoning or code holds control characters",
    "length": "reasoning or code is outside the bounds",
    "syntax": "the code does not parse",
    "too_hard": "the code cannot be compiled within the limits of time and memory",
    "entry_point": "the code does not define the function that the tests call",
    "failed": "a test fails, or the code raises",
    "timeout": "the tests take too long",
    "crashed": "the process running the code dies",
    "invalid": "the sandbox refuses the code",
    "unsupported": "the code cannot be judged exactly across processes",
    "contaminated": "reasoning or code share a run of words with a benchmark's prompt",
    "near_duplicate": "prompt and code are nearly those of an earlier example",
}
WORDS = re.compile(r"\w+|[^\w\s]")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
INVISIBLE = "\ufeff\u200b\u2060"  # at the ends of a text: a byte order mark, spaces of no width


@dataclass
class Candidate:
    """One answer, asked for or to be: its place in the sequence and what became of it."""

    task: "Task"
    attempt: int
    request: dict
    reply: Reply | None = None
    answer: answer_format.Answer | None = None
    reason: str = ""  # of the rejection
    detail: str = ""

    @property
    def cost(self) -> int:
        return self.reply.tokens_in + self.reply.tokens_out if self.reply else sum(reservation(self.request))


@dataclass
class Benchmarks:
    """The runs of n words in the benchmarks' prompts, by which answers that repeat them are told."""

    n: int
    runs: dict[tuple[str, ...], str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, n: int) -> "Benchmarks":
        """Of prompts alone, as the tasks are compared: solutions are full of runs that any program has."""
        return cls(n, {run: task["task_id"] for task in read_jsonl(path) for run in ngrams(task["prompt"], n)})

    def shared(self, answer: answer_format.Answer) -> str:
        """The first run that the answer shares, with its benchmark task, or ""."""
        return next(
            (
                f"{self.runs[run]}: {' '.join(run)}"
                for text in (answer.reasoning, answer.code)
                for run in ngrams(text, self.n)
                if run in self.runs
            ),
            "",
        )


def shingles(candidate: Candidate) -> set[tuple[str, ...]]:
    """The word 3-grams of prompt and code, the function's name left out of account."""
    assert candidate.answer is not None
    entry_point = candidate.task["entry_point"]
    words = [
        "_" if word == entry_point else word
        for word in WORDS.findall(candidate.task["prompt"] + "\n" + candidate.answer.code)
    ]
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def examine(candidate: Candidate, settings: "Distill", extractor: "Extractor") -> tuple[str, str]:
    """The reason and detail of a rejection by what can be seen without running the code, or two empty strings."""
    reply = candidate.reply
    assert reply is not None
    if reply.error:
        return reply.error, reply.detail
    if not same_model(settings.model, reply.model, settings.aliases):
        return "model", f"{shown(reply.model)} answered; if that is the model wanted, name it in distill.aliases"
    if reply.finish in CUT | REFUSALS:
        return "truncated", reply.finish
    answer = candidate.answer = parsed(reply.text)
    if answer is None and reply.finish not in ("", "stop"):
        return "truncated", reply.finish[:100]  # by no known name; an answer that is whole in the format is taken
    if answer is None:
        return "tags", f"it begins with {one_line(reply.text)[:80]!r}"
    for name, text in (("reasoning", answer.reasoning), ("code", answer.code)):
        if found := CONTROL.search(text):
            return "characters", f"{name} holds {found[0]!r}"
    for name, text, (least, most) in (
        ("reasoning", answer.reasoning, settings.reasoning_characters),
        ("code", answer.code, settings.code_characters),
    ):
        if not least <= len(text) <= most:
            return "length", f"{name} of {len(text)} characters"
    reason, detail = extractor.fault(answer.code, candidate.task["entry_point"])
    return reason, one_line(detail)


def parsed(text: str) -> answer_format.Answer | None:
    """The answer in a text that obeys the format, whether or not it, or the code in it, stands in a ``` fence.

    An example is written anew from its two parts, so what stood around them is not trained on.
    """
    answer = answer_format.parse(unfenced(text))
    if answer is None:
        return None
    return answer_format.Answer(
        answer.reasoning.strip(INVISIBLE).strip(), unfenced(answer.code).strip(INVISIBLE + "\n")
    )


def unfenced(text: str) -> str:
    """What is in the one fence that `text` consists of; any other text as it is. In time linear in the text."""
    opening, newline, rest = text.strip().partition("\n")
    mark = opening[: len(opening) - len(opening.lstrip(opening[:1]))]
    if not newline or len(mark) < 3 or mark[0] not in "`~" or {"`", "~"} & set(opening[len(mark) :]):
        return text
    if not rest.endswith(mark):
        return text
    inside = rest[: -len(mark)].rstrip(" \t").removesuffix("\n")
    return text if mark in inside else inside


def shown(name: str) -> str:
    return repr(name[:100])
