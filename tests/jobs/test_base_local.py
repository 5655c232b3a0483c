"""A base model of one's own: a folder, or a GGUF file whose weights are dequantized."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from jobs import base
from jobs.common.errors import JobError, UsageError
from jobs.common.files import sha256
from jobs.plumbing.params import load
from tests import toy as models

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.make_model(tmp_path_factory.mktemp("base") / "mine", hidden=64, dtype="bfloat16")


def params(kind, path, digest=None, *others):
    digest = digest or sha256(path)
    return load(PARAMS, [f"base.{kind}={{path: '{path}', sha256: '{digest}'}}", *others])


def made(tmp_path, monkeypatch, chosen):
    monkeypatch.chdir(tmp_path)
    base.run(chosen, Path("models/base"))
    return tmp_path / "models/base"


def test_a_folder_gives_its_weights_and_tokenizer_and_nothing_else(folder, tmp_path, monkeypatch):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "pytorch_model.bin").write_bytes(b"a pickle")
    shutil.copy(own / "model.safetensors", own / "consolidated.safetensors")
    (own / ".git").mkdir()
    (own / "LICENSE").write_text("may be shared with this text")
    out = made(tmp_path, monkeypatch, params("folder", own))
    assert (out / "model.safetensors").read_bytes() == (own / "model.safetensors").read_bytes()
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"} <= names
    assert not {"pytorch_model.bin", "consolidated.safetensors", ".git"} & names


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_another_hash_or_no_file_is_named_with_its_key(folder, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=rf"base\.{kind}\.sha256: is 0+, and .* has {sha256(folder)}"):
        base.run(params(kind, folder, "0" * 64), Path("out"))
    with pytest.raises(UsageError, match=rf"base\.{kind}\.path: nowhere does not exist"):
        base.run(params(kind, Path("nowhere"), "0" * 64), Path("out"))
    assert not Path("out").exists()


def test_two_sources_are_refused():
    both = [f"base.{kind}={{path: x, sha256: '{'0' * 64}'}}" for kind in ("folder", "gguf")]
    with pytest.raises(UsageError, match="one of them is to be null"):
        load(PARAMS, both)


def test_a_folder_without_safetensors_is_refused(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(JobError, match="safetensors"):
        made(tmp_path, monkeypatch, params("folder", own))


def test_a_gguf_file_gives_the_weights_that_it_holds_and_its_own_special_tokens(folder, tmp_path, monkeypatch):
    """An F16 file of a bfloat16 model: small weights lose nothing, so the two folders compute the same."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.gguf.convert import convert

    file = tmp_path / "mine-F32.gguf"
    convert(folder, [], "F32", file, "mine")
    out = made(tmp_path, monkeypatch, params("gguf", file))
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (out, folder))
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight), name
    tokenizer, original = (AutoTokenizer.from_pretrained(path) for path in (out, folder))
    for text in ("def add(a, b):\n    return a + b\n", "x = 12345  # ünï"):
        assert tokenizer(text).input_ids == original(text).input_ids
    assert tokenizer.eos_token == original.eos_token
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == original.eos_token_id
    assert not hasattr(ours.config, "quantization_config")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100])
def test_what_is_no_gguf_file_ends_in_one_line(tmp_path, monkeypatch, content):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(JobError, match=r"broken\.gguf: ") as caught:
        made(tmp_path, monkeypatch, params("gguf", file))
    assert "\n" not in str(caught.value)


def test_what_a_later_stage_will_refuse_is_said_and_recorded_at_once(folder, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"use_sliding_window": True, "sliding_window": 64}))
    made(tmp_path, monkeypatch, params("folder", own))
    recorded = json.loads((tmp_path / "reports/provenance/base.json").read_text())["refused"]
    assert list(recorded) == ["gguf"]
    assert f"gguf will refuse this model: it {recorded['gguf']}" in caplog.text


