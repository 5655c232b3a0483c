"""One prompt through all four kinds of model."""

import json
from pathlib import Path

import pytest

from jobs import generate, merge
from jobs.common.errors import JobError, UsageError
from jobs.gguf.convert import convert
from jobs.plumbing.params import load
from jobs.weights.lora import updates_of
from jobs.weights.sum import Storage, write_model
from tests import program
from tests.toy import make_adapter, make_model

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
ROOT = Path(__file__).parents[2]
PROMPT = "Write a function `add(a, b)`."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = make_model(folder / "base", tie=False)
    adapter = make_adapter(base, folder / "grpo", scale=0.1)
    updates = updates_of(base, [adapter])
    (folder / "merged").mkdir()
    write_model(base, updates, Storage("F32"), folder / "merged")
    merge.copy_rest(base, folder / "merged", "float32")
    convert(base, [adapter], "F32", folder / "grpo-F32.gguf", "grpo")
    return folder


def params(*assignments):
    return load(ROOT / "params.yaml", ["evaluate.max_tokens=16", *assignments])


def text(*arguments):
    return "".join(piece for piece, _, _ in generate.run(params(), *arguments))


def test_the_same_weights_give_the_same_answer_in_every_form(models):
    merged = text(models / "merged", None, PROMPT, False)
    assert merged
    assert text(models / "base", models / "grpo", PROMPT, False) == merged
    assert text(models / "grpo-F32.gguf", None, PROMPT, False) == merged
    assert text(models / "base", None, PROMPT, False) != merged


@pytest.mark.parametrize("name", ["merged", "grpo-F32.gguf"])
def test_the_answer_comes_in_pieces_and_says_how_it_ended(models, name):
    pieces = list(generate.run(params(), models / name, None, PROMPT, False))
    assert len(pieces) > 3
    assert pieces[-1][1:] in [(16, "length"), (pieces[-1][1], "stop")]
    assert all(end is None for _, _, end in pieces[:-1])


@pytest.mark.parametrize("name", ["merged", "grpo-F32.gguf"])
def test_a_drawn_answer_depends_on_the_seed(models, name):
    def drawn(seed):
        return "".join(
            p for p, _, _ in generate.run(params(f"evaluate.seed={seed}"), models / name, None, PROMPT, True)
        )

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(1, 5)}) > 1


def test_what_cannot_be_is_refused(models, tmp_path):
    with pytest.raises(UsageError, match="PROMPT"):
        generate.run(params(), models / "merged", None, " \n", False)
    with pytest.raises(UsageError, match="--adapter"):
        generate.run(params(), models / "grpo-F32.gguf", models / "grpo", PROMPT, False)
    with pytest.raises(JobError, match="no safetensors"):
        list(generate.run(params(), tmp_path, None, PROMPT, False))


def cli(*arguments, stdin=""):
    return program.run(ROOT, "generate", *arguments, settings=["evaluate.max_tokens=8"], stdin=stdin)


def test_scripts_get_one_object_and_people_get_text(models):
    done = cli("--model", models / "grpo-F32.gguf", "--json", PROMPT)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "reasoning", "code", "tokens", "finish"}
    assert answer["code"] is None, "a random model does not obey the format"
    plain = cli("--model", models / "grpo-F32.gguf", "-", stdin=PROMPT)
    assert plain.stdout == answer["text"] + "\n"
    assert "tag format" in plain.stderr
    assert cli("--model", models / "nowhere", PROMPT).returncode == 2


def copy_of(models, folder, **generation):
    import shutil

    shutil.copytree(models / "merged", folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_the_model_s_own_generation_settings_do_not_bear_on_the_answer(models, tmp_path):
    settings = {"do_sample": True, "repetition_penalty": 5.0, "temperature": 0.3, "top_k": 3, "no_repeat_ngram_size": 1}
    changed = copy_of(models, tmp_path / "changed", eos_token_id=0, **settings)
    assert text(changed, None, PROMPT, False) == text(models / "merged", None, PROMPT, False)
    assert text(changed, None, PROMPT, True) == text(models / "merged", None, PROMPT, True)


def ending(models, folder):
    """The merged model, the third token of whose answer is its tokenizer's end of text, which nothing else names."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.common.answer_format import chat_prompt

    changed = copy_of(models, folder)
    tokenizer = AutoTokenizer.from_pretrained(changed)
    prompt = tokenizer(chat_prompt(PROMPT), return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(changed)
    third = int(model.generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, -1])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    tokenizer.save_pretrained(changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    return changed, third


def test_an_answer_ends_at_the_tokenizer_s_end_though_no_config_names_it(models, tmp_path):
    from jobs.common.answer_format import chat_prompt
    from jobs.inference import Sampling, hf

    changed, _ = ending(models, tmp_path / "ending")
    *_, (_, tokens, end) = generate.run(params(), changed, None, PROMPT, False)
    assert (tokens, end) in [(1, "stop"), (2, "stop"), (3, "stop")]
    [[sampled]] = hf.load(changed)([chat_prompt(PROMPT)], Sampling(max_tokens=16))
    assert (sampled.tokens, sampled.finish) == (tokens, end)


def test_a_merged_model_s_generation_config_names_the_tokenizer_s_end(models, tmp_path):
    changed, third = ending(models, tmp_path / "ending")
    for given, expected in (
        ({}, third),
        ({"eos_token_id": 7, "top_k": 2}, [7, third]),
        ({"eos_token_id": third}, third),
    ):
        (changed / "generation_config.json").write_text(json.dumps(given))
        out = tmp_path / f"out{len(given)}{expected}"
        out.mkdir()
        merge.copy_rest(changed, out, "float32")
        assert json.loads((out / "generation_config.json").read_text()) == given | {"eos_token_id": expected}


@pytest.mark.parametrize("told_by", ["tokenizer.json", "special_tokens_map.json", "vocab.json"])
def test_a_merged_model_ends_where_its_tokenizer_ends_whichever_files_it_is_in(models, tmp_path, told_by):
    changed, third = ending(models, tmp_path / "ending")
    settings = json.loads((changed / "tokenizer_config.json").read_text())
    if told_by == "special_tokens_map.json":
        (changed / told_by).write_text(json.dumps({"eos_token": settings.pop("eos_token")}))
    if told_by == "vocab.json":
        held = json.loads((changed / "tokenizer.json").read_text())
        (changed / told_by).write_text(json.dumps(held["model"]["vocab"]))
        (changed / "merges.txt").write_text("\n".join(" ".join(merge) for merge in held["model"]["merges"]))
        (changed / "tokenizer.json").unlink()
        settings["tokenizer_class"] = "Qwen2Tokenizer"
    (changed / "tokenizer_config.json").write_text(json.dumps(settings))
    (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    out = tmp_path / "out"
    out.mkdir()
    merge.copy_rest(changed, out, "float32")
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [7, third]}
