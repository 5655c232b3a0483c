"""grade: the pass rates are those of the answers, and GRPO chooses by them."""

import json
import random
from pathlib import Path

import pytest

from jobs import grade
from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, write_jsonl
from jobs.common.task import read_tasks
from jobs.grpo import difficulty
from jobs.plumbing.params import load
from jobs.toy import world as toy
from tests import program
from tests import toy as models
from tests.program import ROOT

CPU = ["evaluate.engine=transformers", "evaluate.dtype=float32", "grpo.max_completion_length=8", "sandbox.workers=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grade")
    models.make_model(folder / "base")
    models.make_adapter(folder / "base", folder / "sft", rank=4)
    write_jsonl(folder / "train.jsonl", toy.tasks(1, {"train": 4})["train"])
    return folder


class Drawn:
    """What the sampler would give back: answers by rule, and whether they were forgotten."""

    def __init__(self, samples):
        self.samples, self.forgotten = samples, 0

    def forget(self):
        self.forgotten += 1


def answered(tasks, right: list[int], count: int):
    """Of `count` samples of each task the first `right` are its reference."""
    rows = []
    for task, good in zip(tasks, right, strict=True):
        texts = [task["reference"]] * good + ["def f():\n    return None"] * (count - good)
        rows += [
            {"task_id": task["task_id"], "sample": i, "text": answer_format.render("why", text)}
            for i, text in enumerate(texts, 1)
        ]
    return rows


def run(world, tmp_path, monkeypatch, right, *settings):
    tasks = read_tasks(world / "train.jsonl")
    drawn = Drawn({"train": answered(tasks, right, 4)})
    seen = {}

    def draw(params, *arguments, greedy):
        assert not greedy
        seen["evaluate"] = params.evaluate
        return drawn

    monkeypatch.setattr("jobs.sampling.benchmark.draw", draw)
    monkeypatch.chdir(tmp_path)
    params = load(ROOT / "params.yaml", [*CPU, "grade.samples=4", *settings])
    paths = [tmp_path / "graded.jsonl", tmp_path / "validation.jsonl", tmp_path / "metrics.json"]
    result = grade.run(params, world / "base", world / "sft", world / "train.jsonl", *paths)
    return result, read_jsonl(paths[0]), seen["evaluate"], drawn


def test_a_tasks_rate_is_the_share_of_its_drawn_answers_that_pass(world, tmp_path, monkeypatch):
    result, rows, _, drawn = run(world, tmp_path, monkeypatch, [0, 1, 3, 4])
    assert [(row["pass_rate"], row["graded"]) for row in rows] == [(0, 4), (0.25, 4), (0.75, 4), (1, 4)]
    assert result == {
        "samples": 4,
        "tasks": 4,
        "validation": 0,
        "never": 1,
        "always": 1,
        "between": 2,
        "pass_rate": 0.5,
    }
    assert drawn.forgotten == 1
    assert [{k: v for k, v in row.items() if k not in ("pass_rate", "graded")} for row in rows] == read_jsonl(
        world / "train.jsonl"
    )


def test_answers_are_drawn_as_grpo_draws_them(world, tmp_path, monkeypatch):
    settings = ["grpo.temperature=0.7", "grpo.top_p=0.9", "seed=11", "evaluate.max_tokens=99"]
    _, _, used, _ = run(world, tmp_path, monkeypatch, [0, 0, 0, 0], *settings)
    assert (used.sampled.n, used.sampled.temperature, used.sampled.top_p) == (4, 0.7, 0.9)
    assert (used.max_tokens, used.seed, used.engine, used.dtype) == (8, 11, "transformers", "float32")