def test_weights_that_are_not_the_configs_are_told_at_once(folder, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    weights = load_file(own / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    made(tmp_path, monkeypatch, params("folder", own))
    recorded = json.loads((tmp_path / "reports/provenance/base.json").read_text())["refused"]
    assert set(recorded) == {"sft", "grpo", "sample", "gguf"}
    assert "sft will refuse this model: it lacks model.norm.weight, which would be random numbers" in caplog.text


def changed(own, **config):
    file = own / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def recorded(tmp_path):
    return json.loads((tmp_path / "reports/provenance/base.json").read_text())["refused"]


def test_layers_that_have_other_names_in_memory_are_told_at_once_and_not_trained(folder, tmp_path, monkeypatch, caplog):
    """A model that was saved without its head, as embedding models are: an adapter would fit nothing in its files."""
    from jobs.plumbing.params import Lora
    from jobs.training import loop
    from jobs.weights.tokenizer import load_tokenizer

    own = tmp_path / "own"
    shutil.copytree(folder, own)
    weights = {name.removeprefix("model."): t for name, t in load_file(own / "model.safetensors").items()}
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    out = made(tmp_path, monkeypatch, params("folder", own))
    assert set(recorded(tmp_path)) == {"sft", "grpo", "merge"}
    assert "sft will refuse this model: it holds model.layers.0.mlp.down_proj, " in caplog.text
    model = loop.load_model(out, Lora(rank=4, alpha=4, targets=["q_proj"]), None, 1)
    with pytest.raises(JobError, match=r"holds model\.layers\.0\.self_attn\.q_proj, .* under other names"):
        loop.check_fits(model, load_tokenizer(out), out)


def test_a_model_without_a_class_is_named_by_its_family(folder, tmp_path, monkeypatch):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    changed(own, architectures=None)
    out = made(tmp_path, monkeypatch, params("folder", own))
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_what_tells_of_the_machine_that_saved_a_model_is_not_handed_on(folder, tmp_path, monkeypatch):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    changed(own, _name_or_path="/home/ada/secret-project", vision_config={"_name_or_path": "/home/ada/eyes"})
    file = own / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"name_or_path": "/home/ada/x", "use_auth_token": "hf_" + 34 * "a"}
    file.write_text(json.dumps(settings | {"special_tokens_map_file": "/home/ada/y"}))
    out = made(tmp_path, monkeypatch, params("folder", own))
    held = "".join(path.read_text() for path in out.glob("*config.json"))
    assert "ada" not in held and "hf_" not in held
    assert '"model_type": "qwen3"' in held and '"eos_token": "<|endoftext|>"' in held


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_told_at_once(folder, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    own = tmp_path / "own"
    shutil.copytree(folder, own)
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.add_tokens([f"<tool {i}>" for i in range(513 - len(tokenizer))])
    tokenizer.save_pretrained(own)
    made(tmp_path, monkeypatch, params("folder", own))
    assert recorded(tmp_path) == dict.fromkeys(
        ("sft", "grpo", "sample", "gguf"), "embeds 512 tokens, and its tokenizer has 513"
    )


def test_params_that_do_not_fit_the_model_are_told_at_once(folder, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    changed(own, max_position_embeddings=512)
    made(tmp_path, monkeypatch, params("folder", own))
    assert recorded(tmp_path).keys() == {"grpo", "sample"}
    assert "sample will refuse this model: it has 512 positions, fewer than the 1025 of a prompt and" in caplog.text


def test_a_model_that_is_not_sampled_by_the_engine_of_the_params_is_told_at_once(tmp_path, monkeypatch, caplog):
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    own = tmp_path / "own"
    models.make_tokenizer(own)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "lru_width": 64, "vocab_size": 512}
    RecurrentGemmaForCausalLM(RecurrentGemmaConfig(num_hidden_layers=3, **size)).save_pretrained(own)
    digest = sha256(own)
    for rollout, engine, stages in (
        ("transformers", "transformers", {"grpo", "sample"}),
        ("vllm", "transformers", {"sample"}),
        ("vllm", "vllm", set()),
    ):
        made(
            tmp_path, monkeypatch, params("folder", own, digest, f"grpo.rollout={rollout}", f"evaluate.engine={engine}")
        )
        told = {stage for stage, why in recorded(tmp_path).items() if "keeps its state outside" in why}
        assert told == stages
        shutil.rmtree(tmp_path / "models")
    assert "sample will refuse this model: it is a recurrent_gemma, which keeps its state outside" in caplog.text


def begins_with_two(tokenizer):
    step = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [step, step, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }


def by_likelihood(tokenizer):
    pieces = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    vocabulary = [[piece, -float(i)] for i, piece in enumerate(pieces)]
    tokenizer["model"] = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (by_likelihood, "cuts text by Unigram"),
        (begins_with_two, "begins every text with <|endoftext|>, <|endoftext|>"),
    ],
)
def test_a_tokenizer_that_no_gguf_file_holds_is_told_before_anything_is_trained(
    folder, tmp_path, monkeypatch, change, says
):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    change(tokenizer)
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    made(tmp_path, monkeypatch, params("folder", own))
    found = recorded(tmp_path)
    assert list(found) == ["gguf"]
    assert found["gguf"].startswith(says)


