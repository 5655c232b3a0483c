"""`compare` over several runs of a method: what is said over seeds, of two seeds, and of runs that are one."""

import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, write_json
from jobs.compare import job
from jobs.compare.load import load, of_patterns
from jobs.compare.words import ONE_RUN, SEVERAL
from tests.evaluations import PARAMS, evaluation, metrics, run, shown, tasks_file


def lay_out(runs, gains, count=60):
    """Runs 1 to `runs` of a base that is the same in all of them, and of methods that pass so much more."""
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks, count)
    draw = random.Random(0)
    hard = [draw.random() * 0.6 for _ in range(count)]
    luck = {(t, i): draw.random() for t in range(count) for i in range(6)}
    for number in range(1, runs + 1):
        folder = Path(f"run{number}/data/evaluations")
        evaluation(folder / "base-cot", tasks, lambda t, i: luck[t, i] < hard[t])
        for name, gain in gains.items():
            own = {key: draw.random() for key in luck}
            evaluation(folder / f"{name}-cot", tasks, lambda t, i, own=own, gain=gain: own[t, i] < hard[t] + gain,
                       text=f"{name} {number}")  # fmt: skip
    return [f"run{number}/data/evaluations" for number in range(1, runs + 1)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_over_three_seeds_a_difference_of_methods_is_established():
    said = run(folders=lay_out(3, {"sft": 0.1, "grpo": 0.35}))["statements"]
    better = next(line for line in said if "grpo is better than sft" in line)
    assert better.startswith("Established: over 3 seeds, on toy (60 tasks, cot), grpo is better than sft by ")
    assert "interval over seeds and tasks" in better
    assert any("base (cot) is the same model in 3 runs, counted as one" in line for line in said)
    assert any(
        line.startswith("Established: over 3 seeds") and line.endswith("Of base there is one set of weights.")
        for line in said
    )
    assert said[-1] == SEVERAL
    assert ONE_RUN not in said


def test_runs_of_other_weights_that_gave_the_same_samples_are_runs_of_their_own():
    """As three seeds do that have learned all there is to learn; the base's weights are those of one run."""
    folders = lay_out(3, {"sft": 0.1})
    tasks = Path("data/tasks/toy.jsonl")
    for number, folder in enumerate(folders, 1):
        model = {"adapter": None, "weights": f"{number:064d}"}
        evaluation(Path(folder) / "grpo-cot", tasks, lambda t, i: True, settings={"model": model})
        for name in ("base", "sft"):
            settings = Path(folder) / f"{name}-cot/settings.json"
            weights = "b" * 64 if name == "base" else f"{number:064x}"
            write_json(settings, read_json(settings) | {"model": {"adapter": None, "weights": weights}})
    said = run(folders=folders)["statements"]
    better = next(line for line in said if "grpo is better than sft" in line)
    assert better.startswith("Established: over 3 seeds, on toy (60 tasks, cot), grpo is better than sft by ")
    assert [line.partition(" in ")[0] for line in said if "counted as one" in line] == ["base (cot) is the same model"]


def test_seeds_that_differ_more_than_the_methods_establish_nothing():
    """Of one run, and over tasks alone, the difference would be established; over seeds it is not."""
    apart = lay_out_apart()
    run(folders=apart[2:])
    assert metrics()["grpo-sft"]["established"] == 1
    said = run(folders=apart)["statements"]
    line = next(line for line in said if "whether grpo or sft" in line)
    assert line.startswith("Not established: over 3 seeds")
    assert "2 points would need" in line
    pair = next(p for p in shown()["entries"][0]["pairs"] if (p["old"], p["new"]) == ("sft", "grpo"))
    assert pair["scatter"]["runs"] > 0.001
    assert pair["needed"]["5"]["seeds"] > 3


def lay_out_apart():
    """Three runs of which grpo gains 0, 15 and 30 points."""
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks)
    draw = random.Random(1)
    folders = [f"run{number}/data/evaluations" for number in range(3)]
    for number, folder in enumerate(folders):
        for name, rate in (("sft", 0.4), ("grpo", 0.4 + 0.15 * number)):
            own = {(t, i): draw.random() for t in range(60) for i in range(6)}
            evaluation(Path(folder) / f"{name}-cot", tasks, lambda t, i, own=own, rate=rate: own[t, i] < rate,
                       text=f"{name} {number}")  # fmt: skip
    return folders


