"""Validation while training: what is measured, which adapter is kept, when a run ends, and that it can be resumed."""

import csv
import json
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, sha256
from jobs.grpo import rollout
from jobs.grpo.job import held_out
from jobs.grpo.validation import GREEDY, SAMPLED, Validation
from jobs.plumbing.params import load
from jobs.sandbox import Verdict
from tests import program
from tests import toy as models
from tests.jobs.test_grpo import SMALL
from tests.program import ROOT

EVERY = ["grpo.validate_every=2", "grpo.validate_samples=2"]
OUTS = ("models/adapters/grpo", "plots/grpo.csv", "metrics/grpo.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    models.make_world(folder)
    return folder


def grpo(world, out, *settings, apart=False):
    words = ("--base", world / "base", "--adapter", world / "sft", "--tasks", world / "train.jsonl")
    words += ("--validation", world / "validation.jsonl")
    return program.run(out, "grpo", *words, settings=(*SMALL, *EVERY, *settings), check=True, apart=apart)


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    grpo(world, out)
    return out


def test_the_rates_are_columns_of_the_curve_where_they_were_measured(done):
    with open(done / "plots/grpo.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("validation_greedy", "validation_sampled"):
        assert [row[name] for row in rows] == ["", "0.0", "", "0.0"], "a random model solves nothing"
    found = json.loads((done / "metrics/grpo.json").read_text())["validation"]
    assert found["tasks"] == 3
    assert found["before"] == found["best"] == {"step": 0, "greedy": 0, "sampled": 0}, "a tie is no improvement"
    assert found["last"]["step"] == 4


def test_the_best_adapter_lies_beside_the_last_one(world, done):
    last = done / "models/adapters/grpo"
    assert sha256(last / "best/adapter_model.safetensors") == sha256(world / "sft/adapter_model.safetensors")
    assert sha256(last / "adapter_model.safetensors") != sha256(world / "sft/adapter_model.safetensors")


def test_keep_best_makes_it_the_result_and_what_is_measured_changes_no_training(world, done, tmp_path):
    grpo(world, tmp_path, "grpo.keep=best", "grpo.validate_every=4")
    out, before = tmp_path / "models/adapters/grpo", done / "models/adapters/grpo"
    assert sha256(out / "adapter_model.safetensors") == sha256(world / "sft/adapter_model.safetensors")
    assert sha256(out / "last/adapter_model.safetensors") == sha256(before / "adapter_model.safetensors")


def test_a_resumed_run_ends_as_an_unbroken_one(world, done, tmp_path):
    grpo(world, tmp_path)
    (checkpoints,) = (p for p in (tmp_path / ".checkpoints/grpo").iterdir() if p.is_dir())
    for name in OUTS:
        shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    shutil.rmtree(checkpoints / "checkpoint-4")
    assert "resuming from" in grpo(world, tmp_path, apart=True).stderr
    assert [sha256(tmp_path / name) for name in OUTS] == [sha256(done / name) for name in OUTS]


def test_a_run_that_gets_no_better_ends_early(world, tmp_path):
    said = grpo(world, tmp_path, "grpo.validate_every=1", "grpo.validate_patience=2").stderr
    assert "stopped at step 2: none of 2 validations was better" in said
    assert json.loads((tmp_path / "metrics/grpo.json").read_text())["steps"] == 2


class Trainer:
    """Answers as a list of rates says: the n-th measurement has that share of right answers."""

    def __init__(self, folder: Path, rates: list[float], *settings: str) -> None:
        self.grpo = load(ROOT / "params.yaml", ["grpo.validate_every=1", *settings]).grpo
        self.directory, self.rates, self.model = folder, list(rates), None
        self._metrics = {"train": {GREEDY: [], SAMPLED: []}}
        self.scorer = SimpleNamespace(sandbox=self)
        self.calls = []

    def answers(self, prompts, count, temperature):
        self.calls.append((count, temperature))
        right = round(self.rates[0] * len(prompts) * count)
        if temperature or not self.grpo.validate_samples:
            self.rates.pop(0)
        flat = [answer_format.render("r", "good" if i < right else "bad") for i in range(len(prompts) * count)]
        return [flat[i * count : (i + 1) * count] for i in range(len(prompts))]

    def submit(self, task, code):
        future = Future()
        status = {"good": "passed", "bad": "failed"}.get(code, code)
        future.set_result(Verdict(status, int(status == "passed"), 1))
        return future

    def timed(self, phase, function):
        return function()


def steps(validation, trainer, count, every_checkpoint=()):
    """Goes through the callbacks of `count` steps as transformers calls them; where it stopped."""
    state = SimpleNamespace(global_step=0, max_steps=count, log_history=[])
    control = SimpleNamespace(should_training_stop=False)
    validation.on_train_begin(None, state, control)
    for step in range(1, count + 1):
        validation.on_step_begin(None, state, control)
        state.global_step = step
        validation.on_step_end(None, state, control)
        measured = {name: values.pop() for name, values in trainer._metrics["train"].items() if values}
        state.log_history.append({"step": step, "loss": 0.0, **measured})
        if step in every_checkpoint:
            (trainer.directory / f"checkpoint-{step}").mkdir()
            (trainer.directory / f"checkpoint-{step}/MANIFEST.json").touch()
        if control.should_training_stop:
            break
    return state


TASKS = [{"task_id": f"t/{i}", "prompt": "p", "entry_point": "f"} for i in range(10)]


@pytest.fixture
def saved(monkeypatch):
    monkeypatch.setattr("jobs.grpo.validation.save_adapter", lambda model, base, path: (path / "adapter").touch())


def test_the_first_of_the_best_is_kept_and_earlier_ones_go_with_the_next_checkpoint(saved, tmp_path):
    trainer = Trainer(tmp_path, [0.2, 0.1, 0.3, 0.5, 0.5, 0.4])
    validation = Validation(trainer, TASKS, Path("base"))
    state = steps(validation, trainer, 5, every_checkpoint=(4,))
    assert validation.best(state.log_history) == (3, 0.5)
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-000003"]
    assert validation.summary(state.log_history)["last"] == {"step": 5, "greedy": 0.4, "sampled": 0.4}
    assert trainer.calls[:2] == [(1, 0.0), (4, trainer.grpo.temperature)]


def test_without_a_checkpoint_no_best_adapter_goes(saved, tmp_path):
    trainer = Trainer(tmp_path, [0.0, 0.1, 0.2, 0.3])
    steps(Validation(trainer, TASKS, Path("base")), trainer, 3)
    assert sorted(path.name for path in tmp_path.glob("best-*")) == ["best-000001", "best-000002", "best-000003"]


def test_patience_counts_validations_since_the_best(saved, tmp_path):
    trainer = Trainer(tmp_path, [0.2, 0.1, 0.3, 0.2, 0.3, 0.4, 0.9], "grpo.validate_patience=2")
    state = steps(Validation(trainer, TASKS, Path("base")), trainer, 6)
    assert state.global_step == 4, "one without after step 0, then a better one, then two without"


def test_greedy_alone_decides_where_nothing_is_sampled(saved, tmp_path):
    trainer = Trainer(tmp_path, [0.2, 0.6], "grpo.validate_samples=0")
    validation = Validation(trainer, TASKS, Path("base"))
    state = steps(validation, trainer, 1)
    assert validation.best(state.log_history) == (1, 0.6)
    assert validation.summary(state.log_history)["best"] == {"step": 1, "greedy": 0.6}


def test_a_broken_sandbox_is_no_failure_of_the_model(saved, tmp_path):
    trainer = Trainer(tmp_path, [0.0])
    trainer.answers = lambda prompts, n, t: [[answer_format.render("r", "infrastructure_error")] * n for _ in prompts]
    with pytest.raises(JobError, match="the sandbox failed for 10 of 10"):
        Validation(trainer, TASKS, Path("base")).measure()


def test_what_cannot_be_measured_by_is_refused(world, tmp_path):
    settings = load(ROOT / "params.yaml", ["grpo.validate_every=5"]).grpo
    training = read_jsonl(world / "train.jsonl")
    with pytest.raises(UsageError, match=r"no file holds no tasks.*grade\.validation"):
        held_out(settings, None, training)
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(UsageError, match=r"none\.jsonl holds no tasks"):
        held_out(settings, tmp_path / "none.jsonl", training)
    with pytest.raises(UsageError, match="which is trained on"):
        held_out(settings, world / "train.jsonl", training)
    assert held_out(load(ROOT / "params.yaml").grpo, None, training) == []
    with pytest.raises(UsageError, match=r"keep is best.*validate_every"):
        load(ROOT / "params.yaml", ["grpo.keep=best"])


def test_vllm_is_asked_for_the_present_adapter(monkeypatch, tmp_path):
    """By stand-ins: TRL's generation as Unsloth has patched it, and vLLM."""
    package = ModuleType("vllm")
    package.SamplingParams, package.TokensPrompt = (lambda **fields: SimpleNamespace(**fields) for _ in range(2))
    monkeypatch.setitem(sys.modules, "vllm", package)
    asked = []

    def generate(requests, sampling, lora_request, use_tqdm):
        asked.append(([r.prompt_token_ids for r in requests], sampling, lora_request))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(1, 2))] * sampling.n) for _ in requests]

    generation = SimpleNamespace(
        llm=SimpleNamespace(generate=generate), _unsloth_load_lora=lambda folder, load_tensors: ("lora", folder)
    )
    settings = load(ROOT / "params.yaml", ["grpo.top_p=0.9"]).grpo
    for n, temperature in ((1, 0.0), (3, 0.8)):
        found = rollout.answers(generation, [[5], [6, 7]], n, temperature, settings, 11, tmp_path)
        assert found == [[[1, 2]] * n] * 2
    (prompts, greedy, lora), (_, sampled, _) = asked
    assert (prompts, lora) == ([[5], [6, 7]], ("lora", str(tmp_path)))
    # Without a seed vLLM would take one from numpy's generator, which training's own requests take theirs from.
    assert (greedy.n, greedy.temperature, greedy.top_p, greedy.seed) == (1, 0, 1.0, 11)
    assert (sampled.n, sampled.temperature, sampled.top_p, sampled.seed) == (3, 0.8, 0.9, 11)


@pytest.mark.parametrize("every", [0, 4])
def test_the_tasks_to_measure_by_are_those_that_grade_set_aside(tmp_path, monkeypatch, every):
    """As its other inputs are the pipeline's own where none is named."""
    from click.testing import CliRunner

    from jobs.grpo import job

    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "run", lambda params, **paths: seen.append(paths["validation"]))
    for name in ("base", "sft", "tasks.jsonl", "mine.jsonl"):
        (tmp_path / name).touch()
    words = ["--params", str(ROOT / "params.yaml"), "--set", f"grpo.validate_every={every}"]
    words += ["--base", "base", "--adapter", "sft", "--tasks", "tasks.jsonl"]
    for more in ([], ["--validation", "mine.jsonl"]):
        assert not CliRunner().invoke(job.command, [*words, *more], catch_exceptions=False).exit_code
    assert seen == [Path("data/validation.jsonl") if every else None, Path("mine.jsonl")]
    with pytest.raises(UsageError, match=r"--validation: data/validation\.jsonl holds no tasks to measure by"):
        held_out(load(ROOT / "params.yaml", ["grpo.validate_every=4"]).grpo, Path("data/validation.jsonl"), [])
