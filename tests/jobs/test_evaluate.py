"""`sample` and `evaluate` from model to metrics: outcomes, resuming, rescoring, and real tasks with known verdicts."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs import evaluate, sample
from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.files import MARK, read_jsonl, sha256, write_json, write_jsonl
from jobs.inference import Completion
from jobs.plumbing.params import load
from jobs.sampling import benchmark as sampling
from jobs.sampling import engine as engines
from jobs.sandbox import Verdict
from jobs.scoring.judge import score
from jobs.scoring.metrics import pass_rates
from jobs.toy import world

PARAMS = Path(__file__).parents[2] / "params.yaml"
DATA = Path(__file__).parents[2] / "../shared/data"
SET = ["evaluate.engine=transformers", "evaluate.dtype=float32", "evaluate.max_tokens=30", "evaluate.batch_size=6",
       "evaluate.sampled={n: 3, temperature: 0.8, top_p: 0.95}", "evaluate.benchmarks=[toy]", "sandbox.require=[]",
       "sandbox.workers=1"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with six toy tasks in data/tasks and an empty model folder."""
    monkeypatch.chdir(tmp_path)
    tasks = world.tasks(0, {"heldout": 6})["heldout"]
    write_jsonl(Path("data/tasks/toy.jsonl"), tasks)
    Path("models/m").mkdir(parents=True)
    return tasks


def answers(tasks, mode, stop_after=None):
    """A stand-in for an engine: sample i of task number t is right where (t + i) % 3 is not 0. Counts its calls."""
    by_prompt = {
        answer_format.chat_prompt(t["prompt"]) if mode == "cot" else t["prompt"]: (n, t) for n, t in enumerate(tasks)
    }

    def generate(prompts, sampling):
        if generate.calls == stop_after:
            raise KeyboardInterrupt
        generate.calls += 1
        return [[answer(*by_prompt[prompt], i) for i in range(sampling.n)] for prompt in prompts]

    def answer(number, task, i):
        code = task["reference"] if (number + i) % 3 else task["prompt"] + "    return None\n"
        text = code.removeprefix(task["prompt"]) if mode == "plain" else answer_format.render("Thinking.", code)
        return Completion(text, 7, "stop")

    generate.calls = 0
    return generate


def evaluated(monkeypatch, engine, mode="cot", out="evaluations/m-cot", more=()):
    """`evaluate --model` with a stand-in for the model."""
    monkeypatch.setattr(engines, "load_engine", lambda *arguments: engine)
    monkeypatch.setattr(sampling, "model_identity", lambda path: "0" * 64)
    params = load(PARAMS, [*SET, *more])
    return evaluate.run(
        params,
        None,
        Path("models/m"),
        None,
        mode,
        ["toy"],
        Path("data/tasks"),
        Path(out),
        Path("metrics/evaluate-m.json"),
    )


@pytest.mark.parametrize("mode", ["plain", "cot"])
def test_metrics_count_what_passed(here, monkeypatch, mode):
    metrics = evaluated(monkeypatch, answers(here, mode), mode)["toy"]
    assert metrics["tasks"] == 6
    assert metrics["greedy"]["pass@1"] == pytest.approx(4 / 6)
    assert metrics["sampled"] == {"pass@1": pytest.approx(2 / 3), "pass@3": 1.0}
    assert metrics["failures"]["failed"] == pytest.approx(1 / 3)
    assert sum(metrics["failures"].values()) == pytest.approx(1 / 3)
    assert metrics.get("format") == (1.0 if mode == "cot" else None)
    rows = read_jsonl(Path("evaluations/m-cot/results-toy.jsonl"))
    assert [(row["task_id"], row["sample"]) for row in rows] == [(t["task_id"], i) for t in here for i in range(4)]
    assert json.loads(Path("metrics/evaluate-m.json").read_text())["toy"]["sampled"]["pass@1"] == 0.666667


def test_without_samples_there_is_the_greedy_answer_alone(here, monkeypatch):
    metrics = evaluated(monkeypatch, answers(here, "cot"), more=["evaluate.sampled.n=0"])["toy"]
    assert metrics["greedy"]["pass@1"] == pytest.approx(4 / 6)
    assert "sampled" not in metrics
    assert [row["sample"] for row in read_jsonl(Path("evaluations/m-cot/samples-toy.jsonl"))] == [0] * 6


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(here, monkeypatch):
    evaluated(monkeypatch, whole := answers(here, "cot"), out="whole/m-cot")
    for stop_after in (0, 1, 1):
        with pytest.raises(KeyboardInterrupt):
            evaluated(monkeypatch, answers(here, "cot", stop_after), out="killed/m-cot")
        assert not Path("killed/m-cot").exists()
    [kept] = Path(".checkpoints/sample-m-cot").glob("*/toy.jsonl")
    with open(kept, "a") as file:
        file.write('[{"task_id": "torn by the ki')
    evaluated(monkeypatch, rest := answers(here, "cot"), out="killed/m-cot")
    assert rest.calls == whole.calls - 2
    assert sha256(Path("killed/m-cot")) == sha256(Path("whole/m-cot"))