def test_metrics_over_seeds_have_the_keys_of_one_run_and_the_runs():
    folders = lay_out(3, {"sft": 0.1, "grpo": 0.3})
    run(folders=folders[:1])
    one = metrics()
    run(folders=folders)
    several = metrics()
    assert one.keys() == several.keys()
    assert several["grpo"]["runs"]["number"] == 3
    assert several["grpo"].keys() - {"runs"} == one["grpo"].keys()
    assert "runs" not in several["base"], "three runs of equal weights are one"
    assert several["grpo-sft"].keys() == one["grpo-sft"].keys()
    assert several["grpo-sft"]["low"] < several["grpo-sft"]["mean"] < several["grpo-sft"]["high"]


@pytest.mark.parametrize("gain", [0.1, 0.35])
def test_two_seeds_establish_nothing_of_methods(gain):
    said = run(folders=lay_out(2, {"sft": 0.0, "grpo": gain}))["statements"]
    line = next(line for line in said if "whether grpo or sft" in line)
    assert line.startswith("Not established")
    assert "two seeds do not tell how far seeds scatter, and a third is needed" in line
    assert line.count(" points") >= 3 and "by seed)" in line
    assert metrics()["grpo-sft"]["established"] == 0


def test_one_run_is_told_as_weights():
    said = run(folders=lay_out(1, {"sft": 0.35}))["statements"]
    assert said[0].startswith("Established: On toy") and said[-1] == ONE_RUN


def test_methods_by_name_and_pattern_with_runs_that_are_independent():
    """As a sweep leaves them: a folder for each run, and another number of runs of each method."""
    lay_out(4, {"a": 0.0, "b": 0.35})
    for number in (1, 2, 3, 4):
        for name in ("a", "b"):
            if (name, number) != ("a", 4):
                shutil.move(f"run{number}/data/evaluations/{name}-cot", f"compared/{name}-{number}-cot")
    said = run(folders=(), runs=["a=compared/a-*", "b=compared/b-*", "start=run1/data/evaluations/base-cot"])[
        "statements"
    ]
    line = next(line for line in said if "b is better than a" in line)
    assert line.startswith("Established: over 4 seeds of b and 3 of a, on toy (60 tasks, cot), b is better than a by ")
    assert "Of start there is one set of weights." in "".join(said)
    assert metrics()["a"]["runs"]["number"] == 3


def test_independent_runs_give_wider_intervals_than_runs_of_one_origin():
    """SFT differs by seed, and GRPO continues it: paired by run, that falls out."""
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks)
    draw = random.Random(2)
    for number in range(3):
        own = {(t, i): draw.random() for t in range(60) for i in range(6)}
        for name, rate in (("sft", 0.3 + 0.1 * number), ("grpo", 0.45 + 0.1 * number)):
            evaluation(
                Path(f"run{number}/{name}-cot"),
                tasks,
                lambda t, i, own=own, rate=rate: own[t, i] < rate,
                text=f"{name}{number}",
            )
    run(folders=["run0", "run1", "run2"])
    paired = metrics()["grpo-sft"]
    run(folders=(), runs=["sft=run*/sft-cot", "grpo=run*/grpo-cot"])
    independent = metrics()["grpo-sft"]
    assert independent["mean"] == paired["mean"]
    assert independent["high"] - independent["low"] > 2 * (paired["high"] - paired["low"])
    assert (paired["established"], independent["established"]) == (1, 0)


