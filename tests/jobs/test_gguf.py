"""GGUF files against transformers, and against what can go wrong quietly."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.common.answer_format import CHAT_TEMPLATE, chat_prompt
from jobs.common.errors import JobError, UsageError
from jobs.common.files import sha256, write_jsonl
from jobs.gguf import job
from jobs.gguf.check import check_tokens, compare
from jobs.gguf.texts import TEXTS
from jobs.plumbing.params import load
from jobs.weights import ends
from jobs.weights.lora import updates_of
from jobs.weights.sum import Storage, write_model
from jobs.weights.tokenizer import load_tokenizer
from tests import program
from tests.toy import SPLIT, make_adapter, make_model, make_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

ROOT = Path(__file__).parents[2]
TASKS = [
    {
        "task_id": f"Toy/{i}",
        "prompt": f'def f{i}(a):\n    """Add {i}."""\n',
        "entry_point": f"f{i}",
        "setup": "",
        "tests": [f"assert f{i}(1) == {i + 1}"],
        "reference": f"def f{i}(a):\n    return a + {i}\n",
    }
    for i in range(3)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "base", dtype="bfloat16")
    write_jsonl(folder / "tasks.jsonl", TASKS)
    untied = make_model(folder / "untied", tie=False)
    for model, kind in (
        (base, "F32"),
        (base, "F16"),
        (untied, "F32"),
    ):  # a conversion takes seconds: once for all tests
        job.convert(model, [], kind, folder / f"{model.name}-{kind}.gguf", "mine")
    return {
        "base": base,
        "F32": folder / "base-F32.gguf",
        "F16": folder / "base-F16.gguf",
        "untied": untied,
        "untied-F32": folder / "untied-F32.gguf",
        "tasks": folder / "tasks.jsonl",
        "grpo": make_adapter(base, folder / "grpo", scale=3e-2),
    }


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def params(*types, **limits):
    limit = {"kl": 0.05, "top1": 0.5, "drop": 1.0} | limits
    return load(
        ROOT / "params.yaml",
        [
            f"gguf.types={json.dumps(types)}",
            "gguf.max_tokens=24",
            "gguf.tasks=3",
            f"gguf.limits={json.dumps(dict.fromkeys(types, limit))}",
            "sandbox.require=[]",
            "sandbox.workers=1",
        ],
    )


def run(models, settings, base="base", adapters=("grpo",)):
    return job.run(settings, models[base], [models[a] for a in adapters], models["tasks"], Path("out"), Path("m.json"))


def read(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def text(path, key):
    return gguf.GGUFReader(path).fields[key].contents()


def convert(base, adapters, kind, path):
    job.convert(base, adapters, kind, path, "mine")


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_adapters_are_added_as_the_merge_adds_them(models, kind, tmp_path):
    convert(models["base"], [models["grpo"]], kind, tmp_path / "direct.gguf")
    (tmp_path / "merged").mkdir()
    write_model(models["base"], updates_of(models["base"], [models["grpo"]]), Storage("F32"), tmp_path / "merged")
    stored = torch.float16 if kind == "F16" else torch.bfloat16
    merged = {name: tensor.to(stored) for name, tensor in load_file(tmp_path / "merged/model.safetensors").items()}
    found = read(tmp_path / "direct.gguf")
    for layer in range(2):
        for ours, theirs in (
            ("attn_q", "self_attn.q_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_up", "mlp.up_proj"),
        ):
            expected = merged[f"model.layers.{layer}.{theirs}.weight"].view(torch.uint8).numpy().tobytes()
            assert found[f"blk.{layer}.{ours}.weight"].data.tobytes() == expected
    untrained = load_file(models["base"] / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(
        untrained.to(merged["model.layers.0.self_attn.q_proj.weight"].dtype),
        merged["model.layers.0.self_attn.q_proj.weight"],
    )


def test_the_whole_job_writes_checks_and_repeats_itself_byte_for_byte(models, monkeypatch, tmp_path):
    settings = params("F16", "Q8_0", "Q4_K_M")
    figures = run(models, settings)
    out = Path("out")
    assert sorted(file.name for file in out.glob("[!.]*")) == ["grpo-F16.gguf", "grpo-Q4_K_M.gguf", "grpo-Q8_0.gguf"]
    assert figures["F16"]["kl"] < 1e-5 < figures["Q4_K_M"]["kl"]
    assert figures["F16"]["kl"] < figures["Q8_0"]["kl"] < figures["Q4_K_M"]["kl"]
    assert figures["F16"]["top1"] > 0.97
    assert figures["Q8_0"]["fallback_tensors"] == figures["Q4_K_M"]["fallback_tensors"] == 0
    assert figures["Q4_K_M"]["bits_per_weight"] < 6 < figures["Q8_0"]["bits_per_weight"] < 9
    assert json.loads(Path("m.json").read_text())["reference"]["tasks"] == 3
    first = sha256(out)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    run(models, settings)
    assert sha256(out) == first
    assert str(tmp_path).encode() not in b"".join(file.read_bytes() for file in out.iterdir())


@pytest.fixture
def untrained(models, monkeypatch):
    """The job writes the base as it is, whatever its adapters are."""
    copied = lambda base, adapters, kind, path, name: shutil.copyfile(models[kind], path)  # noqa: E731
    monkeypatch.setattr(job, "convert", copied)


def test_a_file_without_the_training_fails_its_limit_and_nothing_is_kept(models, untrained):
    with pytest.raises(JobError, match=r"gguf\.limits\.F16: its mean KL is"):
        run(models, params("F16", kl=0.001))
    assert list(Path().iterdir()) == []


def test_limits_are_each_enforced(models, untrained):
    with pytest.raises(JobError, match="its mean KL"):
        run(models, params("Q4_K_M", kl=0.0))
    from jobs.gguf.check import within

    limits = params("F16", kl=0.1, top1=0.9, drop=0.2).gguf.limits["F16"]
    good = {"kl": 0.1, "kl_far": 0.1, "top1": 0.9, "pass@1": 0.5}
    within("F16", good, 0.7, limits)
    for worse, says in (
        ({"kl": float("nan")}, "KL"),
        ({"kl_far": 0.2}, "end of a long text"),
        ({"top1": 0.89}, "agrees on"),
        ({"pass@1": 0.49}, "pass@1"),
    ):
        with pytest.raises(JobError, match=says):
            within("F16", good | worse, 0.7, limits)


def test_a_template_that_renders_another_prompt_is_refused(models, monkeypatch):
    other = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr("jobs.gguf.convert.CHAT_TEMPLATE", other)
    convert(models["base"], [], "F16", Path("x.gguf"))
    with pytest.raises(JobError, match=r"x\.gguf: its chat template renders another prompt"):
        check_tokens(Path("x.gguf"), load_tokenizer(models["base"]), TEXTS)


def test_the_template_is_the_projects_own_whatever_the_bases_is(models, tmp_path):
    base = shutil.copytree(models["base"], tmp_path / "base")
    (base / "chat_template.jinja").write_text("something else")
    convert(base, [], "F16", tmp_path / "x.gguf")
    assert text(tmp_path / "x.gguf", "tokenizer.chat_template") == CHAT_TEMPLATE


def changed(base, folder, name, **keys):
    """A copy of the base with other values in its JSON file NAME."""
    copy = shutil.copytree(base, folder)
    file = copy / name
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return copy


BY_THREE = SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|")


@pytest.mark.parametrize(("pattern", "name"), [(SPLIT, "qwen2"), (BY_THREE, "llama-bpe"), (r"\w|\W", None)])
def test_how_text_is_split_is_found_by_trial_or_refused(models, tmp_path, pattern, name):
    held = json.loads((models["base"] / "tokenizer.json").read_text())
    held["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    held["model"]["vocab"]["12"] = 511  # a piece that only one of the splittings lets be
    held["model"]["merges"].append(["1", "2"])
    base = changed(models["base"], tmp_path / "base", "tokenizer.json", **held)
    if name is None:
        with pytest.raises(JobError, match=r"base: no pre-tokenizer of llama\.cpp cuts text as this tokenizer does$"):
            convert(base, [], "F16", tmp_path / "x.gguf")
        return
    convert(base, [], "F16", tmp_path / "x.gguf")
    assert text(tmp_path / "x.gguf", "tokenizer.ggml.pre") == name
    check_tokens(tmp_path / "x.gguf", load_tokenizer(base), TEXTS)


def test_another_splitting_of_text_is_noticed(models, tmp_path):
    held = models["F16"].read_bytes()
    (tmp_path / "y.gguf").write_bytes(held.replace(b"\5\0\0\0\0\0\0\0qwen2", b"\5\0\0\0\0\0\0\0gpt-2", 1))
    tokenizer = load_tokenizer(models["base"])
    check_tokens(models["F16"], tokenizer, TEXTS)
    with pytest.raises(JobError, match=r"y\.gguf: llama\.cpp cuts .* into other tokens"):
        check_tokens(tmp_path / "y.gguf", tokenizer, TEXTS)


@pytest.mark.parametrize("fallback", [False, True])
def test_bytes_are_cut_as_bytes_whatever_is_said_of_a_fallback(models, tmp_path, fallback):
    """transformers reads a byte-level BPE out of a GGUF file with byte_fallback set, which there has no effect."""
    from jobs.gguf.converter import bpe_of

    folder = tmp_path / "base"
    shutil.copytree(models["base"], folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["byte_fallback"] = fallback
    file.write_text(json.dumps(tokenizer))
    assert bpe_of(folder) == "bytes"
    tokenizer["pre_tokenizer"] = None
    file.write_text(json.dumps(tokenizer))
    assert bpe_of(folder) == ("pieces" if fallback else None)


def test_a_special_token_that_a_text_spells_is_text_in_the_file_too(models, tmp_path):
    held = json.loads((models["base"] / "tokenizer.json").read_text())
    plain = held["added_tokens"][0]
    names = {"<|im_start|>": True, "<|fim_prefix|>": False, "<think>": False}
    first = len(held["model"]["vocab"])
    held["added_tokens"] += [
        plain | {"id": first + i, "content": name, "special": special}
        for i, (name, special) in enumerate(names.items())
    ]
    base = changed(models["base"], tmp_path / "base", "tokenizer.json", added_tokens=held["added_tokens"])
    file = tmp_path / "x.gguf"
    convert(base, [], "F16", file)
    tokenizer = load_tokenizer(base)
    found = {name: tokenizer(f"x{name}").input_ids for name in names}
    assert [len(ids) == 2 for ids in found.values()] == [False, False, True], (
        "<think> is one token, the others are text"
    )
    check_tokens(file, tokenizer, TEXTS)
    reader = gguf.GGUFReader(file, "r+")
    types = reader.fields["tokenizer.ggml.token_type"]
    types.parts[types.data[first]][0] = gguf.TokenType.USER_DEFINED
    reader.data.flush()
    with pytest.raises(JobError, match=r"x\.gguf: llama\.cpp cuts 'x = \"<\|im_start\|>\".* into other tokens"):
        check_tokens(file, tokenizer, [])


def test_a_file_that_ends_every_text_is_refused(models, tmp_path):
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    from jobs.inference import llama_cpp

    ended = MetadataDetails(gguf.GGUFValueType.BOOL, True)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "qwen3")
    copy_with_new_metadata(gguf.GGUFReader(models["F16"]), writer, {"tokenizer.ggml.add_eos_token": ended}, [])
    with pytest.raises(JobError, match=r"x\.gguf: ends every text .*add_eos_token"):
        llama_cpp.load(tmp_path / "x.gguf")


def with_bos(base, folder):
    """A copy of the base whose tokenizer puts a token of its own before every text."""
    tokenizer = load_tokenizer(base)
    token = tokenizer.convert_ids_to_tokens(300)
    special = {"id": token, "ids": [300], "tokens": [token]}
    template = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*template, {"Sequence": {"id": "B", "type_id": 1}}]
    whole = {"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": {token: special}}
    copy = changed(base, folder, "tokenizer.json", post_processor=whole)
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"bos_token": token}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    return copy


def test_a_token_before_every_text_is_put_there_by_the_file_too(models, tmp_path):
    from jobs.inference import Sampling, hf, llama_cpp

    base = with_bos(models["base"], tmp_path / "bos")
    convert(base, [], "F32", tmp_path / "x.gguf")
    tokenizer = load_tokenizer(base)
    assert tokenizer("x")["input_ids"][0] == 300
    check_tokens(tmp_path / "x.gguf", tokenizer, TEXTS)
    prompts, greedy = [chat_prompt("def f(a):\n")], Sampling(max_tokens=12)
    answers = llama_cpp.load(tmp_path / "x.gguf")(prompts, greedy)
    assert answers == hf.load(base)(prompts, greedy) != hf.load(models["base"])(prompts, greedy)
    with pytest.raises(JobError, match="other tokens"):
        check_tokens(tmp_path / "x.gguf", load_tokenizer(models["base"]), TEXTS)


def test_another_end_of_text_is_refused(models):
    tokenizer = load_tokenizer(models["base"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(301)
    with pytest.raises(JobError, match="its EOS token is 0, the tokenizer's is 301"):
        check_tokens(models["F16"], tokenizer, ["x"])


def test_positions_far_from_the_begin_are_compared(models, tmp_path):
    """Scaling that the file leaves out is next to nothing at the begin: only the long text shows it."""
    from jobs.gguf.reference import load_reference

    keys = {"sliding_window": 48, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    windowed = changed(models["untied"], tmp_path / "windowed", "config.json", **keys)
    reference = load_reference(windowed, [])
    ids = reference.tokenize("def f(a):\n    return a\n" * 40)
    found = compare(
        models["untied-F32"], [(ids[:20], 10)], (ids[:200], 150, reference.logits(ids[:200], 150)), reference
    )
    assert found["kl"] < 1e-6 < 1e-4 < found["kl_far"]


def test_what_else_ends_an_answer_ends_it_in_the_file_and_in_a_base_made_of_it(models, tmp_path):
    from jobs.inference import Sampling, hf, llama_cpp
    from jobs.weights.dequantize import to_folder

    base = shutil.copytree(models["base"], tmp_path / "base")
    sampling = Sampling(max_tokens=3)
    written = hf.load(base)(["def add("], sampling)[0][0]
    first = load_tokenizer(base)(written.text).input_ids[0]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, first, 300]}))
    convert(base, [], "F32", tmp_path / "x.gguf")
    to_folder(tmp_path / "x.gguf", tmp_path / "back")
    for engine, path in ((hf.load, base), (llama_cpp.load, tmp_path / "x.gguf"), (hf.load, tmp_path / "back")):
        (ended,) = engine(path)(["def add("], sampling)[0]
        assert (ended.tokens, ended.finish) == (1, "stop")
    assert written.finish == "length"


def with_tokens(base, folder, *names):
    """A copy of the model whose tokenizer has these tokens too, and their numbers."""
    shutil.copytree(base, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    tokenizer.save_pretrained(folder)
    return folder, tokenizer.convert_tokens_to_ids(list(names))


def ended_by(file):
    import llama_cpp

    from jobs.inference.llama_cpp import vocabulary

    ours = vocabulary(file)
    words = llama_cpp.llama_model_get_vocab(ours.model)
    return {token for token in range(ours.n_vocab()) if llama_cpp.llama_vocab_is_eog(words, token)}


@pytest.mark.parametrize(
    "names",
    [
        sorted(ends.NAMES),
        sorted(ends.NAMES - {"<|call|>", "<|calls|>", "<|tool_response>"}),
        ["<|flush|>", "<|end|>", "<|calls|>", "</s>"],
        ["<|return|>", "<|end|>", "<|fim_middle|>"],
        ["<|flush|>", "<|end|>"],
    ],
)
def test_a_base_made_of_a_file_ends_answers_by_the_tokens_that_llama_cpp_ends_them_by(models, tmp_path, names):
    """Most files name no second end: llama.cpp knows it by its name."""
    from jobs.weights.dequantize import to_folder

    base, _ = with_tokens(models["base"], tmp_path / "base", *(set(names) - {"<|endoftext|>"}))
    convert(base, [], "F32", tmp_path / "x.gguf")
    facts = to_folder(tmp_path / "x.gguf", tmp_path / "back")
    told = json.loads((tmp_path / "back/generation_config.json").read_text())["eos_token_id"]
    assert set(told if isinstance(told, list) else [told]) == ended_by(tmp_path / "x.gguf")
    assert facts["ends"][0] == facts["eos"]


def test_an_end_that_a_file_has_no_place_for_is_told_and_recorded(models, tmp_path, caplog):
    base, numbers = with_tokens(models["base"], tmp_path / "base", "<|im_end|>", "<a>", "<b>", "<c>")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, *numbers]}))
    out = job.run(params("F32"), base, [], models["tasks"], Path("out"), Path("m.json"))
    assert ended_by(next(Path("out").glob("*.gguf"))) == {0, *numbers[:-1]} and out
    assert "<c> end an answer by" in caplog.text
    assert json.loads(Path("reports/provenance/gguf.json").read_text())["lost_ends"] == ["<c>"]


@pytest.mark.parametrize(("kind", "hidden", "block"), [("Q4_K_M", 320, 256), ("IQ4_XS", 320, 256), ("Q8_0", 336, 32)])
def test_rows_that_a_types_blocks_do_not_divide_are_named(tmp_path, caplog, kind, hidden, block):
    base = make_model(tmp_path / "base", hidden=hidden)
    convert(base, [], "F32", tmp_path / "f.gguf")
    job.quantize(tmp_path / "f.gguf", tmp_path / "q.gguf", kind)
    figures = job.sizes(tmp_path / "q.gguf", kind)
    held = {name: t for name, t in read(tmp_path / "q.gguf").items() if len(t.shape) > 1}
    expected = [name for name, t in held.items() if t.shape[0] % block]
    assert figures["fallback_tensors"] == len(expected) == (15 if block == 256 else 11)
    for name in expected:
        assert any(name in message and f"{block} does not divide" in message for message in caplog.messages)
    assert {name for name, t in held.items() if t.tensor_type.name != kind} >= set(expected)
    if kind == "Q4_K_M":
        assert not any("_K" in t.tensor_type.name for t in held.values())


def test_a_tied_head_is_written_once_and_an_untied_one_is_written(models, tmp_path):
    base = shutil.copytree(models["base"], tmp_path / "base")
    held = load_file(base / "model.safetensors")
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    convert(base, [], "F16", tmp_path / "tied.gguf")
    assert "output.weight" not in read(tmp_path / "tied.gguf")
    matrix = held.pop("model.embed_tokens.weight")  # some tools keep the name that comes first
    save_file(held | {"lm_head.weight": matrix}, base / "model.safetensors", metadata={"format": "pt"})
    convert(base, [], "F16", tmp_path / "head.gguf")
    assert (tmp_path / "head.gguf").read_bytes() == (tmp_path / "tied.gguf").read_bytes()
    assert "output.weight" in read(models["untied-F32"])


def test_a_family_whose_converter_counts_its_layers_first_is_converted(tmp_path):
    """Qwen3-Next's looks for layers that predict further tokens, and stops where nobody has looked for them."""
    from jobs.gguf.reference import load_reference
    from tests import families

    families.make("qwen3_next", tmp_path / "base")
    convert(tmp_path / "base", [], "F32", tmp_path / "x.gguf")
    found = read(tmp_path / "x.gguf")
    assert {"blk.0.ssm_out.weight", "blk.3.attn_q.weight"} <= found.keys()
    assert text(tmp_path / "x.gguf", "qwen3next.block_count") == 4
    reference = load_reference(tmp_path / "base", [])
    ids = reference.tokenize("def f(a):\n    return a\n" * 20)
    figures = compare(
        tmp_path / "x.gguf", [(ids[:20], 10)], (ids[:200], 150, reference.logits(ids[:200], 150)), reference
    )
    assert max(figures["kl"], figures["kl_far"]) < 1e-4