def test_other_params_do_not_resume(here, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        evaluated(monkeypatch, answers(here, "cot", 2))
    evaluated(monkeypatch, engine := answers(here, "cot"), more=["evaluate.seed=1"])
    assert engine.calls == 4  # one of six greedy answers, three of two tasks' three samples


def test_a_finished_generation_is_not_repeated_when_scoring_failed(here, monkeypatch):
    def fail(*arguments, **options):
        raise JobError("no sandbox")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "score", fail)
        with pytest.raises(JobError, match="no sandbox"):
            evaluated(patch, answers(here, "cot"))
    evaluated(monkeypatch, engine := answers(here, "cot"))
    assert engine.calls == 0


def invoke(command, *words):
    sets = (word for text in SET for word in ("--set", text))
    return CliRunner().invoke(command, ["--params", str(PARAMS), *sets, *words], catch_exceptions=False)


@pytest.mark.parametrize("mode", ["plain", "cot"])
def test_scoring_alone_gives_the_same_results(here, monkeypatch, mode):
    evaluated(monkeypatch, answers(here, mode), mode)
    result = invoke(evaluate.command, "--samples", "evaluations/m-cot", "--out", "again", "--metrics", "again.json")
    assert result.exit_code == 0, result.output
    assert sha256(Path("again")) == sha256(Path("evaluations/m-cot"))
    assert sha256(Path("again.json")) == sha256(Path("metrics/evaluate-m.json"))


def test_the_two_stages_write_what_the_one_command_writes(here, monkeypatch):
    evaluated(monkeypatch, answers(here, "cot"))
    monkeypatch.setattr(engines, "load_engine", lambda *arguments: answers(here, "cot"))
    assert invoke(sample.command, "--model", "models/m", "--out", "samples/m-cot").exit_code == 0
    assert {path.name for path in Path("samples/m-cot").glob("*.json*")} == {"samples-toy.jsonl", "settings.json", MARK}
    assert not list(Path(".checkpoints").glob("*/*")), "finished calls would outlive a change of the engine's code"
    for name in ("jobs.sample", "jobs.sampling", "jobs.sampling.benchmark", "jobs.inference"):
        monkeypatch.setitem(sys.modules, name, None)  # scoring hangs on none of it: to import it would be an error
    done = invoke(evaluate.command, "--samples", "samples/m-cot", "--out", "two/m-cot", "--metrics", "two.json")
    assert done.exit_code == 0, done.output
    assert sha256(Path("two")) == sha256(Path("evaluations"))
    assert sha256(Path("two.json")) == sha256(Path("metrics/evaluate-m.json"))


@pytest.mark.parametrize("change", ["task", "sample", "twice", "other", "key"])
def test_a_metric_over_fewer_samples_is_refused(here, monkeypatch, change):
    evaluated(monkeypatch, answers(here, "cot"))
    path = Path("evaluations/m-cot/samples-toy.jsonl")
    rows = read_jsonl(path)
    last = rows[-1]["task_id"]
    changed = {
        "task": ([r for r in rows if r["task_id"] != last], last),
        "sample": (rows[:-1], last),
        "twice": ([*rows, rows[-1]], last),
        "other": ([*rows, {**rows[-1], "task_id": "Toy/other"}], "Toy/other"),
        "key": ([rows[0], {k: v for k, v in rows[1].items() if k != "finish"}, *rows[2:]], "line 2 has no 'finish'"),
    }
    write_jsonl(path, changed[change][0])
    result = invoke(evaluate.command, "--samples", "evaluations/m-cot", "--out", "again")
    assert result.exit_code == 1
    assert changed[change][1] in result.output
    assert "samples-toy.jsonl" in result.output
    assert not Path("again").exists()


def test_scoring_by_other_tests_is_said(here, monkeypatch, caplog):
    evaluated(monkeypatch, answers(here, "cot"))
    again = ["--samples", "evaluations/m-cot", "--out", "again"]
    assert invoke(evaluate.command, *again).exit_code == 0
    assert "its tests decide now" not in caplog.text
    write_jsonl(Path("data/tasks/toy.jsonl"), [{**task, "tests": ["assert solve(0) is None"]} for task in here])
    assert invoke(evaluate.command, *again).exit_code == 0
    assert "data/tasks/toy.jsonl is not the file that evaluations/m-cot was drawn or scored by" in caplog.text


