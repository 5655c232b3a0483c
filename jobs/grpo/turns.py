"""A second answer where the first failed (grpo.turns: 2): what is said between them, and how both become one completion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.common import answer_format, feedback
from jobs.grpo.rewards import Scorer

MOST = 1024  # tokens of what is said at most; a byte-level vocabulary may take one for every byte


@dataclass(frozen=True)
class Joined:
    """Completions of one or two answers. ids: their tokens. mask: 1 for the model's own. logps: by the sampler, or None."""

    ids: list[list[int]]
    mask: list[list[int]]
    logps: list[list[float]] | None


def told(scorer: Scorer, texts: Sequence[str], task_ids: Sequence[str], ended: Sequence[bool]) -> list[str]:
    """What is said of each answer; "" where nothing is: it passed, did not end, or the sandbox could not judge it."""
    found = []
    for text, task_id, whole, verdict in zip(texts, task_ids, ended, scorer.verdicts(texts, task_ids), strict=True):
        status = verdict.status if verdict else "no answer"
        if not whole or status in ("passed", "infrastructure_error", "unsupported"):
            found.append("")
            continue
        error = verdict.error if verdict else ""
        answered = answer_format.parse(text) is not None
        found.append(feedback.turn(scorer.tasks[task_id], answered=answered, status=status, error=error))
    return found


def joined(
    first: Sequence[list[int]],
    said: Mapping[int, list[int]],
    again: Sequence[list[int]],
    logps: list[list[float]] | None,
    again_logps: list[list[float]] | None,
) -> Joined:
    """first: the tokens of all first answers. said, again: of what was said to some of them, by number, and of their second
    answers, in the same order. logps: of both by the sampler, where it tells them."""
    ids, mask = [list(tokens) for tokens in first], [[1] * len(tokens) for tokens in first]
    known = [list(values) for values in logps] if logps is not None else None
    for place, (i, words) in enumerate(said.items()):
        ids[i] += [*words, *again[place]]
        mask[i] += [0] * len(words) + [1] * len(again[place])
        if known is not None and again_logps is not None:
            known[i] += [0.0] * len(words) + list(again_logps[place])
    return Joined(ids, mask, known)
