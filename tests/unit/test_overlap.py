"""Overlap between training tasks and benchmarks: each rule on hand-made tasks, and the numbers on the real ones."""

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, write_jsonl
from jobs.plumbing.params import Overlap, load
from jobs.tasks import job, overlap, pairs, sources

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
PINNED = ROOT / "data/overlap/pairs.jsonl"
PARAMS = load(ROOT / "params.yaml", ["tasks.toy=null", "sandbox.workers=1"])
SETTINGS = PARAMS.tasks.overlap
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark files in ../shared/data")
# Of the training tasks that share any 8 words with a benchmark's, those that a reader found to be the same or a variant.
REAL = {
    f"Mbpp/{number}"
    for number in (
        *(
            43,
            71,
            495,
            505,
            516,
            649,
            841,
            922,
            23,
            142,
            145,
            287,
            328,
            410,
            447,
            504,
            623,
            775,
            778,
            821,
            837,
            962,
            964,
        ),
    )
}


def task(name: str, prompt: str, entry_point: str = "f", **fields) -> dict:
    return {
        "task_id": name,
        "prompt": prompt,
        "entry_point": entry_point,
        "setup": "",
        "tests": ["assert f(1) == 1"],
        "reference": "def f(x):\n    return x\n",
        "source": "here",
        "license": "MIT",
    } | fields


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ('"""\nWrite a python function to add numbers.\nassert f(1) == 1\n"""\n', "add numbers."),
        ('"""\nWrite a function that adds numbers.\nassert math.isclose(f(1), 1)\n"""\n', "adds numbers."),
        ('def f(x):\n    """ Add.\n    More.\n    >>> f(1)\n    1\n    And this.\n    """\n', "Add.\nMore.\nAnd this."),
        ('def g(x):\n    """G."""\n\ndef f(x):\n    """Add.\n    Examples:\n    f(1) -> 1\n    """\n', "Add."),
        ("Write `f(x)` that adds numbers.\n* f(1) -> 1\n", "Write `f(x)` that adds numbers."),
        ("Add numbers.\nFor example: one.", "Add numbers."),
        ("def f(x):\n", "def f(x):"),  # nothing else is told
    ],
)
def test_a_statement_is_the_prompt_without_examples(prompt, told):
    assert overlap.statement(task("t", prompt)) == told


def test_a_likeness_is_the_cosine_of_tf_idf_weights():
    training = [task("T/1", "Sum of sum."), task("T/2", "Nothing alike here."), task("T/3", "x y")]
    benchmark = [task("B/1", "Of a list."), task("B/2", "Sum of sum.")]
    (same, first), (none, _), (empty, _) = overlap.likeness(training, benchmark)
    assert (same, first) == (1.0, "B/2")
    assert none == empty == 0
    # by hand: "sum" and "of" are each in one of two statements, or in both; tf of "sum" is 2
    (value, name) = overlap.likeness([task("T/1", "sum of sum")], [task("B/1", "of a list")])[0]
    rare = 1 + math.log(3 / 2)
    assert value == pytest.approx(1 / math.hypot((1 + math.log(2)) * rare, 1) / math.hypot(rare, 1), abs=1e-6)
    assert name == "B/1"


def test_statements_without_a_word_are_like_none():
    assert overlap.likeness([task("T/1", "x")], [task("B/1", "y")]) == [(0.0, "")]
    assert overlap.likeness([task("T/1", "sum")], []) == [(0.0, "")]


def test_each_rule_finds_what_it_is_for():
    thirteen = "one two three four five six seven eight nine ten eleven twelve thirteen"
    training = [
        task("T/solves", "Halve it."),
        task("T/like", '"""\nWrite a function to reverse the words of a sentence.\nassert f(2) == 2\n"""\n'),
        task(
            "T/words", f"Zero {thirteen} and much else that is not there, of another kind and with other words in it."
        ),
        task("T/free", "Compute the area of an ellipse."),
    ]
    benchmark = [
        task("B/1", "Find the largest prime below a bound."),
        task("B/2", 'def f(s):\n    """Reverse the words of the sentence.\n    >>> f(3)\n    3\n    """\n'),
        task(
            "B/3", f"{thirteen.upper()}; something quite unlike the rest, which goes on about ships, sails, wind, seas."
        ),
    ]
    known = [("T/solves", "B/1"), ("T/gone", "B/1"), ("T/free", "B/gone")]
    rows = overlap.find(training, benchmark, known, Overlap(likeness=0.7, words=13))
    assert [(row["task_id"], row["rule"], row["benchmark"]) for row in rows] == [
        ("T/solves", "solves", "B/1"),
        ("T/like", "statement", "B/2"),
        ("T/words", "words", "B/3"),
    ]
    assert rows[2]["detail"] == thirteen
    splits = {"train": training[:2], "distill": training[2:], "humaneval": benchmark}
    kept, left_out, report = job.decontaminate(splits, known, Overlap(likeness=0.7, words=13))
    assert kept == {"train": [], "distill": training[3:], "humaneval": benchmark}
    assert {row["task_id"]: row["detail"].split()[:2] for row in left_out} == {
        "T/solves": ["solves", "B/1"],
        "T/like": ["statement", "B/2"],
        "T/words": ["words", "B/3"],
    }
    found = job.metrics_of(kept, left_out, report)["contaminated"]
    assert found == {
        "train": {"solves": 1, "statement": 1, "words": 0, "any": 2},
        "distill": {"solves": 0, "statement": 0, "words": 1, "any": 1},
    }


