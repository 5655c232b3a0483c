"""GGUF files against llama.cpp's own converter, against transformers, and against what can go wrong quietly."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.common.answer_format import chat_prompt
from jobs.common.errors import JobError, UsageError
from jobs.common.files import sha256, write_jsonl
from jobs.gguf import job
from jobs.plumbing.params import load
from jobs.weights.lora import updates_of
from jobs.weights.sum import Storage, write_model
from tests import program
from tests.toy import make_adapter, make_model

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

ROOT = Path(__file__).parents[2]
SDIST = "llama_cpp_python-0.3.36.tar.gz"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
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
    return {
        "base": base,
        "untied": make_model(folder / "untied", tie=False),
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


@pytest.fixture(scope="session")
def converter():
    """llama.cpp's converter and the gguf-py of the same commit, out of the pinned source archive."""
    pytest.importorskip("sentencepiece", reason="llama.cpp's converter needs sentencepiece")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llama_cpp_python-0.3.36"
    if not (cache / SDIST).exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "-q",
                    "--no-binary",
                    ":all:",
                    "--no-deps",
                    "-d",
                    cache,
                    "llama-cpp-python==0.3.36",
                ],
                check=True,
                capture_output=True,
                timeout=240,
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"the llama-cpp-python 0.3.36 source archive could not be downloaded ({error})")
    assert hashlib.sha256((cache / SDIST).read_bytes()).hexdigest() == SDIST_SHA256
    root = cache / "llama_cpp_python-0.3.36/vendor/llama.cpp"
    if not (root / "done").exists():
        with tarfile.open(cache / SDIST) as archive:
            archive.extractall(
                cache,
                filter="data",
                members=[
                    m
                    for m in archive
                    if m.name.startswith("llama_cpp_python-0.3.36/vendor/llama.cpp/")
                    and m.name.split("/")[3] in ("conversion", "convert_hf_to_gguf.py", "gguf-py")
                ],
            )
        (root / "done").touch()
    # The converter knows tokenizers by a hash of what they make of a text, and ours is not among them.
    script = (
        "import sys; sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]\n"
        "import convert_hf_to_gguf as converter\n"
        "from conversion.base import TextModel\n"
        "TextModel.get_vocab_base_pre = lambda self, tokenizer: 'qwen2'\n"
        "converter.main()\n"
    )

    def convert(model, kind, out):
        done = subprocess.run(
            [sys.executable, "-c", script, root, root / "gguf-py", model, "--outtype", kind.lower(), "--outfile", out],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return out

    return convert


@pytest.mark.parametrize(("base", "kind"), [("base", "F16"), ("base", "BF16"), ("untied", "F32"), ("untied", "BF16")])
def test_every_tensor_is_the_converters_byte_for_byte(models, converter, base, kind, tmp_path):
    theirs = converter(models[base], kind, tmp_path / "theirs.gguf")
    ours = tmp_path / "ours.gguf"
    job.write_gguf(models[base], {}, kind, ours)
    a, b = read(ours), read(theirs)
    assert list(a) == list(b)
    for name in a:
        assert a[name].tensor_type == b[name].tensor_type
        assert list(a[name].shape) == list(b[name].shape)
        assert a[name].data.tobytes() == b[name].data.tobytes(), name
    mine, other = (
        {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()} for path in (ours, theirs)
    )
    different = {key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key)}
    assert different <= {"general.name", "tokenizer.ggml.add_bos_token", "GGUF.kv_count"}


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_adapters_are_added_as_the_merge_adds_them(models, kind, tmp_path):
    updates = updates_of(models["base"], [models["grpo"]])
    job.write_gguf(models["base"], updates, kind, tmp_path / "direct.gguf")
    (tmp_path / "merged").mkdir()
    write_model(models["base"], updates, Storage(kind), tmp_path / "merged")
    merged = load_file(tmp_path / "merged/model.safetensors")
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


def test_a_file_without_the_training_fails_its_limit_and_nothing_is_kept(models, monkeypatch):
    whole = job.write_gguf
    monkeypatch.setattr(job, "write_gguf", lambda base, updates, kind, path: whole(base, {}, kind, path))
    with pytest.raises(JobError, match=r"gguf\.limits\.F16: its mean KL is"):
        run(models, params("F16", kl=0.001))
    assert list(Path().iterdir()) == []


def test_limits_are_each_enforced(models):
    with pytest.raises(JobError, match="its mean KL"):
        run(models, params("Q4_K_M", kl=0.0))
    from jobs.gguf.check import within

    limits = params("F16", kl=0.1, top1=0.9, drop=0.2).gguf.limits["F16"]
    good = {"kl": 0.1, "top1": 0.9, "pass@1": 0.5}
    within("F16", good, 0.7, limits)
    for worse, says in (({"kl": float("nan")}, "KL"), ({"top1": 0.89}, "agrees on"), ({"pass@1": 0.49}, "pass@1")):
        with pytest.raises(JobError, match=says):
            within("F16", good | worse, 0.7, limits)


