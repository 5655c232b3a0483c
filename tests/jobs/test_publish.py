"""What is pushed, that it belongs together, that its figures are its own, and that what is pushed can be used."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from jobs import merge
from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import replace_dir, set_record, sha256, write_json, write_jsonl, write_metrics
from jobs.gguf import job as gguf
from jobs.plumbing.params import load
from jobs.publish import job as publish
from jobs.weights.identity import adapter_identity, made_of, model_identity, source_of
from tests import program
from tests.toy import make_adapter, make_model

ROOT = Path(__file__).parents[2]
TASK = 'def add(a, b):\n    """The sum of a and b."""'
ANSWER = answer_format.render("Add b to a.", "def add(a, b):\n    return a + b")
SETTINGS = ["merge.dtype=float32", "gguf.types=[F16]", "gguf.tasks=1", "gguf.max_tokens=64", "sandbox.workers=1"]
REVISION = "906bfd4b4dc7f14ee4320094d8b41684abff8539"
RATE = {"low": 0.0, "high": 1.0}


def taught(folder):
    """A tiny model that has one answer by heart, and ends after it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_model(folder, tie=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = tokenizer(answer_format.chat_prompt(TASK)).input_ids
    after = [*tokenizer(ANSWER).input_ids, tokenizer.eos_token_id]
    ids, labels = torch.tensor([before + after]), torch.tensor([[-100] * len(before) + after])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.003:
            break
    model.save_pretrained(folder)


def trained(base, folder, seed, continued=None):
    """An adapter with the record that SFT or GRPO writes."""
    make_adapter(base, folder, scale=2e-3, seed=seed)
    shared = {"learning_rate": 0.0123, "warmup_ratio": 0.1, "weight_decay": 0.0, "optimizer": "adamw_torch"}
    run = {
        "seed": 11,
        "settings": shared | {"batch_size": 2, "gradient_accumulation": 1, "engine": "transformers", "epochs": 7},
        "lora": {"rank": 8, "alpha": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        "base": {"identity": model_identity(base)},
    }
    if continued:
        own = {"steps": 77, "generations": 4, "loss": "bnpo", "beta": 0.5, "temperature": 0.7, "top_p": 0.9}
        before = json.loads((continued / "trainer.json").read_text())["run"]
        run["settings"] = {k: v for k, v in run["settings"].items() if k != "epochs"} | own
        run |= {"job": "grpo", "tasks": 41, "continues": {"identity": adapter_identity(continued), "run": before}}
    else:
        run |= {"job": "sft", "examples": 83, "teachers": ["somebody"]}
    (folder / "trainer.json").write_text(json.dumps({"run": run}))
    (folder / "README.md").unlink(missing_ok=True)
    marked(folder)


def marked(folder, **record):
    """The folder as a job leaves it, with its mark."""
    aside = folder.with_name(folder.name + ".aside")
    folder.rename(aside)
    with replace_dir(folder) as partial:
        for file in aside.iterdir():
            if file.name != ".job.json":
                shutil.copyfile(file, partial / file.name)
        set_record(partial, **record)
    shutil.rmtree(aside)


def evaluation(folder, model, passes):
    rows = [{"task_id": "t/1", "sample": i, "passed": p, "base_passed": None} for i, p in enumerate(passes)]
    write_jsonl(folder / "results-toy.jsonl", rows)
    settings = {"mode": "cot", "benchmarks": {"toy": "0" * 64}, "model": {"weights": model, "adapter": None}}
    write_json(folder / "settings.json", settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run at the smallest size, merged and written to GGUF by the jobs themselves."""
    here = tmp_path_factory.mktemp("publish")
    base, sft, grpo = (here / name for name in ("models/base", "models/adapters/sft", "models/adapters/grpo"))
    taught(base)
    marked(base, source={"repo": "someone/tiny-base", "revision": REVISION})
    trained(base, sft, 1)
    trained(base, grpo, 2, sft)
    task = {
        "task_id": "t/1",
        "prompt": TASK + "\n",
        "entry_point": "add",
        "setup": "",
        "tests": ["assert add(1, 2) == 3"],
    }
    write_jsonl(
        here / "tasks.jsonl", [task | {"reference": TASK + "\n    return a + b\n", "source": "x", "license": "MIT"}]
    )
    params = load(ROOT / "params.yaml", SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name in ("sft", "grpo"):
            out, metrics = Path(f"models/{name}"), Path(f"metrics/merge-{name}.json")
            merge.run(params, base, [here / f"models/adapters/{name}"], out, metrics, Path(f"plots/{name}.csv"))
        gguf.run(params, base, [grpo], Path("tasks.jsonl"), Path("models/gguf"), Path("metrics/gguf.json"))
    scores = {}
    for name, passes in {"base": [0, 0, 0, 1], "sft": [0, 1, 0, 1], "grpo": [1, 1, 1, 0]}.items():
        evaluation(here / f"data/evaluations/{name}-cot", model_identity(here / f"models/{name}"), passes)
        scores[name] = {"pass@1": RATE | {"mean": sum(passes[1:]) / 3}}
    scores["grpo-sft"] = {"mean": 0.0, "low": -0.011, "high": 0.038, "p": 0.3, "established": 0}
    write_metrics(here / "metrics/compare.json", {"toy": {"cot": scores}})
    return here


@pytest.fixture
def world(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(dry_run=True, repo="someone/model", merged="models/grpo", adapter="models/adapters/grpo", sets=()):
    params = load(ROOT / "params.yaml", sets)
    paths = (Path(merged), Path(adapter), Path("models/gguf"), Path("metrics"), Path("data/evaluations"))
    return publish.run(params, repo, *paths, Path("card.md"), dry_run)


def card():
    run()
    return Path("card.md").read_text()


def test_the_card_tells_what_was_measured_and_recorded(world):
    import yaml

    text = card()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["license"]) == ("someone/tiny-base", "apache-2.0")
    for said in (
        REVISION,
        "stored as float32",
        "| toy | cot | **grpo (this model)** | 66.7% | 0.0% to 100.0% |",
        "| toy | cot | base (its base) | 33.3% |",
        "grpo against sft +0.0% (-1.1% to 3.8%), not established",
        "`grpo-F16.gguf`",
        "83 worked examples (of somebody)",
        "| learning rate | 0.0123 | 0.0123 |",
        "| length | 7 epochs | 77 steps of 4 samples a prompt |",
        "| seed | 11 | 11 |",
        "beta 0.5, temperature 0.7, top-p 0.9",
        "LoRA of rank 8, alpha 16",
    ):
        assert said in text, said


def test_params_of_today_are_not_what_the_card_tells(world):
    first = card()
    run(sets=["seed=99", "grpo.steps=5", "sft.lora.rank=64", "base.repo=other/base", "grpo.learning_rate=0.5"])
    assert Path("card.md").read_text() == first


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"toy": True}, "a toy model trained from scratch"),
        ({"gguf": "x-Q8_0.gguf", "sha256": "1" * 64}, "`x-Q8_0.gguf`"),
        ({"folder": "mine", "sha256": "2" * 64}, "not on the Hub (`mine`"),
        (None, "whose origin is not recorded"),
    ],
)
def test_a_base_that_is_not_on_the_hub_is_not_called_one(world, source, said):
    mark = Path("models/grpo/.job.json")
    value = json.loads(mark.read_text())
    value["record"]["source"] = source
    mark.write_text(json.dumps(value))
    text = card()
    assert said in text
    assert "base_model" not in text
    assert "Qwen" not in text


@pytest.mark.parametrize("named", [None, "apache-2.0", "llama3.2"])
def test_the_base_s_licence_is_not_changed(world, named):
    mark = Path("models/grpo/.job.json")
    value = json.loads(mark.read_text())
    value["record"]["source"]["license"] = named
    mark.write_text(json.dumps(value))
    if named == "llama3.2":
        with pytest.raises(
            UsageError, match=r"publish\.license: is apache-2\.0, and the base's, someone/tiny-base, is llama3"
        ):
            run()
    run(sets=[f"publish.license={named or 'mit'}"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_base_that_was_changed_since_is_not_called_the_hubs(world, caplog, name):
    """Its own files, that is: what else lies in the folder makes no other model of it."""
    base = Path("models/base")
    recorded = {"repo": "someone/tiny-base", "revision": REVISION}
    assert source_of(base) == recorded
    if name == "README.md":
        (base / name).write_text("# Mine")
        assert made_of(base, [])["source"] == recorded
    else:
        flip(base / name)
        assert made_of(base, [])["source"] is None
        assert f"models/base: {name} is not as base wrote it" in caplog.text


def test_only_what_is_named_is_pushed(world):
    expected = set(run()["files"])
    assert expected == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "gguf/grpo-F16.gguf"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/trainer.json"),
    }
    for name in (".env", "optimizer.pt", "training_args.bin", "notes.md", "pytorch_model.bin", "other.safetensors"):
        for folder in ("models/grpo", "models/adapters/grpo", "models/gguf"):
            Path(folder, name).write_text("hf_secret")
    for folder in (".git", "checkpoint-7", ".cache/huggingface"):
        Path("models/adapters/grpo", folder).mkdir(parents=True)
        Path("models/adapters/grpo", folder, "config").write_text("hf_secret")
    assert set(run()["files"]) == expected


def test_a_link_out_of_the_folder_is_not_followed(world):
    Path("secret").write_bytes(Path("models/grpo/tokenizer_config.json").read_bytes())
    Path("models/grpo/tokenizer_config.json").unlink()
    Path("models/grpo/tokenizer_config.json").symlink_to(Path("secret").resolve())
    with pytest.raises(JobError, match=r"tokenizer_config.json: is not as the job wrote it"):
        run()


def flip(path):
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: Path("metrics/gguf.json").unlink(), "metrics/gguf.json"),
        (lambda: Path("metrics/compare.json").unlink(), "metrics/compare.json"),
        (lambda: Path("metrics/merge-grpo.json").unlink(), "metrics/merge-grpo.json"),
        (lambda: shutil.copy("metrics/merge-sft.json", "metrics/merge-grpo.json"), "merge-grpo.json: was not measured"),
        (lambda: Path("models/gguf/grpo-F16.gguf").unlink(), "has no *.gguf"),
        (lambda: Path("models/adapters/grpo/adapter_config.json").unlink(), "adapter_config.json"),
        (lambda: flip("models/grpo/model.safetensors"), "model.safetensors: is not as the job wrote it"),
        (lambda: flip("models/adapters/grpo/adapter_model.safetensors"), "is not as the job wrote it"),
        (lambda: flip("models/gguf/grpo-F16.gguf"), "grpo-F16.gguf: is not as the job wrote it"),
        (lambda: shutil.rmtree("data/evaluations/grpo-cot"), "grpo-cot"),
        (lambda: evaluation(Path("data/evaluations/grpo-cot"), "1" * 64, [0, 1, 1, 0]), "none of its scores"),
        (lambda: evaluation(Path("data/evaluations/base-cot"), "1" * 64, [0, 0, 0, 1]), "base is another model"),
        (lambda: Path("metrics/compare.json").write_text('{"toy": 3}'), "compare.json: is not what compare writes"),
        (
            lambda: Path("metrics/compare.json").write_text('{"toy": {"cot": {"grpo": {"pass@1": 0.5}}}}'),
            "compare.json: is not what compare writes",
        ),
        (
            lambda: write_jsonl(Path("data/evaluations/grpo-cot/results-toy.jsonl"), [{"sample": 1, "task_id": "t/1"}]),
            "results-toy.jsonl: has a row without 'passed'",
        ),
        (
            lambda: evaluation(Path("data/evaluations/grpo-cot"), model_identity(Path("models/grpo")), [0, 1, 1, 1]),
            "its pass@1 of grpo on toy (cot) is not that of",
        ),
    ],
)
def test_nothing_is_published_that_is_not_whole_or_not_its_own(world, change, said, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(publish, "push", lambda *_: pytest.fail("pushed"))
    run()
    change()
    with pytest.raises(JobError) as caught:
        run(dry_run=False)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "folders",
    [
        {"merged": "models/sft"},
        {"merged": "models/base"},
        {"adapter": "models/adapters/sft"},
        {"merged": "models/sft", "adapter": "models/adapters/sft"},  # beside GRPO's GGUF files
    ],
)
def test_folders_that_were_not_made_of_one_another_are_refused(world, folders):
    with pytest.raises(JobError, match=r"was not made with this adapter|does not say what it was made of"):
        run(**folders)


@pytest.mark.parametrize("repo", ["nonsense", "a/b/c", "my org/model!", "me/.git", "me/" + "x" * 100, "/x", "me/x--y"])
def test_a_name_that_the_hub_would_refuse_is_refused_in_the_dry_run(world, repo):
    with pytest.raises(UsageError, match="--repo"):
        run(repo=repo)


def test_a_licence_that_the_hub_does_not_know_is_refused():
    for name in ("apache2", "Apache-2.0", "my own"):
        with pytest.raises(UsageError, match=r"publish\.license"):
            load(ROOT / "params.yaml", [f"publish.license={name}"])
    for name in ("llama3.2", "openmdw-1.1"):
        assert load(ROOT / "params.yaml", [f"publish.license={name}"]).publish.license == name


def test_without_a_token_nothing_leaves(world, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UsageError, match="HF_TOKEN"):
        run(dry_run=False)


def test_one_commit_holds_the_card_and_every_file(world, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, repo, exist_ok):
            calls.append(repo)

        def create_commit(self, repo, operations, commit_message):
            calls.append({operation.path_in_repo for operation in operations})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    result = run(dry_run=False)
    assert result["pushed"]
    assert calls == ["hf_x", "someone/model", {"README.md", *result["files"]}]


@pytest.mark.parametrize("error", [OSError("403 Forbidden\nfor url"), httpx.ConnectError("403: no\nroute")])
def test_a_refusal_by_the_hub_is_one_line_without_the_token(world, monkeypatch, error):
    import huggingface_hub

    def refuse(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(JobError, match="403") as caught:
        run(dry_run=False)
    assert "hf_secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line(world):
    done = program.run(Path(), "publish", "--repo", "a/b", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"]["model.safetensors"] == Path("models/grpo/model.safetensors").stat().st_size
    first = sha256(Path("reports/model-card.md"))
    assert program.run(Path(), "publish", "--repo", "a/b", "--dry-run").returncode == 0
    assert sha256(Path("reports/model-card.md")) == first
    assert program.run(Path(), "publish", "--repo", "nonsense", "--dry-run").returncode == 2


@pytest.fixture
def downloaded(world, tmp_path_factory):
    """A fresh folder with what was pushed under the repository's name, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    text = card()
    wanted = publish.collect(Path("models/grpo"), Path("models/adapters/grpo"), Path("models/gguf")).files
    for name, path in wanted.items():
        place = folder / "someone/model" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    shutil.copytree(world / "models/base", folder / "someone/tiny-base")
    return folder, text


def test_the_card_s_program_gives_the_trained_answer_in_a_fresh_folder(downloaded):
    folder, text = downloaded
    (folder / "use.py").write_text(re.search(r"```python\n(.*?)```", text, re.S)[1])
    environment = program.environment(HF_HUB_OFFLINE="1")
    environment.pop("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ANSWER


def test_a_user_s_turn_alone_gets_the_trained_prompt_in_transformers_and_llama_cpp(downloaded):
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    folder, _ = downloaded
    tokenizer = AutoTokenizer.from_pretrained(folder / "someone/model")
    turn = [{"role": "user", "content": TASK}]
    assert tokenizer.apply_chat_template(turn, tokenize=False) == answer_format.chat_prompt(TASK)
    model = Llama(str(folder / "someone/model/gguf/grpo-F16.gguf"), n_ctx=512, verbose=False)
    answer = model.create_chat_completion(turn, temperature=0, max_tokens=200, repeat_penalty=1.0)
    assert answer["choices"][0]["message"]["content"].strip() == ANSWER


def test_the_adapter_stands_on_the_base_that_the_card_names(downloaded, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    folder, text = downloaded
    monkeypatch.chdir(folder)
    program_text = re.search(r"```py\n(.*?)```", text, re.S)[1]
    space = {"AutoModelForCausalLM": AutoModelForCausalLM}
    exec(program_text, space)
    merged = AutoModelForCausalLM.from_pretrained("someone/model")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        assert torch.allclose(space["model"](ids).logits, merged(ids).logits, atol=1e-4)