@pytest.mark.parametrize("benchmarks", [None, 5, "toy", ["toy"]])
def test_settings_that_name_benchmarks_oddly_are_one_error(here, monkeypatch, benchmarks):
    evaluated(monkeypatch, answers(here, "cot"))
    write_json(Path("evaluations/m-cot/settings.json"), {"mode": "cot", "benchmarks": benchmarks})
    result = invoke(evaluate.command, "--samples", "evaluations/m-cot", "--out", "again")
    assert result.exit_code == 1
    assert "evaluations/m-cot/settings.json: its benchmarks are no mapping" in result.output


def test_a_benchmark_that_has_lost_tasks_is_refused(here, monkeypatch):
    write_json(Path("data/tasks/sizes.json"), {"toy": len(here)})
    evaluated(monkeypatch, answers(here, "cot"))
    write_jsonl(Path("data/tasks/toy.jsonl"), here[1:])
    with pytest.raises(JobError, match=rf"toy\.jsonl: has {len(here) - 1} tasks, and {len(here)} are recorded"):
        evaluated(monkeypatch, answers(here, "cot"))


def verdict(status):
    return Verdict(status, int(status == "passed"), 1)


class Judging:
    """A stand-in for the sandbox with one verdict for all."""

    def __init__(self, status):
        self.status, self.submitted = status, []

    def submit(self, task, code):
        from concurrent.futures import Future

        self.submitted.append(code)
        future: Future = Future()
        future.set_result(verdict(self.status))
        return future


TASK = {"task_id": "t", "prompt": 'def f():\n    """One."""\n', "entry_point": "f", "tests": [], "reference": ""}


def test_pass_rates_are_the_unbiased_estimates_over_tasks():
    rows = [("a", i < 3) for i in range(10)] + [("b", i < 1) for i in range(10)]
    assert pass_rates(rows, (1, 10, 100)) == {"pass@1": pytest.approx(0.2), "pass@10": 1.0}
    assert pass_rates([], (1,)) == {}


@pytest.mark.parametrize(("text", "finish", "status", "expected"), [
    ("    return 1\n", "stop", "passed", "passed"), ("    return 1\n", "length", "passed", "passed"),
    ("    return 1\n", "length", "failed", "truncated"), ("    return 1\n", "stop", "failed", "failed"),
    ("    return (\n", "stop", "invalid", "syntax_error"), ("    return 1\n", "stop", "timeout", "timeout"),
    ("    return 1\n", "stop", "crashed", "crashed"), ("    return (\n", "stop", "passed", "passed"),
    ("    return 1\n", "stop", "invalid", "wrong_entry_point"),
])  # fmt: skip
def test_an_outcome_is_the_first_thing_wrong(text, finish, status, expected):
    row = {"task_id": "t", "sample": 0, "text": text, "tokens": 1, "finish": finish}
    [row] = score([TASK], [row], "plain", Judging(status))
    assert row["outcome"] == expected
    assert row["passed"] is (expected == "passed")


def test_without_tags_nothing_runs():
    sandbox = Judging("passed")
    row = {"task_id": "t", "sample": 0, "text": "def f(): return 1", "tokens": 1, "finish": "stop"}
    [row] = score([TASK], [row], "cot", sandbox)
    assert (row["outcome"], row["passed"], sandbox.submitted) == ("no_tags", False, [])


def test_equal_programs_run_once():
    sandbox = Judging("passed")
    samples = [{"task_id": "t", "sample": i, "text": "    return 1\n", "tokens": 1, "finish": "stop"} for i in range(5)]
    assert len(score([TASK], samples, "plain", sandbox)) == 5
    assert len(sandbox.submitted) == 1


def test_a_fault_of_the_sandbox_is_no_score():
    row = {"task_id": "t", "sample": 2, "text": "    return 1\n", "tokens": 1, "finish": "stop"}
    with pytest.raises(JobError, match="sandbox failed on sample 2 of t"):
        score([TASK], [row], "plain", Judging("infrastructure_error"))


def test_stop_strings_fit_the_prompts():
    assert sampling.stop_strings([TASK], "plain") == sampling.STOP_BODY
    mbpp = {"prompt": '"""\nWrite f.\nassert f() == 1\n"""\n', "entry_point": "f"}
    assert sampling.stop_strings([mbpp], "plain") == sampling.STOP_PROGRAM
    assert sampling.stop_strings([TASK], "cot") == ()
    assert not any(stop in "\n\ndef f():\n    return 1\n" for stop in sampling.STOP_PROGRAM)


