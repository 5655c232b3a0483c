import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import sha256, write_jsonl
from jobs.training import loop
from jobs.weights.adapter import computation
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


def sft(world, out, apart=False):
    out.mkdir(exist_ok=True)
    inputs = ("--base", world / "models/base", "--examples", world / "examples.jsonl")
    return program.run(out, "sft", *inputs, settings=SMALL, check=True, apart=apart)


def test_the_loss_falls_and_two_runs_give_the_same_bytes(world, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    done = sft(world, first)
    assert r'learns "<START_WORKING_OUT>\nadd 0\n' in done.stderr, "what the loss is on is in the log"
    result = json.loads(done.stdout)
    assert result["last_loss"] < 0.8 * result["first_loss"]
    sft(world, second, apart=True)
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
    talking = (*settings, "tracking=[wandb, trackio]")
    done = program.run(tmp_path, "sft", *inputs, settings=talking, check=True, apart=True)
    result = json.loads(done.stdout)  # alone there, whatever trackers print
    assert (result["examples"], result["steps"], result["validation"]["examples"]) == (6, 6, 2)
    name = next(tmp_path.glob(".checkpoints/sft/*/run-name")).read_text()
    [logged] = tmp_path.glob("reports/tracking/wandb/offline-run-*")
    assert logged.name.endswith(name)
    assert [file.stem for file in tmp_path.glob("reports/tracking/trackio/*.db")] == ["sft"]
    recorded = json.loads((tmp_path / "models/adapters/sft/trainer.json").read_text())
    assert not {"report_to", "project", "run_name"} & set(recorded), "no tracker bears on the adapter's files"
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
    again = program.run(tmp_path, "sft", *inputs, settings=settings, check=True, apart=True)
    assert "checkpoint-5" in again.stderr
    assert [sha256(tmp_path / name) for name in names] == before


def test_the_adapters_of_earlier_epochs_are_kept_and_are_those_of_shorter_runs(world, tmp_path):
    """With a rate that stays, the first epoch of two is a run of one."""
    inputs = ("--base", world / "models/base", "--examples", world / "examples.jsonl")
    settings = [*SMALL, "sft.schedule=constant", "sft.warmup_ratio=0", "sft.keep_epochs=true"]
    for name, epochs in (("one", 1), ("two", 2), ("three", 3)):
        (tmp_path / name).mkdir()
        program.run(tmp_path / name, "sft", *inputs, settings=(*settings, f"sft.epochs={epochs}"), check=True)
    adapter, weights = "models/adapters/sft", "adapter_model.safetensors"
    one, two, three = (sha256(tmp_path / name / adapter / weights) for name in ("one", "two", "three"))
    kept = tmp_path / "three" / adapter
    assert sorted(path.name for path in kept.glob("epoch-*")) == ["epoch-1", "epoch-2"]
    assert [sha256(kept / f"epoch-{number}" / weights) for number in (1, 2)] == [one, two]
    assert len({one, two, three}) == 3
    assert not list((tmp_path / "one" / adapter).glob("epoch-*"))
    assert (kept / "epoch-1/adapter_config.json").read_bytes() == (kept / "adapter_config.json").read_bytes()
    # Asked once more, the run is at its end at once; what it needs from the folder of its checkpoints may be gone.
    (gone,) = tmp_path.glob("three/.checkpoints/sft/*/epoch-2")
    shutil.rmtree(gone)
    again = program.run(tmp_path / "three", "sft", *inputs, settings=(*settings, "sft.epochs=3"))
    assert again.returncode == 1 and "Traceback" not in again.stderr
    assert re.search(r"epoch-2: is gone; remove .checkpoints/sft/\w+ to train anew", again.stderr)
    assert (kept / "epoch-2" / weights).is_file(), "the adapter of before stays"


def test_a_resumed_run_has_the_adapters_of_the_epochs_before_it_or_says_which_is_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "save_adapter", lambda model, base, out: (out / "weights").write_text(model))
    callback = loop.epochs_kept(Path("base"), tmp_path)
    arguments = SimpleNamespace(num_train_epochs=3.0)

    def resumed(step: int) -> list[str]:
        state = SimpleNamespace(global_step=step, max_steps=12, epoch=step / 4)
        callback.on_train_begin(arguments, state, None, model=f"of step {step}")
        return sorted(path.name for path in tmp_path.glob("epoch-*"))

    assert resumed(0) == resumed(3) == []
    assert resumed(4) == ["epoch-1"], "killed between the epoch's checkpoint and its folder"
    assert (tmp_path / "epoch-1/weights").read_text() == "of step 4"
    with pytest.raises(JobError, match=r"epoch-2: is gone; remove .* to train anew"):
        resumed(9)
    assert resumed(8) == ["epoch-1", "epoch-2"]
    assert resumed(12) == ["epoch-1", "epoch-2"], "the last epoch's adapter is the run's own"
    assert (tmp_path / "epoch-1/weights").read_text() == "of step 4", "what is there stays"


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
        "base_config": computation(world / "models/base"),
    }
    assert {k: used[k] for k in expected} == expected
    assert str(tmp_path) not in json.dumps(used)


