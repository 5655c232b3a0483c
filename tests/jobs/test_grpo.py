import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.common.errors import UsageError
from jobs.common.files import read_jsonl, sha256, write_jsonl
from jobs.grpo.job import check_batches
from jobs.plumbing.params import load
from jobs.toy import world as toy
from tests import program
from tests import toy as models
from tests.program import ROOT

SMALL = [
    "grpo.engine=transformers",
    "grpo.rollout=transformers",
    "grpo.optimizer=adamw_torch",
    "grpo.steps=4",
    "grpo.generations=4",
    "grpo.batch_size=8",
    "grpo.gradient_accumulation=1",
    "grpo.max_completion_length=24",
    "grpo.learning_rate=0.01",
    "grpo.log_completions_every=2",
    "checkpoints.every=2",
    "sft.lora.rank=8",
    "sft.lora.alpha=16",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    models.make_model(folder / "models/base")
    models.make_adapter(folder / "models/base", folder / "models/adapters/sft", rank=8)
    write_jsonl(folder / "data/tasks/train.jsonl", toy.tasks(1, {"train": 6})["train"])
    return folder


def grpo(world, out, *settings, apart=False):
    out.mkdir(exist_ok=True)
    inputs = ("--base", world / "models/base", "--adapter", world / "models/adapters/sft")
    tasks = ("--tasks", world / "data/tasks/train.jsonl")
    return program.run(out, "grpo", *inputs, *tasks, settings=(*SMALL, *settings), check=True, apart=apart)


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("done")
    grpo(world, out)
    return out


OUTS = ("models/adapters/grpo", "plots/grpo.csv", "metrics/grpo.json", "data/grpo/completions.jsonl")


def test_the_files_are_written_and_the_settings_used_are_the_params(done):
    used = json.loads((done / "models/adapters/grpo/trainer.json").read_text())
    params = load(ROOT / "params.yaml", SMALL).grpo
    expected = {
        "loss_type": params.loss,
        "beta": params.beta,
        "epsilon": params.clip_low,
        "epsilon_high": params.clip_high,
        "scale_rewards": params.scale_rewards,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "num_generations": 4,
        "max_steps": 4,
        "max_completion_length": 24,
        "learning_rate": 0.01,
        "top_k": 0,
        "num_iterations": 1,
        "mask_truncated_completions": params.mask_truncated,
        "weight_decay": params.weight_decay,
        "vllm_importance_sampling_correction": params.importance_correction,
        "reward_weights": [0.1, 0.2, 1.0],
    }
    assert {k: used[k] for k in expected} == expected
    rows = read_jsonl(done / "data/grpo/completions.jsonl")
    assert [row["step"] for row in rows] == [2] * 8 + [4] * 8
    assert {"task_id", "completion", "status", "format", "reasoning", "correctness", "advantage"} <= set(rows[0])
    with open(done / "plots/grpo.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert json.loads((done / "reports/provenance/grpo.json").read_text())["seconds_by_phase"]["rollout"] > 0


def test_a_resumed_run_ends_with_the_bytes_of_an_unbroken_one(world, done, tmp_path):
    """transformers' own loading would drop the trained adapter here and keep the SFT weights."""
    grpo(world, tmp_path)
    (checkpoints,) = (p for p in (tmp_path / ".checkpoints/grpo").iterdir() if p.is_dir())
    for name in OUTS[1:]:
        (tmp_path / name).unlink()
    import shutil

    shutil.rmtree(tmp_path / "models/adapters/grpo")
    shutil.rmtree(checkpoints / "checkpoint-4")
    again = grpo(world, tmp_path, apart=True)
    assert "resuming from" in again.stderr and "checkpoint-2" in again.stderr
    for name in OUTS:
        assert sha256(tmp_path / name) == sha256(done / name), name


@pytest.mark.parametrize(
    ("steps", "every", "iterations", "logged"),
    [(3, 10, 1, [3]), (3, 2, 1, [2]), (4, 3, 2, [3]), (3, 10, 3, [1]), (2, 1, 1, [1, 2]), (2, 0, 1, [])],
)
def test_every_nth_step_is_logged_and_of_a_shorter_run_the_last(world, tmp_path, steps, every, iterations, logged):
    """With several iterations a batch is logged if one of its steps is due, under the step that drew it."""
    of_the_run = f"grpo.steps={steps}", f"grpo.log_completions_every={every}", f"grpo.iterations={iterations}"
    grpo(world, tmp_path, *of_the_run)
    rows = read_jsonl(tmp_path / "data/grpo/completions.jsonl")
    assert [row["step"] for row in rows] == [step for step in logged for _ in range(8)]


def test_a_short_run_that_is_resumed_logs_its_last_step_too(world, tmp_path):
    short = "grpo.log_completions_every=10"
    grpo(world, tmp_path, short)
    (checkpoints,) = (p for p in (tmp_path / ".checkpoints/grpo").iterdir() if p.is_dir())
    before = (tmp_path / "data/grpo/completions.jsonl").read_bytes()
    assert {row["step"] for row in read_jsonl(tmp_path / "data/grpo/completions.jsonl")} == {4}
    shutil.rmtree(checkpoints / "checkpoint-4")
    (tmp_path / "data/grpo/completions.jsonl").unlink()
    assert "checkpoint-2" in grpo(world, tmp_path, short, apart=True).stderr
    assert (tmp_path / "data/grpo/completions.jsonl").read_bytes() == before


def test_the_adapter_was_trained(world, done):
    before = world / "models/adapters/sft/adapter_model.safetensors"
    after = done / "models/adapters/grpo/adapter_model.safetensors"
    assert sha256(before) != sha256(after)


def refused(world, folder, tasks, *settings):
    """A run that is to end before the model is loaded: there is no model to load, only its tokenizer."""
    base = folder / "base"
    base.mkdir()
    for path in (world / "models/base").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, base)
    write_jsonl(folder / "tasks.jsonl", tasks)
    words = ("--base", base, "--adapter", world / "models/adapters/sft", "--tasks", folder / "tasks.jsonl")
    done = program.run(folder, "grpo", *words, settings=(*SMALL, *settings))
    assert done.returncode in (1, 2), done.stderr
    return done.stderr


def test_a_prompt_that_is_too_long_ends_the_run_before_the_model_is_loaded(world, tmp_path):
    tasks = toy.tasks(1, {"train": 6})["train"]
    tasks[3]["prompt"] += "word " * 2000
    said = refused(world, tmp_path, tasks, "grpo.steps=1")  # which, with its warm-up, would be refused as well
    assert f"tasks.jsonl: {tasks[3]['task_id']} has " in said
    assert "grpo.max_prompt_length is 512" in said


def test_a_run_that_cannot_learn_ends_before_the_model_is_loaded(world, tmp_path):
    said = refused(world, tmp_path, toy.tasks(1, {"train": 6})["train"], "grpo.steps=1")
    assert "grpo.warmup_ratio: the only step of this run would have learning rate 0" in said


def test_tasks_that_cannot_be_told_apart_or_judged_are_refused(world, tmp_path):
    tasks = toy.tasks(1, {"train": 6})["train"]
    (tmp_path / "twice").mkdir()
    assert f"is a second {tasks[2]['task_id']}, after line 3" in refused(world, tmp_path / "twice", [*tasks, tasks[2]])
    (tmp_path / "open").mkdir()
    tasks[4]["tests"] = [tasks[4]["tests"][0].removeprefix("assert ")]
    assert "line 5" in (said := refused(world, tmp_path / "open", tasks))
    assert "asserts nothing" in said


@pytest.mark.parametrize("groups", ["drop", "refill"])
def test_groups_without_a_signal(world, tmp_path, groups):
    """A random model earns nothing, so every group is equal: the loss must be zero, not NaN."""
    grpo(world, tmp_path, f"grpo.equal_groups={groups}", "grpo.steps=1", "grpo.warmup_ratio=0", "grpo.beta=0.0")
    with open(tmp_path / "plots/grpo.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["equal_groups"]) == 1.0
    assert float(row["loss"]) == 0.0


def test_a_run_without_any_signal_says_so_and_patience_ends_it(world, tmp_path):
    done = grpo(world, tmp_path, "grpo.steps=3")
    assert "in 3 of 3 steps no group had a signal" in done.stderr
    assert json.loads((tmp_path / "metrics/grpo.json").read_text())["steps_without_signal"] == 3
    with pytest.raises(subprocess.CalledProcessError) as caught:
        grpo(world, tmp_path, "grpo.patience=2")
    assert "step 2: 2 steps in a row without a signal (grpo.patience)" in caught.value.stderr
    assert caught.value.returncode == 1


def test_a_single_step_that_learns_nothing_is_refused_before_anything_is_loaded(world, tmp_path):
    tasks = toy.tasks(1, {"train": 6})["train"]
    assert "grpo.warmup_ratio: the only step" in refused(world, tmp_path, tasks, "grpo.steps=1")


def test_steps_in_a_row_are_counted_from_the_end():
    from jobs.grpo.trainer import trailing_zeros

    assert [trailing_zeros(v) for v in ([], [0.0], [0.5, 0, 0], [0, 0.1], [0, 0])] == [0, 1, 2, 0, 2]


def test_exchanged_groups_carry_every_tensor_along():
    import torch

    from jobs.grpo.trainer import exchanged, live_groups

    output = {
        "prompt_ids": torch.tensor([[1, 1]] * 4),
        "completion_ids": torch.tensor([[5, 6, 7]] * 4),
        "completion_mask": torch.ones(4, 3, dtype=torch.long),
        "advantages": torch.tensor([0.0, 0, 1, -1]),
        "num_items_in_batch": torch.tensor(12),
    }
    extra = {
        "prompt_ids": torch.tensor([[2, 2, 2]] * 2),
        "completion_ids": torch.tensor([[8], [9]]),
        "completion_mask": torch.ones(2, 1, dtype=torch.long),
        "advantages": torch.tensor([0.5, -0.5]),
        "num_items_in_batch": torch.tensor(2),
    }
    assert live_groups(output, 2).tolist() == [False, True]
    result = exchanged(output, extra, [(0, 0)], 2, pad_token_id=0)
    assert result["prompt_ids"].tolist() == [[2, 2, 2], [2, 2, 2], [0, 1, 1], [0, 1, 1]]
    assert result["completion_ids"].tolist() == [[8, 0, 0], [9, 0, 0], [5, 6, 7], [5, 6, 7]]
    assert result["completion_mask"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert result["advantages"].tolist() == [0.5, -0.5, 1, -1]
    assert output["advantages"].tolist() == [0, 0, 1, -1], "the original is left alone"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["grpo.batch_size=10"],
            r"grpo.batch_size x grpo.gradient_accumulation is 10, not a multiple of grpo.generations \(4\)",
        ),
        (["grpo.batch_size=64"], "has 6 tasks, a step needs 16"),
        (["grpo.rollout=vllm", "grpo.importance_correction=true"], "grpo.top_p must be 1"),
        (["grpo.engine=unsloth"], "grpo.rollout must be vllm"),
    ],
)
def test_shapes_that_an_engine_would_change_in_silence_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        check_batches(load(ROOT / "params.yaml", [*SMALL, *settings]).grpo, 6, Path("train.jsonl"))