def test_runs_that_lack_a_model_are_left_out_of_its_pairs_and_not_counted():
    folders = lay_out(4, {"sft": 0.0, "grpo": 0.35})
    shutil.rmtree("run4/data/evaluations/grpo-cot")
    said = run(folders=folders)["statements"]
    assert any(
        line.startswith("Established: over 3 seeds, on toy") and "grpo is better than sft" in line for line in said
    )
    assert metrics()["sft"]["runs"]["number"] == 4


def test_a_run_that_is_named_apart_makes_the_runs_independent():
    """No run is dropped in silence: the fourth of sft, which lies elsewhere, counts as the others do."""
    folders = lay_out(4, {"sft": 0.0, "grpo": 0.35})
    shutil.move("run4/data/evaluations/sft-cot", "elsewhere/sft-cot")
    said = run(folders=folders[:3], runs=["sft=elsewhere/sft-cot"])["statements"]
    assert any("over 3 seeds of grpo and 4 of sft" in line for line in said)


def test_curves_of_several_runs_lie_in_one_chart():
    folders = lay_out(2, {"sft": 0.1})
    for number in (1, 2):
        Path(f"run{number}/plots").mkdir()
        Path(f"run{number}/plots/sft.csv").write_text(f"step,loss\n1,{number}\n")
    run(["run1/plots/sft.csv", "run2/plots/sft.csv"], folders=folders)
    assert [(c["name"], c["label"]) for c in shown()["curves"]] == [
        ("sft", "run1/plots/sft.csv"),
        ("sft", "run2/plots/sft.csv"),
    ]


BAD = {
    "no name": (["=run1"], "not of the form NAME=FOLDER"),
    "no folder": (["a"], "not of the form NAME=FOLDER"),
    "nothing": (["a=nowhere/*"], "names no folder that `evaluate` wrote"),
    "a run's folder": (["a=run1/data/evaluations"], "names no folder that `evaluate` wrote"),
    "twice": (["a=run1/data/evaluations/sft-cot", "b=run1/data/evaluations/sft-cot"], "is given twice"),
    "twice by pattern": (["a=run1/data/evaluations/sft-*", "a=run*/data/evaluations/sft-cot"], "is given twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_runs_that_are_none_are_refused_by_flag(name):
    lay_out(2, {"sft": 0.1})
    values, message = BAD[name]
    with pytest.raises(UsageError, match=message):
        load([], of_patterns(values))


def test_a_folder_given_twice_is_refused():
    folders = [Path(folder) for folder in lay_out(2, {"sft": 0.1})]
    with pytest.raises(UsageError, match="given twice"):
        load([*folders, folders[0]], {})


def test_what_is_no_evaluation_is_refused_by_file():
    [folder] = lay_out(1, {"sft": 0.1})
    write_json(Path(folder) / "sft-cot/settings.json", {"made": "elsewhere"})
    with pytest.raises(JobError, match=r"sft-cot/settings\.json: has no `mode`"):
        load([Path(folder)], {})


def test_unlike_runs_are_named_by_folder():
    folders = lay_out(3, {"sft": 0.1})
    path = Path(folders[2]) / "sft-cot/settings.json"
    write_json(path, read_json(path) | {"seed": 2})
    with pytest.raises(JobError, match=r"run3/data/evaluations/sft-cot cannot be compared: `seed`"):
        run(folders=folders)


def test_the_command_line_takes_runs_of_both_kinds():
    folders = lay_out(3, {"sft": 0.3})
    write_json(Path("params.yaml"), PARAMS.model_dump())
    words = [word for folder in folders for word in ("--evaluations", folder)]
    done = CliRunner().invoke(job.command, [*words, "--runs", "other=run1/data/evaluations/sft-cot"])
    assert done.exit_code == 2, "the same folder by both"
    done = CliRunner().invoke(job.command, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "over 3 seeds" in done.output
    done = CliRunner().invoke(job.command, [])
    assert done.exit_code == 2 and "data/evaluations does not exist" in done.output
