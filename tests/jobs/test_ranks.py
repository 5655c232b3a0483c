"""SFT and GRPO on several ranks: what they agree on, that they end as one process would, and that none is left waiting."""

import csv
import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest

from jobs.common import answer_format
from jobs.common.files import read_jsonl, sha256, write_jsonl
from tests import program, ranks
from tests import toy as models
from tests.jobs.test_grpo import OUTS
from tests.jobs.test_grpo import SMALL as SMALL_GRPO
from tests.jobs.test_sft import SMALL as SMALL_SFT

SMALL = [*SMALL_GRPO, "grpo.loss=dapo", "grpo.beta=0.0", "grpo.log_completions_every=1", "sandbox.workers=2"]
TWO = [*SMALL, "grpo.processes=2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    models.make_world(folder)
    examples = [
        {"prompt": f"def f{i}(x):\n", "answer": answer_format.render(f"add {i}", f"def f{i}(x): return x + {i}")}
        for i in range(7)
    ]
    write_jsonl(folder / "examples.jsonl", examples)
    return folder


def words(world: Path) -> list:
    inputs = ["--base", world / "base", "--adapter", world / "sft", "--tasks", world / "train.jsonl"]
    return [*inputs, "--validation", world / "validation.jsonl"]


def grpo(world: Path, out: Path, *settings: str, count: int = 2, **options):
    named = [*SMALL, f"grpo.processes={count}", *settings]
    return ranks.run(out, "grpo", *words(world), settings=named, ranks=count, **options)


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in OUTS}


def curve(folder: Path, job: str = "grpo") -> list[dict[str, str]]:
    with open(folder / f"plots/{job}.csv") as file:
        return list(csv.DictReader(file))


def checkpoints(folder: Path) -> Path:
    return next(path for path in (folder / ".checkpoints/grpo").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """By the command itself, which starts its ranks."""
    out = tmp_path_factory.mktemp("two")
    ended = program.run(out, "grpo", *words(world), settings=[*TWO, "grpo.steps=6"], check=True)
    assert json.loads(ended.stdout)["steps"] == 6, "one rank prints the result"
    assert "Traceback" not in ended.stderr
    return out


def die(where: str, step: int) -> None:
    """Rank 1 dies at a place in a step, as by a machine that runs out of memory."""
    from jobs.grpo.trainer import Trainer

    original = getattr(Trainer, where)

    def dying(self, *arguments):
        if os.environ["RANK"] == "1" and self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    setattr(Trainer, where, dying)


@pytest.mark.parametrize(
    ("where", "step"),
    [("_calculate_rewards", 3), ("_save_rng_state", 4)],
    ids=["between two checkpoints", "while a checkpoint is written"],
)
def test_a_run_whose_rank_was_killed_goes_on_to_the_bytes_of_an_undisturbed_one(world, done, tmp_path, where, step):
    ended = grpo(world, tmp_path, "grpo.steps=6", patch=functools.partial(die, where, step))
    assert ended[1].code == -signal.SIGKILL
    assert ended[0].code == 1, ended[0].stderr
    assert "another rank is gone" in ended[0].stderr
    assert [path.parent.name for path in checkpoints(tmp_path).glob("*/MANIFEST.json")] == ["checkpoint-2"]
    assert not (tmp_path / "models").exists()
    again = grpo(world, tmp_path, "grpo.steps=6")
    assert [rank.code for rank in again] == [0, 0], again[0].stderr
    assert "checkpoint-2" in again[0].stderr.partition("resuming from")[2]
    assert hashes(tmp_path) == hashes(done)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    (ended,) = grpo(world, out, "grpo.steps=6", count=1)
    assert ended.code == 0, ended.stderr
    return out


def test_one_and_two_ranks_see_the_same_tasks_at_each_step_and_begin_with_the_same_answers(alone, done):
    one, two = (read_jsonl(folder / "data/grpo/completions.jsonl") for folder in (alone, done))
    assert len(one) == 6 * 8
    assert [(row["step"], row["task_id"]) for row in one] == [(row["step"], row["task_id"]) for row in two]
    assert [row["completion"] for row in one[:8]] == [row["completion"] for row in two[:8]]
    assert json.loads((done / "reports/provenance/grpo.json").read_text())["processes"] == 2


def given_answers() -> None:
    """Every second task's answers earn alike; the others' by their number. The first step's gradient is kept."""
    import torch
    from transformers import TrainerCallback

    from jobs.grpo.trainer import Trainer

    def sampled(self, prompt_ids, judge):
        found = []
        for i, task_id in enumerate(self.task_ids):
            lively = int(task_id.rpartition("/")[2]) % 2
            text = answer_format.render("x" * (60 * (i % 4) * lively + 7), f"def f(): return {i % 4}")
            found.append(self.processing_class(text)["input_ids"][: self.grpo.max_completion_length - i % 3])
        return found

    class Gradient(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            if not state.global_step:
                kept = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
                torch.save(kept, f"gradient-{os.environ.get('RANK', '0')}.pt")

    original = Trainer.__init__

    def begin(self, **options):
        original(self, **options)
        self.add_callback(Gradient())

    Trainer.sampled, Trainer.__init__ = sampled, begin


LONG = ["grpo.max_completion_length=220", "grpo.batch_size=4", "grpo.gradient_accumulation=4"]


def test_the_gradient_of_given_answers_is_that_of_one_process(world, tmp_path):
    """With groups of no signal, by which the ranks have unequally many rows to train on."""
    import torch

    settings = (*LONG, "grpo.steps=2", "grpo.max_grad_norm=0.0")
    for count in (1, 2):
        ended = grpo(world, tmp_path / str(count), *settings, count=count, patch=given_answers)
        assert [rank.code for rank in ended] == [0] * count, ended[0].stderr
    one, first, second = (
        torch.load(tmp_path / name) for name in ("1/gradient-0.pt", "2/gradient-0.pt", "2/gradient-1.pt")
    )
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    assert largest > 1e-3
    for name, gradient in one.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(gradient, first[name], rtol=0, atol=1e-6 * largest), name
    alike = [name for name in curve(tmp_path / "1")[0] if name not in ("entropy", "grad_norm", "loss")]
    for before, after in zip(curve(tmp_path / "1"), curve(tmp_path / "2"), strict=True):
        assert {name: before[name] for name in alike} == {name: after[name] for name in alike}
        assert float(before["grad_norm"]) == pytest.approx(float(after["grad_norm"]), rel=1e-4)
        assert 0 < float(before["signal"]) < 1


@pytest.mark.parametrize("groups", ["drop", "refill"])
def test_groups_without_a_signal_are_dropped_and_refilled_by_all_ranks_together(world, tmp_path, groups):
    settings = (*LONG, f"grpo.equal_groups={groups}", "grpo.steps=2")
    ended = grpo(world, tmp_path, *settings, patch=given_answers)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr
    signals = [float(row["signal"]) for row in curve(tmp_path)]
    assert all(signal == 1 for signal in signals) if groups == "refill" else all(0 < signal < 1 for signal in signals)


def validate_alike() -> None:
    from jobs.grpo.validation import Validation

    Validation.submitted = lambda self, task, text: lambda: float(int(task["task_id"].rpartition("/")[2]) % 2)


def test_validation_is_shared_and_stops_all_ranks_at_once(world, tmp_path):
    settings = ("grpo.validate_every=1", "grpo.validate_patience=2", "grpo.validate_samples=2")
    for count in (1, 2):
        ended = grpo(world, tmp_path / str(count), *settings, count=count, patch=validate_alike)
        assert [rank.code for rank in ended] == [0] * count, ended[0].stderr
        assert "stopped at step 2: none of 2 validations was better" in ended[0].stderr
    one, two = (json.loads((tmp_path / f"{n}/metrics/grpo.json").read_text())["validation"] for n in (1, 2))
    assert one == two
    assert 0 < one["last"]["greedy"] < 1


def drift(trained: bool) -> None:
    """On rank 1 a weight moves by itself: one that is trained, or one of the base."""
    from jobs.grpo.trainer import Trainer

    original = Trainer.training_step

    def step(self, *arguments, **options):
        if os.environ["RANK"] == "1":
            next(weight for weight in self.model.parameters() if weight.requires_grad == trained).data.view(-1)[0] += 1
        return original(self, *arguments, **options)

    Trainer.training_step = step


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (True, "step 2: the adapter of rank 1 is not that of rank 0"),
        (False, "step 2: the base weights changed during training (rank 1)"),
    ],
)
def test_weights_that_are_not_one_on_all_ranks_are_found_before_a_checkpoint_is_sealed(world, tmp_path, trained, said):
    ended = grpo(world, tmp_path, patch=functools.partial(drift, trained))
    assert ended[0].code == 1, ended[0].stderr
    assert said in ended[0].stderr
    assert not list(tmp_path.glob(".checkpoints/grpo/*/checkpoint-*/MANIFEST.json"))


