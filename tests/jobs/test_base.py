import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from jobs import base
from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import record_of, sha256
from jobs.plumbing.params import merged, read_yaml, validate
from jobs.toy import world

ROOT = Path(__file__).parents[2]
REAL = read_yaml(ROOT / "params.yaml")
TINY = merged(
    merged(REAL, read_yaml(ROOT / "data/smoke/params.yaml")),
    {
        "base": {
            "toy": {
                "hidden_size": 64,
                "intermediate_size": 64,
                "layers": 1,
                "heads": 1,
                "kv_heads": 1,
                "steps": 12,
                "batch_size": 5,
            }
        }
    },
)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_toy_model_is_a_qwen3_that_learns_and_is_the_same_every_time(caplog):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for out in ("one", "two"):
        base.run(validate(TINY, "params"), Path(out))
    assert sha256(Path("one")) == sha256(Path("two"))
    config = json.loads(Path("one/config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    tokenizer, model = AutoTokenizer.from_pretrained("one"), AutoModelForCausalLM.from_pretrained("one")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.config.eos_token_id
    rendered = tokenizer.apply_chat_template(answer_format.messages("def f(x):"), tokenize=False)
    assert rendered == answer_format.chat_prompt("def f(x):")
    for text in ("def solve(x):\n    x = x + 12", "ünï → 🙂", answer_format.SYSTEM_PROMPT):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    program = (("add", 5), ("divide", 3), ("subtract", 9))
    ids = tokenizer(world.plain_document(program, program), return_tensors="pt").input_ids
    assert model(ids, labels=ids).loss < 6.0, "a model that learned nothing is at log(vocabulary)"


def test_a_toy_model_in_a_folder_is_trained_further_on_whole_programs():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base.run(validate(TINY, "params"), Path("first"))
    folder = {"path": "first", "sha256": sha256(Path("first"))}
    twin = merged(TINY, {"base": {"folder": folder, "toy": {"wrong": 0.0}}, "tasks": {"toy_stdin": True}})
    base.run(validate(twin, "params"), Path("second"))
    assert sha256(Path("second/tokenizer.json")) == sha256(Path("first/tokenizer.json"))
    assert json.loads(Path("second/config.json").read_text()) == json.loads(Path("first/config.json").read_text())
    program = (("add", 5), ("divide", 3), ("subtract", 9))
    tokenizer = AutoTokenizer.from_pretrained("first")
    ids = tokenizer(world.whole_document(program, program), return_tensors="pt").input_ids
    before, after = (AutoModelForCausalLM.from_pretrained(name)(ids, labels=ids).loss for name in ("first", "second"))
    assert after < before - 0.5
    with pytest.raises(UsageError, match=r"base\.folder\.sha256"):
        base.run(validate(merged(twin, {"base": {"folder": {"sha256": "0" * 64}}}), "params"), Path("third"))


def test_a_toy_base_without_toy_tasks_is_refused():
    """The corpus leaves out the tasks of every split; without them it could not."""
    with pytest.raises(JobError, match=r"base\.toy needs tasks\.toy"):
        base.run(validate(merged(TINY, {"tasks": {"toy": None}}), "params"), Path("out"))
    assert not list(Path().iterdir())


class Hub:
    """A Hub of one repository in memory, with hashes as the real one records them."""

    def __init__(self, files, lied=(), card=None):
        self.files, self.lied, self.asked, self.card = files, lied, [], card

    def model_info(self, repo, revision, files_metadata):
        assert files_metadata and len(revision) == 40
        siblings = []
        for name, data in self.files.items():
            data = b"other bytes" if name in self.lied else data
            lfs = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith(".safetensors") else None
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            siblings.append(SimpleNamespace(rfilename=name, lfs=lfs, blob_id=blob))
        return SimpleNamespace(siblings=siblings, card_data=self.card)

    def download(self, repo, name, revision, local_dir):
        self.asked.append(name)
        path = Path(local_dir) / name
        path.write_bytes(self.files[name])
        return str(path)


FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "model-00001-of-00001.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "modeling_custom.py": b"import os",
    "model.safetensors.index.json": b"{}",
    "training/args.safetensors": b"x",
}


def fetched(monkeypatch, hub):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    base.run(validate(REAL, "params"), Path("models/base"))


def test_only_safetensors_config_and_tokenizer_are_fetched(monkeypatch):
    hub = Hub(FILES)
    fetched(monkeypatch, hub)
    assert sorted(hub.asked) == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert sorted(p.name for p in Path("models/base").glob("[!.]*")) == sorted([*hub.asked, "chat_template.jinja"])


@pytest.mark.parametrize(
    ("index", "of_the_model"),
    [({}, ["model.safetensors"]), ({"x": "a.safetensors", "y": "b.safetensors"}, ["a.safetensors", "b.safetensors"])],
)
def test_what_lies_beside_the_models_own_weights_is_not_fetched(monkeypatch, index, of_the_model):
    """Mistral's repositories hold all weights a second time, under other names, and vLLM would read both."""
    files = dict.fromkeys(["consolidated.safetensors", *of_the_model], b"weights")
    if index:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    hub = Hub(
        files | {"config.json": b"{}", "LICENSE": b"may be shared", "NOTICE.txt": b"with this", "README.md": b"card"}
    )
    fetched(monkeypatch, hub)
    assert [name for name in hub.asked if name.endswith(".safetensors")] == of_the_model
    assert {"LICENSE", "NOTICE.txt"} <= set(hub.asked) and "README.md" not in hub.asked


@pytest.mark.parametrize(
    ("card", "recorded"),
    [(None, {}), ({}, {}), ({"license": "gemma"}, {"license": "gemma"}), ({"license": ["mit"]}, {})],
)
def test_the_licence_that_the_hub_names_is_recorded(monkeypatch, card, recorded):
    fetched(monkeypatch, Hub(FILES, card=card))
    source = record_of(Path("models/base"))["source"]
    assert {key: value for key, value in source.items() if key not in ("repo", "revision")} == recorded


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00001.safetensors"])
def test_a_file_that_differs_from_the_hubs_record_is_named_and_nothing_is_kept(monkeypatch, name):
    with pytest.raises(JobError, match=f"{name}: its hash is .*, the Hub records"):
        fetched(monkeypatch, Hub(FILES, lied=[name]))
    assert not list(Path("models").iterdir())


def test_a_repository_without_safetensors_is_refused(monkeypatch):
    hub = Hub({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(JobError, match="no safetensors"):
        fetched(monkeypatch, hub)
    assert hub.asked == []


@pytest.mark.parametrize("error", [OSError("no route"), httpx.ConnectError("no\nroute")])
def test_an_unreachable_hub_is_one_clear_error(monkeypatch, error):
    hub = Hub(FILES)
    monkeypatch.setattr(hub, "model_info", lambda *a, **k: (_ for _ in ()).throw(error))
    with pytest.raises(JobError, match=r"base\.repo: Qwen/Qwen3-4B-Base at 906bfd.* cannot be fetched \(no route\)"):
        fetched(monkeypatch, hub)


def test_what_documents_begin_with_is_read_once_and_changes_nothing():
    """The loss and its gradients are those of whole documents whose shared beginning is left out of the loss."""
    import torch

    from jobs.toy import pretrain

    torch.manual_seed(0)
    toy = validate(TINY, "params").base.toy
    tokenizer = pretrain.train_tokenizer(["def f(x):"], 300)
    model = pretrain.new_model(tokenizer, toy)
    start = [5 + i % 40 for i in range(pretrain.SHARED + 3)]
    rows = [
        [*start, 50, 60, 70, 1],
        [*start, 51, 61, 1],
        [*start, 52, 1],
    ]  # of different lengths: the shorter are padded
    pretrain.loss_of(model, rows, tokenizer.pad_token_id).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row])).logits[0, len(start) : -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(row[len(start) + 1 :]), reduction="sum")
        count += len(logits)
    (total / count).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)
