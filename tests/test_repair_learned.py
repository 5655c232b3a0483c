"""The toy with two turns: a second try mends answers that failed, and the reward of what is answered last rises."""

import csv
import json
import random
from pathlib import Path

import pytest

from jobs.common import answer_format, feedback
from jobs.common.files import write_jsonl
from jobs.toy import pretrain, world
from tests import program, toy
from tests.program import ROOT
from tests.test_smoke import SMOKE, smoke  # noqa: F401

pytestmark = pytest.mark.smoke
COUNTS = {"distill": 130, "train": 200, "heldout": 100}  # as the smoke run's, whose base has seen none of them
SETTINGS = (
    "grpo.turns=2", "grpo.steps=6", "grpo.batch_size=32", "grpo.learning_rate=6.0e-3", "grpo.schedule=constant",
    "grpo.warmup_ratio=0.0", "grpo.max_completion_length=96", "grpo.generations=8", "grpo.gradient_accumulation=1",
    "grpo.engine=transformers", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch", "grpo.temperature=1.0",
    "grpo.top_p=1.0", "grpo.weight_decay=0.0", "grpo.rewards.reasoning_characters=40", "sft.lora.rank=32",
    "sft.lora.alpha=32", "sft.lora.targets=[q_proj, k_proj, v_proj, o_proj]",
)  # fmt: skip


def conversations(reserved: set, rng: random.Random, steps: int, size: int) -> list[list[str]]:
    """Batches of answers, half of them second ones, after one that forgot the sign. A third forgets it anyway."""
    batches = []
    for _ in range(steps):
        batch = []
        for number in range(size):
            drawn, _ = world.instance([False] * world.LENGTH, reserved, rng)
            last = world.answer_of(drawn, world.SIGNED if number % 3 == 0 else world.UNSIGNED)
            asked = answer_format.chat_prompt(world.prompt_of(drawn))
            if number < size // 2:
                task = {"entry_point": world.ENTRY_POINT, "tests": [f"assert solve({-rng.randrange(1, 50)}) == 0"]}
                said = feedback.turn(task, answered=True, status="failed", error="test 1: a wrong answer")
                asked += f"{world.answer_of(drawn, world.SIGNED)}{pretrain.END}{said}"
            batch.append(asked + last)
        batches.append(batch)
    return batches


def taught(base: Path, out: Path, reserved: set) -> Path:
    """The smoke run's base after 80 steps on such conversations: its first answers and its second ones forget the sign."""
    from jobs.plumbing.params import merged, read_yaml, validate

    values = merged(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "data/smoke/params.yaml"))
    settings = validate(values, "params").base.toy.model_copy(update={"steps": 80})
    tokenizer, model = pretrain.begun(base)
    model = pretrain.train(tokenizer, conversations(reserved, random.Random(5), 80, 6), settings, model)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def learned(base: Path, folder: Path) -> list[dict]:
    """The curve of six steps with two turns."""
    splits = world.splits(3407, COUNTS)
    taught(base, folder / "base", {drawn for split in splits.values() for drawn in split})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    toy.make_adapter(folder / "base", folder / "sft", rank=32, lora_alpha=32, target_modules=targets)
    write_jsonl(folder / "train.jsonl", world.tasks(3407, COUNTS)["train"][:64])
    words = ("--base", folder / "base", "--adapter", folder / "sft", "--tasks", folder / "train.jsonl")
    program.run(folder, "grpo", *words, settings=SETTINGS, check=True)
    with open(folder / "plots/grpo.csv") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def held(rows: list[dict]) -> None:
    """A second try mends some of what failed, from the first step on, and the reward of the last answer rises."""
    assert all(row["all_tests_passed"] >= row["first_turn_passed"] for row in rows)
    first, last = rows[:2], rows[-2:]
    assert sum(row["all_tests_passed"] - row["first_turn_passed"] for row in first) / 2 > 0.1, json.dumps(rows)
    for name in ("reward", "all_tests_passed"):
        assert sum(row[name] for row in last) > sum(row[name] for row in first), json.dumps(rows)


def test_a_second_try_mends_and_the_reward_rises(smoke, tmp_path):  # noqa: F811
    held(learned(SMOKE / "models/base", tmp_path))
