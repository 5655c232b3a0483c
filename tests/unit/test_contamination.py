"""Overlap by runs of words: hand-made cases, and the real benchmarks against themselves and each other."""

import gzip
import json
from pathlib import Path

import pytest

from jobs.common.contamination import Overlap, ngrams, overlaps, words

DATA = Path(__file__).parents[2] / "../shared/data"


def test_words_forget_case_punctuation_and_underscores():
    assert words("Return the SUM, of a_list[0]!\n") == ["return", "the", "sum", "of", "a", "list", "0"]
    assert words("naïve Größe 数") == ["naïve", "größe", "数"]


def test_ngrams():
    assert ngrams("a b c d", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert ngrams("a b", 3) == [("a", "b")]
    assert ngrams("...", 3) == []


def test_a_shared_run_is_found_whatever_surrounds_it():
    texts = {"t": ["x x x one two THREE, four; y"], "u": ["one two three"]}
    assert overlaps(texts, {"b": ["zero one two three four five"]}, 4) == [Overlap("t", "b", "one two three four")]


def test_runs_do_not_cross_fields():
    assert not overlaps({"t": ["one two", "three four"]}, {"b": ["one two three four"]}, 4)


def test_short_fields_are_found_only_if_they_are_the_same():
    benchmark = {"b": ["reverse the list"]}
    assert [found.text for found in overlaps({"same": ["Reverse the list."], "longer": ["reverse the list twice"]},
                                             benchmark, 8)] == ["same"]  # fmt: skip


def test_every_benchmark_task_is_named_once():
    benchmarks = {"b": ["a b c d e"], "c": ["b c d"], "d": ["x y z"]}
    assert overlaps({"t": ["a b c d e"]}, benchmarks, 3) == [Overlap("t", "b", "a b c"), Overlap("t", "c", "b c d")]


def test_phrases_that_many_texts_share_do_not_count():
    texts = {str(i): [f"write a function to {i}"] for i in range(11)}
    benchmark = {"b": ["write a function to sing"]}
    assert not overlaps(texts, benchmark, 4)
    assert len(overlaps(texts, benchmark, 4, common=11)) == 11


def rows(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the benchmark data in {DATA}")
    return [json.loads(line) for line in gzip.open(path)]


@pytest.mark.parametrize("n", [8, 13])
def test_planted_copies_of_the_real_benchmarks_are_found(n):
    humaneval = {row["task_id"]: [row["prompt"], row["canonical_solution"]] for row in rows("HumanEvalPlus.jsonl.gz")}
    planted = {
        f"copy of {task}": [f"An exercise.\n{prompt.upper()}\n# The end"] for task, (prompt, _) in humaneval.items()
    }
    found = {(overlap.text, overlap.benchmark) for overlap in overlaps(planted, humaneval, n)}
    assert {(f"copy of {task}", task) for task in humaneval} <= found


def test_what_the_real_data_holds():
    """MBPP's text and code against HumanEval+'s prompts and solutions: other numbers mean other rules."""
    mbpp = {str(row["task_id"]): [row["text"], row["code"]] for row in rows("mbpp.jsonl.gz")}
    humaneval = {row["task_id"]: [row["prompt"], row["canonical_solution"]] for row in rows("HumanEvalPlus.jsonl.gz")}
    counts = {n: len({overlap.text for overlap in overlaps(mbpp, humaneval, n)}) for n in (8, 13)}
    assert counts == {8: 40, 13: 1}