def test_an_example_longer_than_the_model_was_made_for_is_not_trained_on(world, tmp_path):
    (tmp_path / "models").mkdir()
    short = shutil.copytree(world / "models/base", tmp_path / "models/short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    inputs = ("--base", short, "--examples", world / "examples.jsonl")
    done = program.run(tmp_path, "sft", *inputs, settings=SMALL)
    assert done.returncode == 1
    assert re.search(
        r"models/short: has 64 positions, fewer than the \d+ of row \d of .*examples\.jsonl$", done.stderr, re.M
    )


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
        check_adapter(tmp_path / "adapter", Lora(rank=32, alpha=16, targets=["q_proj"]), ["q_proj"])


def copy_with_bos(base, folder):
    """The base with a tokenizer that puts a token before every text, as Llama's and Gemma's do."""
    import shutil

    shutil.copytree(base, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, b],
        "special_tokens": special,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_what_the_tokenizer_puts_before_a_text_is_trained_with_as_it_is_sampled_with(world, tmp_path):
    from jobs.sft import encode
    from jobs.weights.tokenizer import load_tokenizer

    row = {"prompt": "def f(x):\n", "answer": "<SOLUTION>"}
    plain = load_tokenizer(world / "models/base")
    with_bos = load_tokenizer(copy_with_bos(world / "models/base", tmp_path / "bos"))
    without = encode(row, plain, 500, "row 1")["input_ids"]
    assert encode(row, with_bos, 500, "row 1")["input_ids"] == [0, *without]
    prompt = with_bos(answer_format.chat_prompt(row["prompt"])).input_ids
    assert [0, *without][: len(prompt)] == prompt


@pytest.mark.parametrize("key", ["prompt", "answer"])
def test_a_text_that_spells_a_special_token_is_trained_as_text(world, key):
    from jobs.sft import IGNORED, encode
    from jobs.weights.tokenizer import load_tokenizer, special_inside

    tokenizer = load_tokenizer(world / "models/base")
    row = {"prompt": "def f(x):\n", "answer": "<SOLUTION>\nend = 1\n</SOLUTION>"}
    row[key] += 'x = "<|endoftext|>"'
    encoded = encode(row, tokenizer, 900, "row 1")
    assert encoded["input_ids"].count(tokenizer.eos_token_id) == 1
    assert encoded["labels"][-1] == tokenizer.eos_token_id
    learned = [label for label in encoded["labels"][:-1] if label != IGNORED]
    assert tokenizer.decode(learned) == row["answer"]
    assert special_inside(tokenizer, row[key]) == ["<|endoftext|>"]


def test_padding_is_never_the_end_of_text(world):
    from jobs.weights.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(world / "models/base")  # its file says that the end of text pads
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < len(tokenizer)
    for text in ("ÿ", "naïve ÿ", "\x00\x7f", "日本"):
        assert tokenizer.pad_token_id not in tokenizer(text).input_ids


def lora(targets):
    from jobs.plumbing.params import Lora

    return Lora(rank=4, alpha=8, targets=targets)


def adapted(base, targets):
    from jobs.training.loop import load_model

    model = load_model(base, lora(targets), None, 1)
    return {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_modules() if ".lora_A.default" in name
    }


def test_all_linear_layers_but_the_head_are_trained_and_merged(world, tmp_path):
    from jobs.training.loop import load_model, save_adapter
    from jobs.weights.lora import updates_of

    base = world / "models/base"
    model = load_model(base, lora("all-linear"), None, 1)
    save_adapter(model, base, tmp_path)
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == expected
    assert len(updates_of(base, [tmp_path])) == 2 * len(expected)
    continued = load_model(base, lora("all-linear"), tmp_path, 1)
    assert len([n for n, _ in continued.named_modules() if n.endswith("lora_A")]) == 2 * len(expected)
    with pytest.raises(JobError, match="rank, alpha, targets are"):
        load_model(base, lora(["q_proj"]), tmp_path, 1)


def test_the_ends_of_an_untied_model_are_trained_and_trained_further(tmp_path):
    """PEFT would keep the base's own matrices in the adapter, and they would take the base's place."""
    from safetensors import safe_open

    from jobs.training.loop import load_model, save_adapter
    from jobs.weights.lora import updates_of

    base, ends = models.make_model(tmp_path / "base", tie=False), lora(["q_proj", "embed_tokens", "lm_head"])
    save_adapter(load_model(base, ends, None, 1), base, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= updates_of(base, [tmp_path / "adapter"]).keys()
    load_model(base, ends, tmp_path / "adapter", 1)


def test_all_linear_leaves_out_what_is_called_as_experts_are(tmp_path, caplog):
    """PEFT would take the shared expert's layers for the experts' as well, and nothing could sum what it trained."""
    import torch
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    from jobs.training.loop import load_model, save_adapter
    from jobs.weights.lora import updates_of

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    experts = {"num_experts": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    torch.manual_seed(0)
    base = tmp_path / "base"
    Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**sizes, **experts, num_attention_heads=2, num_key_value_heads=2)
    ).save_pretrained(base)
    model = load_model(base, lora("all-linear"), None, 1)
    assert "all-linear leaves out down_proj, gate_proj, up_proj" in caplog.text
    save_adapter(model, base, tmp_path / "adapter")
    assert len(updates_of(base, [tmp_path / "adapter"])) == 2 * len(["q", "k", "v", "o", "shared_expert_gate"])
    load_model(base, lora("all-linear"), tmp_path / "adapter", 1)


@pytest.mark.parametrize("family", ["Mamba", "FalconMamba"])
def test_every_layer_that_all_linear_means_is_trained(tmp_path, family):
    """Mamba takes the weight of dt_proj and passes the layer by: what is laid over it is never computed."""
    import torch
    import transformers

    from jobs.training.loop import load_model

    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    model, ids = load_model(tmp_path, lora("all-linear"), None, 1), torch.arange(8)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []
    with pytest.raises(JobError, match=r"sft\.lora\.targets: a \w+ passes dt_proj by"):
        load_model(tmp_path, lora(["x_proj", "dt_proj"]), None, 1)


@pytest.mark.parametrize("odd", ["numbered", "router", "mamba"])
def test_all_linear_leaves_out_what_peft_lays_no_adapter_over(world, caplog, odd):
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.training.loop import targets_in

    class Router(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden), hidden

    model = AutoModelForCausalLM.from_pretrained(world / "models/base")
    expected = targets_in(model, lora("all-linear"), world)
    layer = model.model.layers[0]
    if odd == "numbered":
        layer.projections = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    elif odd == "router":
        layer.router = Router(2, 2)
    else:
        layer.out_proj, model.config.model_type = torch.nn.Linear(2, 2), "mamba2"
    caplog.clear()
    assert targets_in(model, lora("all-linear"), world) == expected
    told = {"numbered": "all-linear leaves out 0", "mamba": "all-linear leaves out out_proj"}.get(odd, "")
    assert told in caplog.text


def test_all_linear_is_a_familys_own_linear_layers_too(tmp_path):
    """Falcon's have a forward pass of their own, which gives the same."""
    from transformers import FalconConfig, FalconForCausalLM

    from jobs.training.loop import load_model, save_adapter
    from jobs.weights.lora import updates_of

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    FalconForCausalLM(FalconConfig(**sizes)).save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base", lora("all-linear"), None, 1)
    save_adapter(model, tmp_path / "base", tmp_path / "adapter")
    expected = {"dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"}
    assert set(json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"]) == expected
    assert len(updates_of(tmp_path / "base", [tmp_path / "adapter"])) == 2 * len(expected)


def test_experts_are_trained_for_the_answers_alone(tmp_path):
    """No loss of their balance is added, neither where the configuration asks for it nor where TRL would."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from jobs.training.loop import load_model

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen3MoeConfig(
        **sizes,
        **experts,
        num_attention_heads=2,
        num_key_value_heads=2,
        router_aux_loss_coef=5.0,
        output_router_logits=True,
    )
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, lora(["q_proj"]), None, 1)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        given = model(input_ids=ids, labels=ids)
    plain = torch.nn.functional.cross_entropy(given.logits[0, :-1].float(), ids[0, 1:])
    assert torch.allclose(given.loss, plain, atol=1e-5)
    assert model.config.router_aux_loss_coef == 0.0, "by which TRL weighs the loss that it adds itself"


def test_targets_that_peft_takes_for_experts_are_not_trained(tmp_path):
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from jobs.training.loop import load_model

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    experts = {"num_experts": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}
    config = Qwen3MoeConfig(**sizes, **experts, num_attention_heads=2, num_key_value_heads=2)
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        JobError, match=r"sft\.lora\.targets: PEFT takes them for down_proj, gate_up_proj of .*not summed"
    ):
        load_model(tmp_path, lora(["q_proj", "gate_proj", "up_proj", "down_proj"]), None, 1)


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("init_lora_weights", "pissa"), ("fan_in_fan_out", True), ("new_key", "set")]
)
def test_what_could_not_be_summed_afterwards_is_not_trained_further(world, tmp_path, key, value):
    from jobs.training.loop import load_model

    base = world / "models/base"
    adapter = models.make_adapter(base, tmp_path / "adapter", rank=4, lora_alpha=8, target_modules=["q_proj"])
    load_model(base, lora(["q_proj"]), adapter, 1)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {key: value}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(JobError, match=key):
        load_model(base, lora(["q_proj"]), adapter, 1)


def test_targets_that_became_a_regular_expression_are_written_as_names(world, tmp_path):
    """Unsloth makes one of the names it is given, for some families; GRPO then wants the names again."""
    from jobs.training.loop import load_model, save_adapter

    base, targets = world / "models/base", ["o_proj", "q_proj"]
    model = load_model(base, lora(targets), None, 1)
    model.peft_config["default"].target_modules = r"(?:.*?self_attn.*?(?:q_proj|o_proj).*?)"
    save_adapter(model, base, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == targets
    continued = load_model(base, lora(targets), tmp_path, 1)
    assert len([n for n, _ in continued.named_modules() if n.endswith("lora_A")]) == 4


def test_a_target_that_matches_nothing_is_refused_by_name(world):
    with pytest.raises(
        JobError, match=r"sft\.lora\.targets: qkv_proj is no module of .*; its linear layers: down_proj, gate"
    ):
        adapted(world / "models/base", ["o_proj", "qkv_proj"])
    assert adapted(world / "models/base", ["o_proj"]) == {"o_proj"}


def test_a_target_that_only_some_layers_have_is_told_with_its_count(world, caplog):
    from transformers import AutoModelForCausalLM

    from jobs.training.loop import targets_in

    model = AutoModelForCausalLM.from_pretrained(world / "models/base")
    model.model.layers[1].self_attn.extra_proj = model.model.layers[1].mlp.up_proj
    with caplog.at_level("WARNING"):
        assert targets_in(model, lora(["extra_proj", "q_proj"]), world) == ["extra_proj", "q_proj"]
    assert "extra_proj is in 1 of the model's 2 layers" in caplog.text
    assert "q_proj is in" not in caplog.text


def test_a_base_with_dropout_is_trained_without(world, tmp_path, caplog):
    """Two passes in training mode give the same: GRPO's policy is the one that it sampled from."""
    import torch

    from jobs.training.loop import load_model

    base = tmp_path / "base"
    shutil.copytree(world / "models/base", base)
    config = json.loads((base / "config.json").read_text())
    ids = torch.arange(20, 60)[None]

    def passes(dropout):
        (base / "config.json").write_text(json.dumps(config | {"attention_dropout": dropout}))
        model = load_model(base, lora(["q_proj"]), None, 1).train()
        with torch.no_grad():
            return model(ids).logits, model(ids).logits

    with caplog.at_level("INFO"):
        expected, _ = passes(0.0)
        assert "dropout" not in caplog.text
        first, second = passes(0.5)
    assert torch.equal(first, second) and torch.equal(first, expected)
    assert "is trained without its dropout (attention_dropout 0.5)" in caplog.text


def test_a_capped_attention_is_computed_with_its_cap(tmp_path):
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from jobs.inference import Sampling, hf
    from jobs.training.loop import load_model
    from jobs.weights.tokenizer import load_tokenizer

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
    config = Gemma2Config(
        **sizes,
        num_attention_heads=2,
        num_key_value_heads=1,
        query_pre_attn_scalar=1,
        attn_logit_softcapping=0.5,
        initializer_range=0.3,
        eos_token_id=0,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    models.make_tokenizer(tmp_path)
    ids = torch.arange(20, 90)[None]
    capped = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    uncapped = Gemma2ForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    ours = load_model(tmp_path, lora(["q_proj"]), None, 1)
    with torch.no_grad():
        expected = capped(ids).logits
        assert not torch.allclose(uncapped(ids).logits, expected, atol=1e-3), "the cap is to change something here"
        assert torch.allclose(ours(ids).logits, expected, atol=1e-4)
    [[sampled]] = hf.load(tmp_path)(["def add(a, b):"], Sampling(max_tokens=24))
    tokenizer = load_tokenizer(tmp_path)
    prompt = tokenizer("def add(a, b):", return_tensors="pt")
    written = capped.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert sampled.text == tokenizer.decode(written, skip_special_tokens=True)
