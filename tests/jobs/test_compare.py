"""`compare` from evaluations to words and metrics."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, sha256, write_json, write_jsonl
from jobs.compare.entries import comparisons
from jobs.compare.load import Evaluation, load
from jobs.compare.words import ONE_RUN
from tests.evaluations import PARAMS, evaluation, lay_out, lay_out_alike, metrics, run, shown, tasks_file

CURVES = ["plots/sft.csv"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out()
    return tmp_path


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_words_say_what_is_established_and_what_is_not(here):
    said = run(CURVES)["statements"]
    assert [line.split(":")[0] for line in said[:3]] == ["Established", "Established", "Not established"]
    assert "On toy (60 tasks, cot), sft is better than base" in said[0]
    assert "after Holm's correction for 3 comparisons" in said[0]
    assert "whether grpo or sft is better" in said[2]
    assert said[-1] == ONE_RUN


def test_metrics_are_numbers_by_benchmark_mode_and_model(here):
    run(CURVES)
    metrics = json.loads(Path("metrics/compare.json").read_text())["toy"]["cot"]
    assert list(metrics) == ["base", "grpo", "grpo-base", "grpo-sft", "sft", "sft-base"]
    difference = metrics["sft-base"]
    assert difference["established"] == 1
    assert difference["low"] > 0
    means = {model: metrics[model]["pass@1"]["mean"] for model in ("base", "sft")}
    assert difference["mean"] == pytest.approx(means["sft"] - means["base"], abs=2e-6)
    assert metrics["grpo-sft"]["established"] == 0
    assert metrics["base"]["pass@5"]["mean"] > metrics["base"]["pass@1"]["mean"]
    rows = list(csv.DictReader(Path("plots/compare.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["base", "sft", "grpo"]
    assert all(float(row["low"]) <= float(row["pass@1"]) <= float(row["high"]) for row in rows)


def test_outs_are_the_same_from_run_to_run(here):
    def outs():
        run(CURVES)
        return [sha256(Path(path)) for path in ("reports/compare.html", "metrics/compare.json", "plots/compare.csv")]

    assert outs() == outs()


def test_noise_alone_is_established_in_less_than_one_report_of_twenty(here):
    """120 pairs of equal models, as a family of three in each report."""
    settings = PARAMS.compare.model_copy(update={"resamples": 200})
    false = 0
    for trial in range(40):
        draw = random.Random(trial)
        difficulty = [draw.random() for _ in range(60)]
        results = [{"toy": [{"task_id": f"Toy/{t}", "sample": i, "outcome": "failed",
                             "passed": draw.random() < difficulty[t]}
                            for t in range(60) for i in range(6)]} for _ in range(3)]  # fmt: skip
        evaluations = [
            Evaluation(str(i), "cot", {}, rows, {"toy": [{"task_id": "", "sample": 0, "text": str(i)}]})
            for i, rows in enumerate(results)
        ]
        [entry] = comparisons(evaluations, {"toy": [{"task_id": f"Toy/{t}"} for t in range(60)]}, settings)
        false += any(pair["established"] for pair in entry["pairs"])
    assert false <= 5  # of 40 reports; a twentieth is 2, and 6 or more would come in 1.4 % of cases


@pytest.mark.parametrize(("key", "value"), [("seed", 2), ("max_tokens", 5), ("benchmarks", {"toy": "another"})])
def test_unlike_evaluations_are_not_compared(here, key, value):
    path = Path("evaluations/sft-cot/settings.json")
    write_json(path, json.loads(path.read_text()) | {key: value})
    with pytest.raises(JobError, match=rf"base-cot and (sft|grpo)-cot cannot be compared: `{key}`|sft-cot.*`{key}`"):
        run(CURVES)


def test_a_difference_in_precision_is_said(here):
    path = Path("evaluations/sft-cot/settings.json")
    write_json(path, json.loads(path.read_text()) | {"dtype": "bfloat16"})
    assert any(line.startswith("Not like for like: `dtype`") for line in run(CURVES)["statements"])


def test_samples_of_other_numbers_are_not_compared(here):
    shutil.rmtree("evaluations/sft-cot")
    evaluation(Path("evaluations/sft-cot"), Path("data/tasks/toy.jsonl"), lambda t, i: True, n=4)
    with pytest.raises(JobError, match="not of the same tasks and numbers"):
        run(CURVES)


def test_evaluations_that_all_lack_a_task_are_refused(here):
    for path in Path("evaluations").glob("*/*-toy.jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in read_jsonl(path) if row["task_id"] != "Toy/7"))
    with pytest.raises(JobError, match=r"results-toy\.jsonl: has not each sample of Toy/7"):
        run(CURVES)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("samples", lambda rows: rows[:-1], "are not of the same samples"),
        ("results", lambda rows: rows[1:], "are not of the same samples"),
        ("samples", lambda rows: [rows[1], rows[0], *rows[2:]], "are not of the same samples"),
        ("results", lambda rows: [rows[0], {**rows[1], "passed": None}, *rows[2:]], "line 2 has no 'passed'"),
        ("results", lambda rows: [{**rows[0], "passed": 1}, *rows[1:]], "line 1 has no 'passed'"),
        ("results", lambda rows: [{**rows[0], "outcome": 3}, *rows[1:]], "line 1 has no 'outcome'"),
        ("samples", lambda rows: [{**rows[0], "text": None}, *rows[1:]], "line 1 has no 'text'"),
    ],
)
def test_rows_that_are_not_as_evaluate_wrote_them_are_refused(here, name, change, said):
    path = Path(f"evaluations/sft-cot/{name}-toy.jsonl")
    write_jsonl(path, change(read_jsonl(path)))
    with pytest.raises(JobError, match=said) as refused:
        run()
    assert "evaluations/sft-cot" in str(refused.value)


def test_an_evaluation_without_its_settings_is_an_error_and_a_hidden_folder_is_none(here):
    shutil.copytree("evaluations/sft-cot", "evaluations/.sft-cot.partial")
    run()
    assert set(metrics()) == {"base", "grpo", "grpo-base", "grpo-sft", "sft", "sft-base"}
    Path("evaluations/sft-cot/settings.json").unlink()
    with pytest.raises(JobError, match=r"evaluations/sft-cot/settings\.json: cannot be read"):
        run()


def test_other_tasks_than_those_evaluated_are_refused(here):
    tasks_file(Path("data/tasks/toy.jsonl"), 59)
    with pytest.raises(JobError, match="is not the file"):
        run(CURVES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss\n1\n", "has no column `step`"),
        ("step,loss\n1,high\n", "line 2: `loss` is 'high', which is no number"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("step,loss\n", "has no line with a step"),
        ("step,loss\n,1\n\n", "has no line with a step"),
        ("step\n1\n2\n", "has no numbers beside its steps"),
        ("step,loss,kl\n1,,\n2\n", "has no numbers beside its steps"),
    ],
)
def test_curves_without_steps_or_numbers_are_refused_and_no_report_is_written(here, text, said):
    Path("plots/bad.csv").write_text(text)
    with pytest.raises(JobError, match=rf"plots/bad\.csv: {said}"):
        run([*CURVES, "plots/bad.csv"])
    assert not Path("reports").exists()


def test_greedy_answers_alone_are_not_compared(here):
    evaluation(Path("evaluations/quick-cot"), Path("data/tasks/toy.jsonl"), lambda t, i: True, n=0)
    with pytest.raises(
        UsageError, match=r"evaluations/quick-cot has greedy answers alone \(evaluate.sampled.n was 0\)"
    ):
        run(CURVES)


def test_no_evaluations_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="holds no evaluations"):
        load([tmp_path], {})
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UsageError, match="is one evaluation; name the folder that holds it"):
        load([tmp_path], {})


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_below_six_tasks_nothing_can_be_established(empty, tasks, value):
    lay_out_alike([value] * tasks)
    said = run()["statements"]
    assert said[0].startswith(f"Nothing can be established: On toy ({tasks} tasks, cot), with fewer than 6 tasks")
    assert f"difference {100 * value:+.1f} points" in said[0]
    assert "interval" not in said[0] and "four times in five" not in said[0]
    pair = metrics()["later-before"]
    assert (pair["low"], pair["high"], pair["established"]) == (-1, 1, 0), "all that is known of it"


def test_six_tasks_that_all_agree_are_enough(empty):
    lay_out_alike([1.0] * 6, base=0)
    assert run()["statements"][0].startswith("Established")


def test_a_higher_confidence_asks_for_more_tasks(empty):
    lay_out_alike([0.5] * 7)
    strict = PARAMS.model_copy(update={"compare": PARAMS.compare.model_copy(update={"confidence": 0.99})})
    assert "with fewer than 8 tasks" in run(params=strict)["statements"][0]


@pytest.mark.parametrize("value", [0.0, 0.1, -0.5])
@pytest.mark.parametrize("tasks", [6, 60])
def test_where_all_tasks_agree_the_interval_has_width_and_the_words_say_why(empty, tasks, value):
    lay_out_alike([value] * tasks)
    said = run()["statements"][0]
    pair = metrics()["later-before"]
    assert pair["high"] - pair["low"] > 1 / tasks
    assert pair["low"] < value < pair["high"]
    assert f"All {tasks} tasks show the same difference, so nothing is known" in said
    assert "four times in five" not in said, "nothing is known of the scatter"


@pytest.mark.parametrize("odd", [1, 2, 3])
def test_a_few_tasks_that_differ_give_no_one_sided_certainty(empty, odd):
    lay_out_alike([0.5] * odd + [0.0] * (60 - odd))
    run()
    assert metrics()["later-before"]["low"] < 0 < metrics()["later-before"]["high"]


BROKEN = {
    "nan": ("step,loss,kl\n1,0.5,nan\n2,0.4,0.1\n", {"loss": [0.5, 0.4], "kl": [None, 0.1]},
            "`kl` has no finite number at step 1 (nan)"),
    "inf": ("step,loss\n1,inf\n2,-Infinity\n3,1e999\n", {"loss": [None] * 3}, "step 1 (inf), step 2 (-inf), step 3 (inf)"),
    "step": ("step,loss\nnan,1\n,2\n2,3\n", {"step": [2.0], "loss": [3.0]},
             "`step` has no finite number at line 2, line 3"),
    "short": ("step,loss,kl\n1,0.5\n2\n\n3,0.5,0.5\n", {"loss": [0.5, None, 0.5], "kl": [None, None, 0.5]}, None),
    "mark": ("\ufeffstep,loss\n1, 0.5\n", {"loss": [0.5]}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_curves_that_diverged_or_were_cut_are_drawn_with_gaps(here, name):
    text, columns, gap = BROKEN[name]
    Path("plots/odd.csv").write_text(text, encoding="utf-8")
    run(["plots/odd.csv"])
    [found] = shown()["curves"]
    assert columns.items() <= found["columns"].items()
    assert [gap in said for said in shown()["gaps"]] == ([True] if gap else [])


@pytest.mark.parametrize(
    "content", [b"step,loss\n1,\xff\xfe\n", b"step,loss\n1,2,3\n", b"step,loss\n1,0.5\x00\n", b"step,loss\nfirst,1\n"]
)
def test_what_is_no_curve_is_refused_by_name(here, content):
    Path("plots/bad.csv").write_bytes(content)
    with pytest.raises(JobError, match=r"plots/bad\.csv"):
        run(["plots/bad.csv"])


def test_failures_are_told_by_view_and_of_greedy_and_sampled_answers_apart(empty):
    """Greedy answers pass the benchmark's own inputs and fail the added ones; of the samples, half time out."""
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks, 8, base_input=lambda i: [[1]], plus_input=lambda i: [[2]], tests=lambda i: [],
               reference=lambda i: f"def f{i}(x):\n    return x\n")  # fmt: skip
    options = {"n": 4, "base": lambda t, i: i != 3}
    evaluation(Path("evaluations/one-plain"), tasks, lambda t, i: i in (1, 2), mode="plain", **options)
    evaluation(Path("evaluations/one-cot"), tasks, lambda t, i: i in (1, 2), outcome="timeout", **options)
    run()
    found = {(entry["view"], entry["mode"]): entry["failures"]["one"] for entry in shown()["entries"]}
    assert found["toy", "cot"] == {"greedy": {"passed": 1}, "sampled": {"passed": 0.75, "timeout": 0.25}}
    assert found["toy+", "cot"] == {"greedy": {"timeout": 1}, "sampled": {"passed": 0.5, "timeout": 0.5}}
    assert found["toy", "plain"]["sampled"] == {"failed": 0.25, "passed": 0.75}
    for entry in shown()["entries"]:
        rates = entry["models"]["one"]
        assert entry["failures"]["one"]["greedy"].get("passed", 0) == rates["greedy"]["mean"]
        assert entry["failures"]["one"]["sampled"]["passed"] == rates["pass@1"]["mean"]
    assert shown()["benchmarks"]["toy"]["views"] == ["toy", "toy+"]
    assert shown()["benchmarks"]["toy"]["samples"]["one cot"]["Toy/0"][0][-1] == [1, 0]


