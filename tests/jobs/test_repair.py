"""Second answers: `sample --repair` and `evaluate` for pass@1 after repair, and `grpo` with two turns."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from jobs import evaluate, sample
from jobs.common import answer_format, feedback
from jobs.common.files import read_json, read_jsonl, sha256
from jobs.inference import Completion
from jobs.plumbing.params import load
from jobs.sampling import engine, repair
from tests import program
from tests.jobs.test_evaluate import PARAMS, SET, answers, evaluated, here, invoke  # noqa: F401
from tests.jobs.test_grpo import OUTS, SMALL, world  # noqa: F401

REPAIR = ("--model", "models/m", "--repair", "evaluations/m-cot", "--out", "samples/m-repair")


def repairing(tasks, seen):
    """A stand-in for an engine that repairs what it was told of, but for the first task; notes what it was asked."""
    by_prompt = {answer_format.chat_prompt(t["prompt"]): t for t in tasks}

    def generate(prompts, request):
        seen.append((prompts, request.n, request.temperature))
        return [[again(prompt) for _ in range(request.n)] for prompt in prompts]

    def again(prompt):
        before, said = prompt
        assert said.endswith(f"{feedback.AGAIN}\n\n")
        task = next(task for start, task in by_prompt.items() if before.startswith(start))
        code = task["prompt"] + "    return None\n" if task is tasks[0] else task["reference"]
        return Completion(answer_format.render("Again.", code), 9, "stop")

    return generate


@pytest.fixture
def repaired(here, monkeypatch):  # noqa: F811
    """The tasks, what the model was asked, and the samples after repair; in the working folder."""
    evaluated(monkeypatch, answers(here, "cot"))
    seen: list = []
    monkeypatch.setattr(engine, "load_engine", lambda *arguments: repairing(here, seen))
    done = invoke(sample.command, *REPAIR)
    assert done.exit_code == 0, done.output
    return here, seen, read_jsonl(Path("samples/m-repair/samples-toy.jsonl"))


def test_only_failed_answers_are_asked_for_again_and_the_rest_stays(repaired):
    tasks, seen, rows = repaired
    first = read_jsonl(Path("evaluations/m-cot/samples-toy.jsonl"))
    passed = [row["passed"] for row in read_jsonl(Path("evaluations/m-cot/results-toy.jsonl"))]
    assert [(row["task_id"], row["sample"]) for row in rows] == [(row["task_id"], row["sample"]) for row in first]
    assert [row["turn"] == 1 for row in rows] == passed
    assert all(row["text"] == old["text"] for row, old, kept in zip(rows, first, passed, strict=True) if kept)
    asked = sum(len(prompts) * n for prompts, n, _ in seen)
    assert asked == passed.count(False)
    assert [(len(prompts), n, temperature) for prompts, n, temperature in seen] == [(2, 1, 0.0), (6, 1, 0.8)]
    said = seen[0][0][0][1]
    assert "The call: solve(" in said and not any(
        str(test).partition("== ")[2] in said for test in tasks[0]["tests"][:1]
    )


def test_equal_answers_are_asked_for_again_at_once_each_with_a_draw_of_its_own():
    settings = load(PARAMS, SET).evaluate
    asked = {
        ("same", "said"): [("t", 0), ("t", 1), ("t", 3)],
        ("other", "said"): [("u", 2)],
        ("third", "said"): [("v", 1)],
    }
    made = repair.calls(settings, asked, size=None)
    assert [(call.prompts, call.rows, call.sampling.n, call.sampling.temperature) for call in made] == [
        ([("same", "said")], [[("t", 0)]], 1, 0.0),
        ([("other", "said"), ("third", "said")], [[("u", 2)], [("v", 1)]], 1, 0.8),
        ([("same", "said")], [[("t", 1), ("t", 3)]], 2, 0.8),
    ]
    assert [len(call.prompts) for call in repair.calls(settings, asked, size=1)] == [1, 1, 1, 1]


def test_pass_at_1_after_repair_stands_beside_pass_at_1(repaired):
    done = invoke(
        evaluate.command, "--samples", "samples/m-repair", "--out", "evaluations/m-repair", "--metrics", "m.json"
    )
    assert done.exit_code == 0, done.output
    before, after = (read_json(Path(path))["toy"] for path in ("metrics/evaluate-m.json", "m.json"))
    assert before["sampled"]["pass@1"] == pytest.approx(2 / 3, abs=1e-5)
    assert after["sampled"]["pass@1"] == pytest.approx(17 / 18, abs=1e-5), "one sample of the first task stays wrong"
    assert after["format"] == 1.0
    settings = read_json(Path("evaluations/m-repair/settings.json"))
    assert settings["mode"] == "repair"
    assert settings["first"] == {"toy": sha256(Path("evaluations/m-cot/results-toy.jsonl"))}
    from jobs.compare.load import check_alike, load

    found = load([Path("evaluations")], {})
    check_alike(found)
    assert [(one.model, one.mode) for one in found] == [("m", "cot"), ("m", "repair")]


def test_what_cannot_be_repaired_is_refused(repaired):
    for change, said in (({"mode": "plain"}, "only answers in tags"), ({"seed": 1}, "was made with another `seed`"),
                         ({"model": {}}, "was made with another `model`")):  # fmt: skip
        settings = read_json(Path("evaluations/m-cot/settings.json"))
        Path("evaluations/m-cot/settings.json").write_text(json.dumps(settings | change))
        done = invoke(sample.command, *REPAIR)
        assert (done.exit_code, said in done.output) == (2, True), done.output
        Path("evaluations/m-cot/settings.json").write_text(json.dumps(settings))
    assert "give either --mode or --repair" in invoke(sample.command, *REPAIR, "--mode", "cot").output


def test_an_answer_that_was_cut_has_no_second(here, monkeypatch):  # noqa: F811
    def cut(prompts, request):
        return [[Completion("<START_WORKING_OUT>\nThink", 30, "length")] * request.n for _ in prompts]

    evaluated(monkeypatch, cut)
    seen: list = []
    monkeypatch.setattr(engine, "load_engine", lambda *arguments: repairing(here, seen))
    assert invoke(sample.command, *REPAIR).exit_code == 0
    assert not seen


TWO = ("grpo.turns=2", "grpo.log_completions_every=1")


def grpo(world, out, *settings, apart=False):  # noqa: F811
    inputs = ("--base", world / "models/base", "--adapter", world / "models/adapters/sft")
    return program.run(out, "grpo", *inputs, "--tasks", world / "data/tasks/train.jsonl",
                       settings=(*SMALL, *TWO, *settings), check=True, apart=apart)  # fmt: skip


def test_a_run_with_two_turns_is_whole_and_a_resumed_one_ends_with_its_bytes(world, tmp_path):  # noqa: F811
    """A random model's answers are cut or out of the format: those that end have a second answer."""
    settings = ("grpo.max_completion_length=80", "grpo.temperature=2.0", "grpo.top_p=1.0")
    grpo(world, tmp_path, *settings)
    with open(tmp_path / "plots/grpo.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["first_turn_passed"] for row in rows} == {"0.0"}
    assert "0.0" in {row["repaired"] for row in rows}, "some answer has ended, and its second one failed too"
    texts = [row["completion"] for row in read_jsonl(tmp_path / "data/grpo/completions.jsonl")]
    assert any(feedback.NO_FORMAT in text for text in texts)
    before = {name: sha256(tmp_path / name) for name in OUTS}
    (checkpoints,) = (p for p in (tmp_path / ".checkpoints/grpo").iterdir() if p.is_dir())
    shutil.rmtree(tmp_path / "models/adapters/grpo")
    shutil.rmtree(checkpoints / "checkpoint-4")
    assert "checkpoint-2" in grpo(world, tmp_path, *settings, apart=True).stderr
    assert before == {name: sha256(tmp_path / name) for name in OUTS}


def test_one_turn_has_no_columns_of_two(world, tmp_path):  # noqa: F811
    grpo(world, tmp_path, "grpo.turns=1", "grpo.steps=2")
    with open(tmp_path / "plots/grpo.csv") as file:
        assert "repaired" not in next(csv.reader(file))