MIXED = (
    "grpo.mix={few: 3, many: 1}", "grpo.generations=2", "grpo.batch_size=4", "grpo.gradient_accumulation=2",
    "grpo.log_completions_every=1", "grpo.equal_groups=keep", "grpo.steps=4", "checkpoints.every=3",
)  # fmt: skip


def groups_of(out, tasks):
    """By step, the source of each group of two that was trained on."""
    source = {row["task_id"]: row["source"] for row in read_jsonl(tasks)}
    rows = read_jsonl(out / "data/grpo/completions.jsonl")
    return {step: [source[row["task_id"]] for row in rows if row["step"] == step][::2] for step in (1, 2, 3, 4)}


def test_a_mix_is_what_is_trained_on_and_a_resumed_run_takes_the_same(world, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    rows = read_jsonl(world / "data/tasks/train.jsonl")
    write_jsonl(mixed, [row | {"source": "few" if i < 3 else "many"} for i, row in enumerate(rows)])
    inputs = ("--base", world / "models/base", "--adapter", world / "models/adapters/sft", "--tasks", mixed)

    def run(apart=False):
        return program.run(tmp_path, "grpo", *inputs, settings=(*SMALL, *MIXED), check=True, apart=apart)

    run()
    found = groups_of(tmp_path, mixed)
    assert all(sorted(groups) == ["few"] * 3 + ["many"] for groups in found.values()), found
    metrics = json.loads((tmp_path / "metrics/grpo.json").read_text())
    assert metrics["mix"] == {"few": {"tasks": 3, "groups": 12}, "many": {"tasks": 3, "groups": 4}}
    before = sha256(tmp_path / "models/adapters/grpo"), sha256(tmp_path / "data/grpo/completions.jsonl")
    (checkpoints,) = (p for p in (tmp_path / ".checkpoints/grpo").iterdir() if p.is_dir())
    shutil.rmtree(tmp_path / "models/adapters/grpo")
    shutil.rmtree(checkpoints / "checkpoint-4")
    assert "checkpoint-3" in run(apart=True).stderr
    assert before == (sha256(tmp_path / "models/adapters/grpo"), sha256(tmp_path / "data/grpo/completions.jsonl"))
