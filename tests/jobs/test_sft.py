import csv
import json
import shutil
from pathlib import Path

import pytest

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import sha256, write_jsonl
from tests import program
from tests import toy as models

SMALL = [
    "sft.engine=transformers",
    "sft.optimizer=adamw_torch",
    "sft.epochs=2",
    "sft.learning_rate=0.01",
    "checkpoints.every=2",
    "checkpoints.keep=2",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    models.make_model(folder / "models/base")
    rows = [
        {"prompt": f"def f{i}(x):\n", "answer": answer_format.render(f"add {i}", f"def f{i}(x): return x + {i}")}
        for i in range(8)
    ]
    write_jsonl(folder / "examples.jsonl", rows)
    return folder


def sft(world, out):
    out.mkdir(exist_ok=True)
    inputs = ("--base", world / "models/base", "--examples", world / "examples.jsonl")
    return program.run(out, "sft", *inputs, settings=SMALL, check=True)


def test_the_loss_falls_and_two_runs_give_the_same_bytes(world, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    done = sft(world, first)
    assert r'learns "<START_WORKING_OUT>\nadd 0\n' in done.stderr, "what the loss is on is in the log"
    result = json.loads(done.stdout)
    assert result["last_loss"] < 0.8 * result["first_loss"]
    sft(world, second)
    for name in ("models/adapters/sft", "plots/sft.csv", "metrics/sft.json"):
        assert sha256(first / name) == sha256(second / name), name
    config = json.loads((first / "models/adapters/sft/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (
        32,
        16,
        sorted(models.TARGETS),
    )


def test_the_loss_of_examples_set_aside_is_measured_after_every_epoch(world, tmp_path):
    settings = (*SMALL, "sft.validation=2", "sft.group_by_length=true", "checkpoints.every=1")
    inputs = ("--base", world / "models/base", "--examples", world / "examples.jsonl")
    result = json.loads(program.run(tmp_path, "sft", *inputs, settings=settings, check=True).stdout)
    assert (result["examples"], result["steps"], result["validation"]["examples"]) == (6, 6, 2)
    with open(tmp_path / "plots/sft.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["validation_loss"]) for row in rows] == [False, False, True, False, False, True]
    assert result["validation"]["loss_after_epoch_2"] == float(rows[-1]["validation_loss"])
    assert result["validation"]["loss_after_epoch_2"] < result["validation"]["loss_after_epoch_1"]

    # Resumed in the second epoch, whose batches are grouped anew.
    names = ("models/adapters/sft", "plots/sft.csv", "metrics/sft.json")
    before = [sha256(tmp_path / name) for name in names]
    (checkpoints,) = (p for p in (tmp_path / ".checkpoints/sft").iterdir() if p.is_dir())
    shutil.rmtree(checkpoints / "checkpoint-6")
    shutil.rmtree(tmp_path / "models/adapters/sft")
    again = program.run(tmp_path, "sft", *inputs, settings=settings, check=True)
    assert "checkpoint-5" in again.stderr
    assert [sha256(tmp_path / name) for name in names] == before


def test_not_all_examples_can_be_set_aside():
    from jobs.sft import set_aside

    assert set_aside(8, 0, Path("e")) == set()
    assert len(set_aside(8, 7, Path("e"))) == 7
    with pytest.raises(UsageError, match=r"sft\.validation: 8 of the 8 examples of e"):
        set_aside(8, 8, Path("e"))


def test_the_settings_used_are_the_params(world, tmp_path):
    """What the trainer resolved is compared with params, since engines change defaults in silence."""
    sft(world, tmp_path)
    used = json.loads((tmp_path / "models/adapters/sft/trainer.json").read_text())
    expected = {
        "learning_rate": 0.01,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "weight_decay": 0.01,
        "num_train_epochs": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "seed": 3407,
        "completion_only_loss": True,
        "packing": False,
        "max_length": 2048,
    }
    assert {k: used[k] for k in expected} == expected
    assert str(tmp_path) not in json.dumps(used)


def test_labels_cover_the_answer_and_its_end_alone(world):
    from transformers import AutoTokenizer

    from jobs.sft import IGNORED, encode

    tokenizer = AutoTokenizer.from_pretrained(world / "models/base")
    row = encode({"prompt": "def f(x):\n", "answer": "<SOLUTION>"}, tokenizer, 500, "row 1")
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == "<SOLUTION>" + tokenizer.eos_token
    assert tokenizer.decode(row["input_ids"]).startswith(answer_format.chat_prompt("def f(x):"))
    with pytest.raises(JobError, match=r"row 7 has \d+ tokens; sft.max_length is 10"):
        encode({"prompt": "def f(x):\n", "answer": "x"}, tokenizer, 10, "row 7")
    for empty in ({"prompt": "x", "answer": " \n"}, {"prompt": "", "answer": "x"}):
        with pytest.raises(JobError, match=r"row 7: its (prompt|answer) is empty"):
            encode(empty, tokenizer, 500, "row 7")
    with pytest.raises(JobError, match="row 7 has no 'answer'"):
        encode({"prompt": "x"}, tokenizer, 10, "row 7")


def test_another_shape_of_adapter_is_not_continued(world, tmp_path):
    from jobs.plumbing.params import Lora
    from jobs.training.loop import check_adapter

    models.make_adapter(world / "models/base", tmp_path / "adapter", rank=8)
    with pytest.raises(JobError, match=r"adapter_config.json: rank, alpha, targets are \(8,"):
        check_adapter(tmp_path / "adapter", Lora(rank=32, alpha=16, targets=["q_proj"]))
