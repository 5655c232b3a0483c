"""The model card and the file list, and that nothing leaves without a token, or without its figures."""

import json
from pathlib import Path

import pytest

from jobs import publish
from jobs.common.errors import JobError, UsageError
from jobs.plumbing.params import load
from tests import program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "models/grpo/config.json": "{}",
        "models/grpo/model.safetensors": "x" * 1000,
        "models/grpo/README.md": "the base's own card",
        "models/grpo/.secret": "no",
        "models/adapters/grpo/adapter_config.json": "{}",
        "models/adapters/grpo/README.md": "peft's card",
        "models/gguf/grpo-F16.gguf": "y" * 500,
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    rate = {"mean": 0.775, "low": 0.7, "high": 0.85}
    metrics = {
        "merge-grpo": {"retention": 0.9991, "relative_error": 0.012, "layers": {}},
        "gguf": {
            "reference": {"pass@1": 0.75, "tasks": 16},
            "F16": {"bytes": 500, "kl": 0.0001, "top1": 0.998, "pass@1": 0.75},
        },
        "compare": {
            "humaneval": {
                "cot": {
                    "sft": {"pass@1": rate},
                    "grpo": {"pass@1": rate | {"mean": 0.788}},
                    "grpo-sft": {"mean": 0.013, "low": -0.011, "high": 0.038, "p": 0.3, "established": 0},
                }
            }
        },
    }
    Path("metrics").mkdir()
    for name, values in metrics.items():
        Path(f"metrics/{name}.json").write_text(json.dumps(values))
    return tmp_path


def run(dry_run=True, repo="someone/model"):
    return publish.run(
        load(ROOT / "params.yaml"),
        repo,
        Path("models/grpo"),
        Path("models/adapters/grpo"),
        Path("models/gguf"),
        Path("metrics"),
        Path("card.md"),
        dry_run,
    )


def test_the_card_tells_what_was_measured(world):
    import yaml

    run()
    text = Path("card.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "Qwen/Qwen3-4B-Base"
    assert front["license"] == "apache-2.0"
    for said in (
        "906bfd4b4dc7f14ee4320094d8b41684abff8539",
        "99.91%",
        "float16",
        "| humaneval | cot | grpo | 78.8% | 70.0% to 85.0% |",
        "grpo against sft +1.3% (-1.1% to 3.8%), not established",
        "`grpo-F16.gguf`",
        "You are a code-generation engine.",
        "188 steps",
    ):
        assert said in text, said


def test_the_card_is_the_same_every_time_and_the_list_is_whole(world):
    result = run()
    first = Path("card.md").read_bytes()
    run()
    assert Path("card.md").read_bytes() == first
    assert result["files"] == {
        "config.json": 2,
        "model.safetensors": 1000,
        "adapter/adapter_config.json": 2,
        "gguf/grpo-F16.gguf": 500,
    }
    assert result["bytes"] == 1504
    assert not result["pushed"]


@pytest.mark.parametrize(
    "missing",
    [
        "metrics/gguf.json",
        "metrics/compare.json",
        "metrics/merge-grpo.json",
        "models/gguf/grpo-F16.gguf",
        "models/adapters/grpo/adapter_config.json",
    ],
)
def test_nothing_is_published_that_is_not_whole(world, missing, monkeypatch):
    monkeypatch.setattr(publish, "push", lambda *_: pytest.fail("pushed"))
    Path(missing).unlink()
    with pytest.raises(JobError, match=str(Path(missing).parent)):
        run(dry_run=False)


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
            calls.append(sorted(operation.path_in_repo for operation in operations))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert run(dry_run=False)["pushed"]
    assert calls == [
        "hf_x",
        "someone/model",
        ["README.md", "adapter/adapter_config.json", "config.json", "gguf/grpo-F16.gguf", "model.safetensors"],
    ]


def test_a_refusal_by_the_hub_is_one_line_without_the_token(world, monkeypatch):
    import huggingface_hub

    def refuse(self, *args, **kwargs):
        raise OSError("403 Forbidden\nfor url")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(JobError, match="403") as caught:
        run(dry_run=False)
    assert "hf_secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line(world):
    def cli(*arguments):
        return program.run(Path(), "publish", *arguments)

    done = cli("--repo", "a/b", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == 1504
    assert Path("reports/model-card.md").exists()
    assert cli("--repo", "nonsense", "--dry-run").returncode == 2