def test_a_reference_that_solves_a_benchmark_task_under_another_name_is_found():
    inputs = {"base_input": [[n] for n in range(6)], "plus_input": [[-3], [7]], "atol": 0}
    double = task("B/double", "", "twice", reference="def twice(n):\n    return n * 2\n", **inputs)
    letters = task("B/letters", "", "letters", tests=["assert letters('ab', 'b') == 1"], reference="")
    recursive = "def d(n):\n    return 0 if n == 0 else 2 + d(n - 1) if n > 0 else -d(-n)\n"
    first = "def g(n):\n    return n * 2 if n in range(5) else 0\n"  # right as far as the screening goes
    training = [
        task("T/double", "", "add", reference="def add(a):\n    return both(a, a)\ndef both(*a):\n    return sum(a)\n"),
        task("T/recursive", "", "d", reference=recursive),
        task("T/first", "", "g", reference=first),
        task("T/two", "", "g", reference="def g(a, b):\n    return a.count(b)\n"),
        task("T/hangs", "", "g", reference="def g(n):\n    while True: pass\n"),
        task("T/none", "", "", reference="def g(n):\n    return n * 2\n"),
        double,
    ]
    assert pairs.solved(training, [double, letters], PARAMS.sandbox) == [
        ("T/double", "B/double"),
        ("T/recursive", "B/double"),
        ("T/two", "B/letters"),
    ]


def test_a_benchmark_task_that_cannot_be_judged_is_named():
    broken = task("B/broken", "", base_input=[[1]], plus_input=[], atol=0, reference="def f(x):\n    raise KeyError\n")
    with pytest.raises(JobError, match="B/broken"):
        pairs.solved([task("T/1", "")], [broken], PARAMS.sandbox)


def test_pinned_pairs_are_kept_until_a_source_changes(tmp_path, monkeypatch):
    pools = {
        sources.MBPP: [task("M/1", "")],
        sources.MBPP_PLUS: [task("P/1", "", reference="def f(x):\n    return [x]\n")],
        sources.HUMANEVAL_PLUS: [task("H/1", "", "h", tests=["assert h(3) == 3"])],
    }
    monkeypatch.setattr(sources, "pools", lambda settings, folder: pools)
    out = tmp_path / "pairs.jsonl"

    def make() -> None:
        words = ["--params", str(ROOT / "params.yaml"), "--set", "sandbox.workers=1", "--out", str(out)]
        done = CliRunner().invoke(pairs.command, words)
        assert done.exit_code == 0, done.output

    make()
    first = out.read_bytes()
    assert sorted(pairs.of(out, *sources.roles(PARAMS.tasks, pools))) == [("M/1", "H/1"), ("M/1", "P/1")]
    worked = []
    solved = pairs.solved

    def counted(training, benchmark, limits):
        worked.append((training[0]["task_id"], benchmark[0]["task_id"]))
        return solved(training, benchmark, limits)

    monkeypatch.setattr(pairs, "solved", counted)
    make()
    assert out.read_bytes() == first
    assert not worked
    pools[sources.HUMANEVAL_PLUS] = [task("H/1", "", "h", tests=["assert h(3) == 4"])]
    with pytest.raises(UsageError, match=r"pairs\.jsonl: is not of these tasks of MBPP\+ and HumanEval\+"):
        pairs.of(out, *sources.roles(PARAMS.tasks, pools))
    make()
    assert worked == [("P/1", "H/1"), ("M/1", "H/1")]
    assert pairs.of(out, *sources.roles(PARAMS.tasks, pools)) == [("M/1", "P/1")]
    write_jsonl(out, [{"training": "x"}])
    with pytest.raises(JobError, match="is not a file of overlap-pairs"):
        pairs.of(out, *sources.roles(PARAMS.tasks, pools))


@needs_data
def test_the_pinned_pairs_are_of_the_pinned_sources_and_the_rules_find_what_is_known():
    """The counts that docs/tasks.md states, with the committed split."""
    pools = sources.pools(PARAMS.tasks, DATA)
    known = pairs.of(PINNED, *sources.roles(PARAMS.tasks, pools))
    splits, _ = job.drop(job.collect(PARAMS.tasks, pools), PARAMS.tasks)
    kept, left_out, report = job.decontaminate(splits, known, SETTINGS)
    dropped = {row["task_id"] for row in left_out}
    assert len(REAL) == 23
    assert len(REAL & dropped) >= 19
    assert len(dropped) <= 80
    held = {row["task_id"] for row in kept["mbpp"] + kept["humaneval"]}
    left = {row["task_id"] for row in kept["distill"] + kept["train"]}
    assert not [pair for pair in known if pair[0] in left and pair[1] in held]
    assert {row["rule"] for row in report} == set(overlap.RULES)


def test_every_pinned_pair_is_of_two_tasks():
    for row in read_jsonl(PINNED):
        assert all(one != other for one, other in row["pairs"])
        assert len({tuple(pair) for pair in row["pairs"]}) == len(row["pairs"]) > 0