def test_rates_by_source_difficulty_and_month_where_tasks_have_them(empty):
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks, 24, source=lambda i: ("a", "b")[i % 2], difficulty=lambda i: ("hard", "easy", None)[i % 3],
               date=lambda i: f"2026-0{1 + i // 12}-1{i % 10}")  # fmt: skip
    evaluation(Path("evaluations/old-cot"), tasks, lambda t, i: t % 2)
    evaluation(Path("evaluations/new-cot"), tasks, lambda t, i: t >= 12)
    run()
    [entry] = shown()["entries"]
    rows = {by: [(g["name"], g["tasks"], g["models"]["old"]["mean"], g["models"]["new"]["mean"]) for g in groups]
            for by, groups in entry["groups"].items()}  # fmt: skip
    assert rows["source"] == [("a", 12, 0, 0.5), ("b", 12, 1, 0.5)]
    assert rows["month"] == [("2026-01", 12, 0.5, 0), ("2026-02", 12, 0.5, 1)]
    assert [name for name, *_ in rows["difficulty"]] == ["easy", "hard", "not said"]
    assert all(g["models"]["old"]["high"] > g["models"]["old"]["low"] for g in entry["groups"]["source"])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0.0, 0.1, 0.26, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0], ["0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "0.75 to 1"]),
        ([800, 2400, *range(1000, 1900, 100)], ["800 to 1200", "1200 to 1600", "1600 to 2000", "2000 to 2400"]),
        ([3, 1, 2], ["1", "2", "3"]),
        (["competition", "introductory", "interview"], ["introductory", "interview", "competition"]),
    ],
)
def test_difficulties_come_in_the_order_of_their_kind(values, names):
    from jobs.compare.groups import grouped

    tasks = [{"task_id": str(i), "difficulty": value} for i, value in enumerate(values)]
    assert list(grouped(tasks)["difficulty"]) == names


def test_tasks_without_such_fields_are_not_grouped(here):
    run()
    assert shown()["entries"][0]["groups"] == {}