def hang() -> None:
    from jobs.grpo.trainer import Trainer

    original = Trainer.sampled

    def sampled(self, prompt_ids, judge):
        if os.environ["RANK"] == "1" and self.state.global_step == 1:
            time.sleep(60)
        return original(self, prompt_ids, judge)

    Trainer.sampled = sampled


def test_a_rank_that_hangs_is_not_waited_for_for_ever(world, tmp_path):
    began = time.monotonic()
    ended = grpo(world, tmp_path, patch=hang, RANKS_TIMEOUT="8")
    assert ended[0].code == 1
    assert "another rank is gone, or did not answer within 8 s" in ended[0].stderr
    assert "Traceback" not in ended[0].stderr
    assert time.monotonic() - began < 40


@pytest.mark.parametrize("by_length", ["false", "true"])
def test_sft_on_two_ranks_is_sft_on_one_but_for_rounding(world, tmp_path, by_length):
    """Seven examples in batches of four: the ranks share a whole last batch, of which one example teaches nothing."""
    inputs = ("--base", world / "base", "--examples", world / "examples.jsonl")
    shape = ("sft.batch_size=2", "sft.gradient_accumulation=2", f"sft.group_by_length={by_length}")
    for count in (1, 2):
        settings = (*SMALL_SFT, *shape, "sft.validation=1", f"sft.processes={count}")
        ended = ranks.run(tmp_path / str(count), "sft", *inputs, settings=settings, ranks=count)
        assert [rank.code for rank in ended] == [0] * count, ended[0].stderr
        assert [bool(rank.stdout) for rank in ended] == [True, False][:count]
    one, two = (curve(tmp_path / str(count), "sft") for count in (1, 2))
    assert len(one) == len(two) == 4
    for before, after in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "token_accuracy"):
            assert float(before[name]) == pytest.approx(float(after[name]), rel=1e-3), (before, after)