def test_a_splitting_of_text_that_llama_cpp_may_not_know_is_told_before_anything_is_trained(
    folder, tmp_path, monkeypatch, caplog
):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    made(tmp_path, monkeypatch, params("folder", own))
    assert "knows its tokenizer by itself" not in caplog.text
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    made(tmp_path, monkeypatch, params("folder", own))
    assert "gguf will refuse this model unless llama.cpp's converter knows its tokenizer by itself" in caplog.text


@pytest.mark.parametrize(("family", "prepend"), [("Llama", True), ("Llama", False), ("Gemma2", False)])
def test_pieces_out_of_a_gguf_file_are_llama_cpps_in_the_base_and_in_what_is_written_of_it(
    tmp_path, monkeypatch, family, prepend
):
    import transformers

    from jobs.gguf.check import check_tokens
    from jobs.gguf.convert import convert
    from jobs.gguf.texts import TEXTS
    from jobs.weights.tokenizer import load_tokenizer

    own = tmp_path / "own"
    own.mkdir()
    models.make_pieces_tokenizer(own, prepend)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=256,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(own)
    file = tmp_path / "mine.gguf"
    convert(own, [], "F32", file, "mine")
    out = made(tmp_path, monkeypatch, params("gguf", file))
    tokenizer, original = load_tokenizer(out), load_tokenizer(own)
    check_tokens(file, tokenizer, TEXTS)
    assert tokenizer("def f").input_ids[0] == tokenizer.bos_token_id == original.bos_token_id
    for text in TEXTS:
        assert tokenizer(text).input_ids == original(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    convert(out, [], "F32", tmp_path / "again.gguf", "again")
    check_tokens(tmp_path / "again.gguf", tokenizer, TEXTS)


def test_a_pre_tokenizer_that_is_not_known_is_refused_before_any_weight_is_read(folder, tmp_path, monkeypatch):
    from jobs.gguf.convert import convert

    file = tmp_path / "mine.gguf"
    convert(folder, [], "F32", file, "mine")
    file.write_bytes(file.read_bytes().replace(b"qwen2", b"qwen9"))  # as many characters: the file stays whole
    with pytest.raises(JobError, match=r"mine\.gguf: names a pre-tokenizer that is not known here, qwen9"):
        made(tmp_path, monkeypatch, params("gguf", file))
    assert not (tmp_path / "models/base").exists()


def test_bytes_that_the_tokenizer_does_not_know_are_told_and_recorded(folder, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["[unused]"] = vocabulary.pop("Ć")  # how byte-level BPE writes 0x06
    (own / "tokenizer.json").write_text(json.dumps(tokenizer))
    made(tmp_path, monkeypatch, params("folder", own))
    recorded = json.loads((tmp_path / "reports/provenance/base.json").read_text())
    assert recorded["unread_bytes"] == [0x06]
    assert "no token for the bytes 0x06" in caplog.text


def test_a_tokenizer_that_changes_code_is_told(folder, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    made(tmp_path, monkeypatch, params("folder", own))
    assert "gives back" not in caplog.text
    tokenizer = json.loads((own / "tokenizer.json").read_text())
    (own / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    made(tmp_path, monkeypatch, params("folder", own))
    assert "the tokenizer gives back 'def add(a, b)" in caplog.text


def test_a_tokenizer_that_no_stage_takes_is_told_at_once(folder, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    made(tmp_path, monkeypatch, params("folder", own))
    recorded = json.loads((tmp_path / "reports/provenance/base.json").read_text())["refused"]
    assert set(recorded) == {"sft", "grpo", "sample", "gguf"}
    assert "sft will refuse this model: it has no tokenizer to work with" in caplog.text