EXPERTS = {
    "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 128,
}  # fmt: skip
RANKS = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "mscale_all_dim": 1.0, "beta_fast": 32.0,
    "beta_slow": 1.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "rope_theta": 10000.0,
}  # fmt: skip
HALF = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
# What the converter looks for elsewhere than transformers 5 has it: which part of a head is turned, which number of keys a
# multi-query model has, by what experts are scored. And a family whose class is a shell around another.
ELSEWHERE = {
    "GPTNeoX": {},
    "Cohere2": {},
    "Falcon": {"new_decoder_architecture": False, "multi_query": True},
    "DeepseekV3": EXPERTS | RANKS,
    "MiniMaxM2": EXPERTS
    | {
        "head_dim": 32,
        "rotary_dim": 16,
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
    },
    "Ministral3": {"head_dim": 32, "sliding_window": None, "rope_parameters": YARN},
}


@pytest.mark.parametrize("family", ELSEWHERE)
def test_a_family_of_which_transformers_says_less_than_the_converter_looks_for_is_converted(tmp_path, family):
    import transformers

    from jobs.gguf.check import kl, logits
    from jobs.inference.llama_cpp import opened
    from tests import families

    make_tokenizer(tmp_path)
    size = families.SIZE | {"hidden_size": 128, "pad_token_id": None} | ELSEWHERE[family]
    config = getattr(transformers, f"{family}Config")(**size)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    model.save_pretrained(tmp_path)
    convert(tmp_path, [], "F32", tmp_path / "x.gguf")
    tokens = torch.randint(5, 300, (60,)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    engine = opened(tmp_path / "x.gguf", n_ctx=64)
    try:
        assert kl(expected[1:], logits(engine, tokens, 1)).max() < 1e-5
    finally:
        engine.close()


def test_rows_without_a_token_are_padding_and_no_token_is_lost(models):
    tokens, types = (text(models["F16"], f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    vocabulary = json.loads((models["base"] / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(tokens) == len(types) == 512
    assert all(tokens[i] == token for token, i in vocabulary.items())
    unused = [i for i, kind in enumerate(types) if kind == gguf.TokenType.UNUSED]
    assert unused == list(range(max(vocabulary.values()) + 1, 512))


def test_what_the_converter_does_not_know_is_refused_by_name_in_one_line(models, tmp_path):
    odd = changed(models["base"], tmp_path / "odd", "config.json", architectures=["OddForCausalLM"])
    with pytest.raises(JobError, match=r"odd: is a OddForCausalLM, which llama\.cpp's converter does not know$"):
        convert(odd, [], "F16", tmp_path / "x.gguf")
    base = shutil.copytree(models["base"], tmp_path / "extra")
    held = load_file(base / "model.safetensors")
    save_file(held | {"model.layers.0.extra.weight": torch.zeros(4, 4)}, base / "model.safetensors")
    with pytest.raises(
        JobError, match=r"extra: llama\.cpp's converter stops .*model\.layers\.0\.extra\.weight"
    ) as caught:
        convert(base, [], "F16", tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)


def test_more_tokens_than_the_model_has_rows_are_one_line(models, tmp_path):
    held = json.loads((models["base"] / "tokenizer.json").read_text())
    added = held["added_tokens"]
    added += [{**added[0], "id": i, "content": f"<|{i}|>"} for i in range(len(held["model"]["vocab"]), 514)]
    base = changed(models["base"], tmp_path / "more", "tokenizer.json", added_tokens=added)
    with pytest.raises(JobError, match=r"more: its tokenizer has 514 tokens, the model embeds only 512"):
        job.run(params("F16"), base, [], models["tasks"], Path("out"), Path("m.json"))
    assert not Path("out").exists()


def test_a_weight_too_large_for_float16_is_refused_by_name(models, tmp_path):
    base = shutil.copytree(models["base"], tmp_path / "large")
    held = load_file(base / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"] = torch.full((512, 256), 1e5, dtype=torch.bfloat16)
    save_file(held, base / "model.safetensors")
    for others in ((), ("BF16",)):
        with pytest.raises(JobError, match=r"blk\.0\.ffn_up\.weight does not fit F16"):
            job.run(params("F16", *others), base, [], models["tasks"], Path("out"), Path("m.json"))


def test_types_that_do_not_exist_or_cannot_be_made_are_one_clear_line(models, untrained):
    with pytest.raises(JobError, match="no type Q9_Z"):
        run(models, params("Q9_Z"))
    with pytest.raises(JobError, match=r"could not quantize to IQ1_S \(\w.*; below 3 bits it wants an imatrix\)"):
        run(models, params("IQ1_S"))
    with pytest.raises(UsageError, match="limits has none for F16"):
        load(ROOT / "params.yaml", ["gguf.types=[F16]", "gguf.limits={}"])
    assert list(Path().iterdir()) == []


def test_a_killed_job_leaves_nothing_that_looks_whole(models, tmp_path):
    inputs = ("--base", models["base"], "--adapter", models["grpo"], "--tasks", models["tasks"])
    process = program.start(tmp_path, "gguf", *inputs)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("models/.gguf.partial/*.gguf")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_llama_cpp_answers_as_transformers_does_and_obeys_its_request(models):
    from jobs.inference import Sampling, hf, llama_cpp

    generate = llama_cpp.load(models["F32"])
    prompts = [chat_prompt("def f(a):\n"), "import math\n"]
    greedy = Sampling(max_tokens=20)
    expected = hf.load(models["base"])(prompts, greedy)
    assert generate(prompts, greedy) == expected
    sampled = Sampling(n=3, temperature=1.0, top_p=0.9, max_tokens=12, seed=5)
    first = generate(prompts, sampled)
    assert generate(prompts[1:], sampled) == first[1:], "a sample depends on its seed and prompt alone"
    assert len({c.text for c in first[0]}) > 1
    assert all(c.tokens == 12 or c.finish == "stop" for samples in first for c in samples)
    stop = expected[0][0].text[3:6]
    ((cut,),) = generate(prompts[:1], Sampling(max_tokens=20, stop=(stop,)))
    assert cut.text == expected[0][0].text.split(stop)[0]
    assert cut.finish == "stop"
    long = [chat_prompt("def f(a):\n" * 150)]
    assert generate(long, greedy) == hf.load(models["base"])(long, greedy), "the context grows to what is asked"
    assert generate(prompts, greedy) == expected
    with pytest.raises(UsageError, match="do not fit the model's 2048 positions"):
        generate(["x " * 2040], greedy)
    with pytest.raises(UsageError, match="adapters"):
        llama_cpp.load(models["F32"], adapter=models["grpo"])
    Path("broken.gguf").write_bytes(models["F32"].read_bytes()[:1000])
    with pytest.raises(JobError, match=r"broken\.gguf"):
        llama_cpp.load(Path("broken.gguf"))


def test_kl_is_kl():
    from jobs.gguf.check import kl

    logits = np.random.default_rng(0).normal(size=(70, 50)).astype(np.float32) * 3
    assert kl(logits, logits).max() < 1e-12
    other = logits + np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    expected = torch.nn.functional.kl_div(
        torch.log_softmax(torch.tensor(other).double(), -1),
        torch.log_softmax(torch.tensor(logits).double(), -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    np.testing.assert_allclose(kl(logits, other), expected.numpy(), rtol=1e-9)
