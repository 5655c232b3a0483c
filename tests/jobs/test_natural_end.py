"""After SFT a model ends its answers by itself, in several families and by two engines, whatever settings came with it."""

import json
import shutil
from pathlib import Path

import pytest

from jobs import sft
from jobs.common.answer_format import chat_prompt, render
from jobs.common.files import write_jsonl
from jobs.inference import Sampling, hf
from jobs.plumbing.params import load
from jobs.weights.tokenizer import load_tokenizer
from tests import families

ROOT = Path(__file__).parents[2]
ROWS = [
    {"prompt": "Add one.\n", "answer": render("It adds.", "def f(a):\n    return a + 1")},
    {"prompt": "Take two.\n", "answer": render("It takes.", "def g(b):\n    return b - 2")},
    {"prompt": "Say yes.\n", "answer": render("It is so.", "def h():\n    return True")},
]
PROMPTS = [chat_prompt(row["prompt"]) for row in ROWS]
EXPECTED = [(row["answer"].strip(), "stop") for row in ROWS]
GREEDY = Sampling(max_tokens=160)


@pytest.fixture(scope="module", params=["qwen3", "llama", "gemma3", "phi3"])
def learned(request, tmp_path_factory):
    """A base of the family, and an adapter that has three answers by heart."""
    folder = tmp_path_factory.mktemp("natural-end")
    base = folder / "base"
    families.make(request.param, base)
    write_jsonl(folder / "examples.jsonl", ROWS)
    params = load(
        ROOT / "params.yaml",
        [
            "sft.engine=transformers",
            "sft.optimizer=adamw_torch",
            "sft.lora={rank: 64, alpha: 64, targets: all-linear}",
            "sft.learning_rate=0.003",
            "sft.schedule=constant",
            "sft.epochs=40",
            "sft.batch_size=3",
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        metrics = sft.run(params, base, Path("examples.jsonl"), Path("adapter"), Path("m.json"), Path("c.csv"))
    assert metrics["last_loss"] < 0.02, "it has them by heart"
    return base, folder / "adapter"


def answers(generate) -> list[tuple[str, str]]:
    """What is answered to each prompt, and why it ended there."""
    return [(completion.text.strip(), completion.finish) for (completion,) in generate(PROMPTS, GREEDY)]


def test_an_answer_ends_where_the_examples_end(learned):
    base, adapter = learned
    assert answers(hf.load(base, adapter=adapter)) == EXPECTED


def test_settings_that_come_with_a_model_do_not_bend_its_answers(learned, tmp_path):
    base, adapter = learned
    bent = shutil.copytree(base, tmp_path / "bent")
    file = bent / "generation_config.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps(own | {"repetition_penalty": 9.0, "do_sample": True, "temperature": 5.0, "top_k": 3}))
    assert answers(hf.load(bent, adapter=adapter)) == EXPECTED


def test_the_gguf_file_ends_there_too(learned, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from jobs.gguf import job
    from jobs.gguf.check import check_tokens
    from jobs.gguf.texts import TEXTS
    from jobs.inference import llama_cpp

    base, adapter = learned
    file = tmp_path / "f32.gguf"
    job.convert(base, [adapter], "F32", file, "mine")
    check_tokens(file, load_tokenizer(base), TEXTS)
    assert answers(llama_cpp.load(file)) == EXPECTED
