"""When Unsloth is let share a group's prompt, and what is refused then. The sharing itself wants a GPU."""

import os
from types import SimpleNamespace

import pytest
from trl import GRPOTrainer

from jobs.common.errors import UsageError
from jobs.grpo.job import check_batches, tell_of_prompts
from jobs.plumbing.cli import log
from jobs.plumbing.params import load
from jobs.training import shared_prompt
from tests import toy
from tests.program import ROOT

SETTINGS = [
    "grpo.engine=unsloth",
    "grpo.rollout=vllm_merged",
    "grpo.generations=4",
    "grpo.batch_size=8",
    "grpo.beta=0",
    "grpo.top_p=1",
    "sft.lora.rank=4",
]


def settings(*more: str):
    return load(ROOT / "params.yaml", [*SETTINGS, *more])


def test_it_is_off_unless_asked_for_and_then_brings_what_it_needs(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    shared_prompt.prepare()
    assert os.environ == {shared_prompt.SWITCH: "0"}
    assert not shared_prompt.wanted(settings().grpo)
    monkeypatch.setattr(os, "environ", {shared_prompt.SWITCH: "1"})
    shared_prompt.prepare()
    assert os.environ["UNSLOTH_GRPO_SEQ_PACKING"] == "1" and "UNSLOTH_GRPO_PREFIX_GROUPER_TOKR" in os.environ
    assert shared_prompt.wanted(settings().grpo)
    assert not shared_prompt.wanted(settings("grpo.engine=transformers").grpo)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("grpo.batch_size=6", "grpo.batch_size must be a multiple of grpo.generations"),
        ("grpo.beta=0.001", "grpo.beta must be 0"),
        ("grpo.entropy=0.01", "grpo.entropy must be 0"),
        ("grpo.importance_correction=true", "grpo.importance_correction must be false"),
    ],
)
def test_params_that_unsloth_would_share_no_prompt_with_are_refused(monkeypatch, change, said):
    wrong = settings(change).grpo
    check_batches(wrong, 100, ROOT / "tasks.jsonl")
    monkeypatch.setenv(shared_prompt.SWITCH, "1")
    check_batches(settings().grpo, 100, ROOT / "tasks.jsonl")
    with pytest.raises(UsageError, match=f"{said}.*{shared_prompt.SWITCH}"):
        check_batches(wrong, 100, ROOT / "tasks.jsonl")


def test_the_loss_hears_of_no_vllm_while_prompts_are_shared_and_groups_stay_whole(tmp_path, monkeypatch):
    folder = toy.make_trained(tmp_path)
    params = settings("grpo.engine=transformers", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch")
    trainer = toy.grpo_trainer(folder, tmp_path, params)
    heard, groups = [], []

    def loss(self, *_, **__):
        heard.append(self.use_vllm)
        raise ArithmeticError

    def passes(*_, group, **__):
        groups.append(group)
        return [{}] * trainer.args.steps_per_generation

    monkeypatch.setattr(GRPOTrainer, "compute_loss", loss)
    monkeypatch.setattr("jobs.grpo.trainer.batches.passes", passes)
    monkeypatch.setattr(trainer, "_generate_and_score_completions", lambda batch: batch)
    monkeypatch.setattr(trainer, "grpo", settings().grpo)
    monkeypatch.setattr(trainer, "use_vllm", True)
    trainer.model.train()
    for asked in ("0", "1"):
        monkeypatch.setenv(shared_prompt.SWITCH, asked)
        with pytest.raises(ArithmeticError):
            trainer.compute_loss(trainer.model, {"advantages": [1.0]})
        assert trainer.use_vllm
        trainer._prepare_inputs({})
        trainer._buffered_inputs = None
    assert (heard, groups) == ([True, False], [1, 4])


def test_how_long_the_passes_were_that_shared_a_prompt():
    assert shared_prompt.longest(SimpleNamespace()) == 0
    verified = {(1, (4,)): (900, 300), (2, (4, 4)): (1700, 280)}
    assert shared_prompt.longest(SimpleNamespace(_unsloth_prefix_grouper_grad_verified=verified)) == 1700


@pytest.mark.parametrize(("found", "said"), [({(1, (4,)): (900, 300)}, "up to 900 tokens"), ({}, "shared no prompt")])
def test_the_log_says_at_the_end_whether_it_was_done(monkeypatch, caplog, found, said):
    model = SimpleNamespace(_unsloth_prefix_grouper_grad_verified=found)
    trainer = SimpleNamespace(model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model))
    caplog.set_level("INFO")
    monkeypatch.setattr(log, "propagate", True)
    tell_of_prompts(settings(), trainer)
    assert not caplog.records, "nobody has asked"
    monkeypatch.setenv(shared_prompt.SWITCH, "1")
    tell_of_prompts(settings(), trainer)
    assert said in caplog.text