def test_engines_by_kind_of_model(monkeypatch):
    from jobs.inference import hf, llama_cpp, vllm

    for name, module in (("llama_cpp", llama_cpp), ("transformers", hf), ("vllm", vllm)):
        monkeypatch.setattr(module, "load", lambda path, name=name, **options: name)
    settings = load(PARAMS, ["evaluate.engine=transformers"]).evaluate
    assert engines.load_engine(settings, Path("models/gguf/Q8_0.gguf"), None) == "llama_cpp"
    assert engines.load_engine(settings, Path("models/m"), None) == "transformers"
    assert engines.load_engine(load(PARAMS).evaluate, Path("models/m"), Path("adapter")) == "vllm"


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "either --model or --samples"), (["--model", "models/m", "--benchmark", "nope"], "benchmark nope"),
    (["--samples", "drawn", "--mode", "plain"], "--mode: drawn was sampled in mode cot, not plain"),
    (["--samples", "drawn"], "names no benchmarks"),
    (["--samples", "drawn", "--benchmark", "toy"], "benchmark toy: drawn has no samples of it"),
    (["--samples", "data"], "settings.json: cannot be read"),
    (["--model", "models/none"], "--model: models/none does not exist"),
    (["--samples", "data", "--out", "data"], "--out: data is or holds what --samples reads"),
])  # fmt: skip
def test_usage_errors_are_one_line(here, arguments, message):
    Path("drawn").mkdir()
    Path("drawn/settings.json").write_text('{"mode": "cot"}')
    result = CliRunner().invoke(evaluate.command, ["--params", str(PARAMS), *arguments])
    assert result.exit_code == (1 if "cannot be read" in message else 2)
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_real_model_through_the_command(here, tmp_path):
    pytest.importorskip("torch")
    from tests.toy import make_model

    shutil.rmtree("models/m")
    make_model(Path("models/m"), hidden=64, layers=1)
    arguments = ["--params", str(PARAMS), *(word for text in SET for word in ("--set", text)), "--model", "models/m",
                 "--mode", "plain"]  # fmt: skip
    first = CliRunner().invoke(evaluate.command, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    before = sha256(Path("data/evaluations/m-plain"))
    assert not list(Path(".checkpoints").glob("*/*")), "finished calls would outlive a change of the engine's code"
    CliRunner().invoke(evaluate.command, arguments, catch_exceptions=False)
    assert sha256(Path("data/evaluations/m-plain")) == before


def benchmark(name):
    from jobs.score import load_tasks

    if not (DATA / name).exists():
        pytest.skip(f"needs the benchmark data in {DATA}")
    return list(load_tasks(DATA / name).values())


@pytest.mark.parametrize("name", ["HumanEvalPlus.jsonl.gz", "MbppPlus.jsonl.gz"])
def test_stored_completions_become_the_programs_that_the_official_evaluators_run(name):
    from jobs.extraction.program import extract

    for task in benchmark(name):
        right = task["reference"].removeprefix(task["prompt"])
        for text in (right, right.replace("return", "return not", 1), right + "\n    return (", "    pass\n"):
            solution = extract(text, task["prompt"], task["entry_point"], "plain").solution
            whole = f"def {task['entry_point']}" in text  # as MBPP's are: run with or without the prompt
            assert solution == task["prompt"] + text or (whole and solution.endswith(text))


@pytest.mark.parametrize("name", ["HumanEvalPlus.jsonl.gz", "MbppPlus.jsonl.gz"])
def test_results_equal_evalplus_own(name, monkeypatch):
    """Some tasks, right and broken; tests/bench/exactness.py does all of them, with more ways of breaking."""
    official = pytest.importorskip("evalplus.eval")
    from evalplus.data.mbpp import mbpp_deserialize_inputs
    from evalplus.gen.util import trusted_exec

    from jobs.sandbox import Sandbox

    monkeypatch.setenv("EVALPLUS_MAX_MEMORY_BYTES", str(4 << 30))
    tasks = benchmark(name)[5::40]
    samples = [{"task_id": task["task_id"], "sample": i, "text": text, "tokens": 1, "finish": "stop"} for task in tasks
               for right in [task["reference"].removeprefix(task["prompt"])]
               for i, text in enumerate((right, right.replace("return", "return not", 1)))]  # fmt: skip
    with Sandbox(1, benchmark=True, min_limit=4.0) as sandbox:
        results = score(tasks, samples, "plain", sandbox)
    by_id, dataset = {task["task_id"]: task for task in tasks}, "mbpp" if name.startswith("Mbpp") else "humaneval"
    for row in results:
        task = by_id[row["task_id"]]
        for part in ("base", "plus"):
            raw = task[f"{part}_input"]
            inputs = mbpp_deserialize_inputs(task["task_id"], raw) if dataset == "mbpp" else raw
            expected, seconds = trusted_exec(task["reference"], inputs, task["entry_point"], record_time=True)
            status, _ = official.untrusted_check(
                dataset, row["solution"], inputs, task["entry_point"], expected, task["atol"], seconds,
                fast_check=True, min_time_limit=4.0)  # fmt: skip
            assert (status == "pass") == row[f"{part}_passed"], (row["task_id"], row["sample"], part, status)
    assert {row["sample"] for row in results if row["passed"]} >= {0}
    assert not all(row["passed"] for row in results)