def test_a_template_that_renders_another_prompt_is_refused(models, monkeypatch):
    monkeypatch.setattr(job, "CHAT_TEMPLATE", "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    with pytest.raises(JobError, match="renders another prompt"):
        run(models, params("F16"))


def test_the_template_is_the_projects_own_whatever_the_bases_is(models, tmp_path):
    base = shutil.copytree(models["base"], tmp_path / "base")
    (base / "chat_template.jinja").write_text("something else")
    job.write_gguf(base, {}, "F16", tmp_path / "x.gguf")
    assert text(tmp_path / "x.gguf", "tokenizer.chat_template") == job.CHAT_TEMPLATE


def test_another_splitting_of_text_is_noticed(models, monkeypatch):
    add = gguf.GGUFWriter.add_tokenizer_pre
    monkeypatch.setattr(gguf.GGUFWriter, "add_tokenizer_pre", lambda self, pre: add(self, "gpt-2"))
    tasks = [task | {"prompt": "x = 12345678\n\n\n    y = 2024  # '''\t\t\n"} for task in TASKS]
    write_jsonl(Path("tasks.jsonl"), tasks)
    settings = params("F16")
    with pytest.raises(JobError, match="splits a prompt into other tokens"):
        job.run(settings, models["base"], [], Path("tasks.jsonl"), Path("out"), Path("m.json"))


def test_a_tokenizer_that_llama_cpp_would_split_otherwise_is_refused(models, tmp_path):
    base = shutil.copytree(models["base"], tmp_path / "base")
    file = base / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(JobError, match="pre-tokenizer of Qwen2"):
        job.write_gguf(base, {}, "F16", tmp_path / "x.gguf")


def test_rows_that_256_does_not_divide_are_named(tmp_path, caplog):
    base = make_model(tmp_path / "base", hidden=320)
    job.write_gguf(base, {}, "F32", tmp_path / "f.gguf")
    job.quantize(tmp_path / "f.gguf", tmp_path / "q.gguf", "Q4_K_M")
    figures = job.sizes(tmp_path / "q.gguf", "Q4_K_M")
    expected = [name for name, t in read(tmp_path / "q.gguf").items() if len(t.shape) > 1]  # 320 or 640 long, every one
    assert figures["fallback_tensors"] == len(expected) == 15
    for name in expected:
        assert any(name in message and "256 does not divide" in message for message in caplog.messages)
    assert not any("_K" in t.tensor_type.name for t in read(tmp_path / "q.gguf").values())


def test_a_tied_head_is_written_once_and_an_untied_one_is_written(models, tmp_path):
    base = shutil.copytree(models["base"], tmp_path / "base")
    held = load_file(base / "model.safetensors")
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    job.write_gguf(base, {}, "F16", tmp_path / "tied.gguf")
    job.write_gguf(models["untied"], {}, "F16", tmp_path / "untied.gguf")
    assert "output.weight" not in read(tmp_path / "tied.gguf")
    assert "output.weight" in read(tmp_path / "untied.gguf")


def test_rows_without_a_token_are_padding_and_no_token_is_lost(models, tmp_path):
    job.write_gguf(models["base"], {}, "F16", tmp_path / "x.gguf")
    tokens, types = (text(tmp_path / "x.gguf", f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    vocabulary = json.loads((models["base"] / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(tokens) == len(types) == 512
    assert all(tokens[i] == token for token, i in vocabulary.items())
    unused = [i for i, kind in enumerate(types) if kind == gguf.TokenType.UNUSED]
    assert unused == list(range(max(vocabulary.values()) + 1, 512))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model_type": "llama"}, "llama model"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "rotary"),
        ({"use_sliding_window": True}, "sliding"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation"),
    ],
)
def test_a_model_that_llama_cpps_qwen3_is_not_is_refused(models, tmp_path, changed, says):
    base = shutil.copytree(models["base"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | changed
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(JobError, match=says):
        job.write_gguf(base, {}, "F16", tmp_path / "x.gguf")


def test_an_unknown_tensor_and_a_weight_too_large_are_refused_by_name(models, tmp_path):
    for name, value, says in (
        ("model.layers.0.extra.weight", 1.0, "is no tensor"),
        ("model.layers.0.mlp.up_proj.weight", 1e5, "does not fit float16"),
    ):
        base = shutil.copytree(models["base"], tmp_path / says.replace(" ", "_"))
        held = load_file(base / "model.safetensors")
        held[name] = torch.full((512, 256), value, dtype=torch.bfloat16)
        save_file(held, base / "model.safetensors")
        with pytest.raises(JobError, match=f"{name}.*{says}"):
            job.write_gguf(base, {}, "F16", tmp_path / "x.gguf")


def test_types_that_do_not_exist_or_cannot_be_made_are_one_clear_line(models):
    with pytest.raises(JobError, match="no type Q9_Z"):
        run(models, params("Q9_Z"))
    with pytest.raises(JobError, match="could not quantize to IQ1_S"):
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

    job.write_gguf(models["base"], {}, "F32", Path("x.gguf"))
    generate = llama_cpp.load(Path("x.gguf"), context=512)
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
    with pytest.raises(UsageError, match="do not fit the context"):
        generate(["x " * 600], greedy)
    with pytest.raises(UsageError, match="adapters"):
        llama_cpp.load(Path("x.gguf"), adapter=models["grpo"])
    Path("broken.gguf").write_bytes(Path("x.gguf").read_bytes()[:1000])
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
