"""Overlap between training texts and benchmarks: shared runs of n words, after normalisation."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """A training text and a benchmark task that share a run of words: `ngram` is the first such run in the text."""

    text: str
    benchmark: str
    ngram: str


def words(text: str) -> list[str]:
    """The words of `text` in lower case, without punctuation and underscores: what GPT-3's authors compared by."""
    return WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order; of a shorter text the one run of all its words."""
    found = words(text)
    if not found:
        return []
    return [tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))]


def overlaps(
    texts: Mapping[str, Iterable[str]], benchmarks: Mapping[str, Iterable[str]], n: int, common: int = 10
) -> list[Overlap]:
    """Every pair of a training text and a benchmark task that share a run of `n` words, in the order of `texts`.

    texts, benchmarks: by id, the fields to compare, such as prompt and reference. Runs do not cross fields.
    A field of fewer than n words counts as one run, so a short prompt is found if it is the same.
    common: runs in more than so many texts are the source's phrasing ("write a python function to check whether the"),
    not a task's, and do not count; GPT-3's authors had the same rule and number (arXiv:2005.14165, appendix C).
    """
    runs = {name: [run for field in fields for run in ngrams(field, n)] for name, fields in texts.items()}
    spread = Counter(run for found in runs.values() for run in set(found))
    index: dict[tuple[str, ...], dict[str, None]] = {}
    for name, fields in benchmarks.items():
        for field in fields:
            for run in ngrams(field, n):
                index.setdefault(run, {})[name] = None
    overlapping = []
    for name, found in runs.items():
        shared: dict[str, str] = {}
        for run in found:
            if spread[run] <= common:
                for benchmark in index.get(run, ()):
                    shared.setdefault(benchmark, " ".join(run))
        overlapping += [Overlap(name, benchmark, run) for benchmark, run in shared.items()]
    return overlapping
