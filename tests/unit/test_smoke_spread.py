"""The bench of the toy's spread: what it keeps, what it says is wrong, and the tables that it writes into the pages."""

import threading

import pytest

from jobs.common.files import read_json, write_json
from tests.bench import smoke_spread as spread
from tests.bench import smoke_spread_pages as told
from tests.bench import smoke_spread_run as one_run


def measured(kernels="own", seed=0, base=0.4, sft=0.7, grpo=1.0, low=0.1, established=1):
    step = {"mean": 0.3, "low": low, "high": 0.4, "established": established}
    return {
        "kernels": kernels,
        "seed": one_run.settings(seed)["seed"],
        "params": one_run.params_of(seed),
        "threads": 2,
        "machine": "a processor",
        "date": "2026-01-01",
        "pass@1": {"base": base, "sft": sft, "grpo": grpo},
        "steps": dict.fromkeys(one_run.STEPS, step),
    }


@pytest.fixture
def made(monkeypatch):
    """Every run that is made, in the place of the jobs."""
    runs = []

    def run(out, data, kernels, seed, threads):
        runs.append((kernels, seed))
        return measured(kernels, seed)

    monkeypatch.setattr(spread, "run", run)
    monkeypatch.setattr(spread, "shared", lambda out, threads: out)
    return runs


@pytest.mark.parametrize("name", ["README.md", "docs/toy.md"])
def test_the_pages_tables_are_what_the_kept_results_say(name):
    page = one_run.ROOT / name
    text = page.read_text()
    assert told.marked(text, told.pages(read_json(told.RESULTS)["runs"])[page]) == text


def test_the_kept_results_are_of_the_smoke_runs_params():
    runs = read_json(told.RESULTS)["runs"]
    assert runs
    first = one_run.settings(0)["seed"]
    for one in runs:
        assert one["params"] == one_run.params_of(one["seed"] - first), (one["kernels"], one["seed"])


def test_each_step_stands_in_its_own_column_in_whatever_order_it_was_kept():
    one = measured()
    for number, pair in enumerate(one_run.STEPS):
        one["steps"][pair] = {"mean": 0.1 + number, "low": 0.0, "high": 1.0}
    one["steps"] = dict(reversed(one["steps"].items()))
    head, _, row = told.by_run([one])
    cells = {name.strip(): cell.split() for name, cell in zip(head.split("|"), row.split("|"), strict=True)}
    assert (cells["SFT - base"][0], cells["GRPO - SFT"][0]) == ("+0.100", "+1.100")


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="marks"):
        told.marked("a page", "a table")


def test_finished_runs_are_not_made_again(tmp_path, made):
    wanted = [("own", 0), ("avx2", 0), ("own", 1)]
    spread.measure(tmp_path, wanted[:1], 1, 2)
    runs, failed = spread.measure(tmp_path, wanted, 1, 2)
    assert not failed
    assert sorted(made) == sorted(wanted)
    assert [(one["kernels"], one["seed"]) for one in runs] == [("own", 3407), ("avx2", 3407), ("own", 3408)]
    assert read_json(tmp_path / "results.json")["runs"] == runs


@pytest.mark.parametrize("other", [{"params": "another"}, {"threads": 1}])
def test_a_finished_run_by_other_settings_is_refused(tmp_path, made, other):
    write_json(tmp_path / "results.json", {"runs": [measured() | other]})
    with pytest.raises(SystemExit, match=r"results\.json has own, seed 3407 by other params"):
        spread.measure(tmp_path, [("own", 0)], 1, 2)
    assert not made


def test_a_folder_by_other_params_is_refused(tmp_path):
    folder = one_run.prepare(tmp_path / "own-0", 0)
    one_run.prepare(folder, 0)
    with pytest.raises(SystemExit, match="other params"):
        one_run.prepare(folder, 1)


def test_runs_are_made_side_by_side_and_one_that_fails_leaves_the_others(tmp_path, made, monkeypatch):
    both = threading.Barrier(2, timeout=60)

    def run(out, data, kernels, seed, threads):
        both.wait()
        if kernels == "avx2":
            raise one_run.Failed("avx2-0: `jobs base` ended with 1")
        return measured(kernels, seed)

    monkeypatch.setattr(spread, "run", run)
    runs, failed = spread.measure(tmp_path, [("own", 0), ("avx2", 0)], 2, 2)
    assert [one["kernels"] for one in runs] == ["own"]
    assert failed == ["avx2-0: `jobs base` ended with 1"]


def test_what_is_not_as_it_should_be_is_told():
    good = measured()
    assert told.faults([good, measured(base=0.47)]) == []
    assert told.faults([good, measured(base=0.49)]) == ["base: the widest difference is 0.090, more than 0.08"]
    assert told.faults([measured(grpo=0.89)]) == ["own, seed 3407: GRPO is below 0.9"]
    for step in ({"established": 0}, {"low": 0.0}):
        assert told.faults([measured(**step)]) == [
            "own, seed 3407: SFT - base is not established",
            "own, seed 3407: GRPO - SFT is not established",
        ]


def test_a_job_takes_the_kernels_and_threads_of_its_run_whatever_the_caller_has_set(tmp_path, monkeypatch):
    for name in one_run.PINS | {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}:
        monkeypatch.setenv(name, "outside")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = []

    def run(command, env, **options):
        found.append(env)
        return one_run.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(one_run.subprocess, "run", run)
    for kernels in one_run.KERNELS.values():
        one_run.job(tmp_path, "models/base", ("base",), 2, kernels)
    for env, kernels in zip(found, one_run.KERNELS.values(), strict=True):
        assert {name: env[name] for name in one_run.PINS & env.keys()} == kernels
        assert (env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]) == ("2", "")
        assert env["PYTHONPATH"].split(one_run.os.pathsep) == [str(one_run.ROOT), "/elsewhere"]


def test_a_job_that_fails_names_its_log(tmp_path):
    with pytest.raises(one_run.Failed, match=r"`jobs no-such-job` ended with \d+, see .*made\.log"):
        one_run.job(tmp_path, "made", ("no-such-job",), 1, {})
    assert "no-such-job" in (tmp_path / "made.log").read_text()