def test_without_samples_the_tasks_pass_on_and_no_model_is_read(world, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("--base", "empty", "--adapter", "empty", "--tasks", world / "train.jsonl", "--out", "graded.jsonl")
    program.run(tmp_path, "grade", *words, "--metrics", "m.json", check=True)
    assert (tmp_path / "graded.jsonl").read_bytes() == (world / "train.jsonl").read_bytes()
    assert json.loads((tmp_path / "m.json").read_text()) == {"samples": 0, "tasks": 4, "validation": 0}
    assert not (tmp_path / "data/validation.jsonl").read_bytes()


def test_tasks_for_validation_are_drawn_by_a_seed_and_not_graded(world):
    rows = read_tasks(world / "train.jsonl")
    left, aside = grade.split(rows, 2, 1, world)
    assert len(aside) == 2
    assert [row for row in rows if row in left] == left
    assert [row for row in rows if row not in left] == aside
    assert len({str(grade.split(rows, 2, seed, world)[1]) for seed in range(20)}) > 1
    assert grade.split(rows, 0, 1, world) == (rows, [])
    with pytest.raises(UsageError, match=r"grade\.validation: 4 of the 4 tasks"):
        grade.split(rows, 4, 1, world)


def test_a_random_model_solves_nothing_and_leaves_grpo_no_task(world, tmp_path):
    inputs = ("--base", world / "base", "--adapter", world / "sft")
    words = (*inputs, "--tasks", world / "train.jsonl", "--out", "graded.jsonl", "--metrics", "m.json")
    program.run(tmp_path, "grade", *words, settings=[*CPU, "grade.samples=2"], check=True)
    assert json.loads((tmp_path / "m.json").read_text())["never"] == 4
    assert not list((tmp_path / ".checkpoints/sample-grade").glob("*/train.jsonl")), "what was drawn is not kept"
    said = program.run(
        tmp_path, "grpo", *inputs, "--tasks", "graded.jsonl", settings=["grpo.difficulty=[0.1, 0.9]"]
    ).stderr
    assert "none of 4 tasks has a pass_rate in grpo.difficulty, 0.1 to 0.9" in said


def rows(*rates):
    return [{"task_id": f"t/{i}", "prompt": "", "entry_point": "f", "pass_rate": r} for i, r in enumerate(rates)]


def test_both_ends_of_the_span_are_included():
    given = rows(0, 0.25, 0.5, 0.75, 1)
    assert difficulty.chosen(given, None, Path("t")) == given
    assert difficulty.chosen(given, [0.25, 0.75], Path("t")) == given[1:4]
    assert difficulty.chosen(given, [0, 0], Path("t")) == given[:1]


def test_tasks_that_were_not_graded_are_named():
    given = rows(0.5, 0.5)
    del given[1]["pass_rate"]
    with pytest.raises(UsageError, match=r"tasks\.jsonl: t/1 has no pass_rate.*grade\.samples"):
        difficulty.chosen(given, [0.1, 0.9], Path("tasks.jsonl"))


def test_a_pass_rate_that_is_none_is_refused_by_its_line(tmp_path):
    for number, rate in enumerate((1.5, -0.1, "half")):
        path = tmp_path / f"{number}.jsonl"
        write_jsonl(path, [toy.tasks(1, {"train": 1})["train"][0] | {"pass_rate": rate}])
        with pytest.raises(JobError, match=r"line 1 .*pass_rate"):
            read_tasks(path)


@pytest.mark.parametrize("span", ["[0.5, 0.1]", "[0.1]", "[0, 2]", "0.5"])
def test_a_span_that_is_none_is_refused(span):
    with pytest.raises(UsageError, match=r"grpo\.difficulty"):
        load(ROOT / "params.yaml", [f"grpo.difficulty={span}"])


def test_refill_draws_what_is_solved_at_times():
    easy, hard, middle, unknown = (
        {"task_id": "t", "prompt": "", "entry_point": "f"} | graded
        for graded in ({"pass_rate": 1.0, "graded": 16}, {"pass_rate": 0.0, "graded": 16},
                       {"pass_rate": 0.5, "graded": 16}, {})
    )  # fmt: skip
    assert difficulty.signal(unknown, 8) == 1
    assert difficulty.signal(easy, 8) == pytest.approx(difficulty.signal(hard, 8))
    assert difficulty.signal(hard, 8) == pytest.approx(1 - (1 / 18) ** 8 - (17 / 18) ** 8)
    assert difficulty.signal(middle, 8) == pytest.approx(1 - 2 * 0.5**8)
    rng = random.Random(0)
    weights = [0.9, 0.1, 0.1, 0.1]
    first = [difficulty.draw(rng, weights, 2) for _ in range(2000)]
    assert all(len(set(pair)) == 2 for pair in first)
    assert sum(pair[0] == 0 for pair in first) / 2000 == pytest.approx(0.75, abs=0.04)
