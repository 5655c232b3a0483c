"""What breaks around a training run ends in one line and exit code 1, and loses nothing that was done before."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from jobs.common import answer_format
from jobs.common.files import sha256, write_jsonl
from jobs.toy import world as toy
from tests import program
from tests import toy as models

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "sft": ["sft.engine=transformers", "sft.optimizer=adamw_torch", "sft.epochs=5", "sft.learning_rate=0.01",
            "sft.lora.rank=8", "checkpoints.every=6"],
    # 4 and 3 steps an epoch, so that checkpoints lie in the middle of a later one
    "grpo": ["grpo.engine=transformers", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch", "grpo.steps=5",
             "grpo.generations=4", "grpo.batch_size=8", "grpo.gradient_accumulation=1", "grpo.max_completion_length=16",
             "grpo.learning_rate=0.01", "grpo.log_completions_every=1", "sft.lora.rank=8", "checkpoints.every=2",
             "sandbox.workers=1"],
}  # fmt: skip
OUTS = {"sft": ["models/adapters/sft", "plots/sft.csv", "metrics/sft.json"],
        "grpo": ["models/adapters/grpo", "plots/grpo.csv", "metrics/grpo.json", "data/grpo/completions.jsonl"]}  # fmt: skip
STEPS = {"sft": 20, "grpo": 5}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A folder of its own, one thread, and no network: training must not even try."""

    def connect(self, address):
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address}")
        return original(self, address)

    original = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    models.make_model(folder / "base", hidden=64)
    models.make_adapter(folder / "base", folder / "adapter", rank=8)
    write_jsonl(
        folder / "examples.jsonl",
        [
            {"prompt": f"def f{i}(x):\n", "answer": answer_format.render(f"add {i}", f"def f{i}(x): return x + {i}")}
            for i in range(8)
        ],
    )
    write_jsonl(folder / "tasks.jsonl", toy.tasks(1, {"train": 6})["train"])
    return folder


def words(job, world, *settings, **inputs):
    given = (
        {"base": world / "base"}
        | (
            {"examples": world / "examples.jsonl"}
            if job == "sft"
            else {"adapter": world / "adapter", "tasks": world / "tasks.jsonl"}
        )
        | inputs
    )
    sets = [word for setting in (*SETTINGS[job], *settings) for word in ("--set", setting)]
    return [*sets, *(word for name, path in given.items() for word in (f"--{name}", str(path)))]


def invoke(job, world, *settings, **inputs):
    given = ["--params", str(ROOT / "params.yaml"), *words(job, world, *settings, **inputs)]
    module = {"sft": "jobs.sft", "grpo": "jobs.grpo.job"}[job]
    return CliRunner().invoke(import_module(module).command, given)


def works(job, world, *settings):
    result = invoke(job, world, *settings)
    assert result.exit_code == 0, result.output
    return outs(job)


def outs(job):
    return {name: sha256(Path(name)) for name in OUTS[job]}


def fails(job, world, *says, settings=(), **inputs):
    """One line, the last one; a traceback would be an exception other than SystemExit."""
    result = invoke(job, world, *settings, **inputs)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert not [line for line in before if "rror" in line]
    for text in says:
        assert text in last
    assert not [p for p in Path().rglob(".*.partial") if p.is_dir() or p.is_file()]
    assert not Path(OUTS[job][0]).exists(), "nothing that looks whole"
    return last


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """Hashes of every out, by job, of runs that nothing disturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    hashes, here = {}, os.getcwd()
    for job in OUTS:
        os.chdir(tmp_path_factory.mktemp(f"undisturbed-{job}"))
        hashes[job] = works(job, world)
    os.chdir(here)
    torch.set_num_threads(threads)
    return hashes


def checkpoints(job):
    return sorted(Path(".checkpoints", job).glob("*/checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))


def remove_outs(job):
    for name in OUTS[job]:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


@pytest.mark.parametrize("job", OUTS)
def test_a_run_killed_after_a_checkpoint_resumes_and_ends_with_the_same_bytes(world, undisturbed, job, caplog):
    process = program.start(Path(), job, *words(job, world))
    deadline = time.monotonic() + 300
    while not list(Path(".checkpoints").glob("*/*/*/MANIFEST.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
        assert process.poll() is None, process.stderr.read()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not Path(OUTS[job][0]).exists()
    with caplog.at_level("INFO"):
        assert works(job, world) == undisturbed[job]
    assert "resuming from .checkpoints" in caplog.text


STUCK = """
import runpy, sys
from pathlib import Path
import transformers

plain = transformers.Trainer.training_step

def step(self, *arguments, **options):
    if self.state.global_step == {after}:
        Path("stuck").touch()
        sum(range(10**12))  # as one long operation: no signal's handler runs before its end
    return plain(self, *arguments, **options)

transformers.Trainer.training_step = step
runpy.run_module("jobs", run_name="__main__")
"""


@pytest.mark.parametrize(("job", "number", "code"), [("sft", signal.SIGTERM, 143), ("grpo", signal.SIGINT, 130)])
def test_a_run_that_is_stopped_in_a_step_ends_at_once_and_resumes(world, undisturbed, job, number, code, caplog):
    script = STUCK.format(after={"sft": 7, "grpo": 3}[job])
    process = subprocess.Popen(
        [sys.executable, "-c", script, *program.command(job, *words(job, world))[3:]],
        env=program.environment(),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not Path("stuck").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(number)
    began = time.monotonic()
    assert process.wait(60) == code
    assert time.monotonic() - began < 3
    assert not any(Path(name).exists() for name in OUTS[job] if not name.startswith("plots/")), (
        "a curve grows as it runs"
    )
    with caplog.at_level("INFO"):
        assert works(job, world) == undisturbed[job]
    assert "resuming from .checkpoints" in caplog.text


@pytest.mark.parametrize("job", OUTS)
def test_a_run_killed_after_its_last_step_takes_no_further_one(world, undisturbed, job, caplog):
    works(job, world)
    remove_outs(job)
    with caplog.at_level("INFO"):
        assert works(job, world) == undisturbed[job]
    assert f"checkpoint-{STEPS[job]}" in caplog.text
    assert [p.name for p in checkpoints(job)][-1] == f"checkpoint-{STEPS[job]}"


@pytest.mark.parametrize("job", OUTS)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_corrupted_checkpoint_is_seen_and_the_one_before_it_used(world, undisturbed, job, name, caplog):
    if job == "grpo" and name != "optimizer.pt":
        pytest.skip("the same code as for sft")
    works(job, world)
    remove_outs(job)
    before, newest = checkpoints(job)
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / name).write_bytes(data)
    with caplog.at_level("INFO"):
        assert works(job, world) == undisturbed[job]
    assert f"{newest} is broken" in caplog.text
    assert f"resuming from {before}" in caplog.text


def test_no_more_checkpoints_are_kept_than_params_say_and_none_is_lost_before_the_next_is_whole(world, monkeypatch):
    from jobs.plumbing import checkpoint

    seen = []
    seal = checkpoint.seal

    def watched(path):
        seen.append([checkpoint.whole(p) for p in checkpoints("sft") if p != path])
        seal(path)

    monkeypatch.setattr(checkpoint, "seal", watched)
    works("sft", world, "checkpoints.keep=1")
    assert seen == [[], [True], [True], [True]]
    assert [p.name for p in checkpoints("sft")] == ["checkpoint-20"]


@pytest.mark.parametrize("change", ["param", "input", "code"])
def test_a_checkpoint_never_crosses_a_change(world, tmp_path, change, caplog, monkeypatch):
    from jobs.plumbing import checkpoint

    works("sft", world)
    remove_outs("sft")
    settings, inputs = (), {}
    if change == "param":
        settings = ("sft.learning_rate=0.011",)
    elif change == "input":
        lines = (world / "examples.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "examples.jsonl").write_text("".join(lines[::-1]))
        inputs = {"examples": tmp_path / "examples.jsonl"}
    else:
        (tmp_path / "another.py").write_text("another")
        monkeypatch.setattr(checkpoint, "code", lambda *names: [tmp_path / "another.py"])
    with caplog.at_level("INFO"):
        result = invoke("sft", world, *settings, **inputs)
    assert result.exit_code == 0, result.output
    assert "resuming" not in caplog.text
    assert len([path for path in Path(".checkpoints/sft").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("job", [*OUTS, "sample"])
def test_a_checkpoint_knows_the_code_that_dvc_knows(job, tmp_path, monkeypatch):
    """Code that is new for DVC must be new for the checkpoint, or a rerun would give the old code's result."""
    from jobs.plumbing import checkpoint

    monkeypatch.chdir(tmp_path)
    files = checkpoint.code(job)
    assert ROOT / "jobs/common/answer_format.py" in files
    keys = {checkpoint.folder(job, {}).name}
    for left_out in files:
        monkeypatch.setattr(checkpoint, "code", lambda job, without=left_out: tuple(f for f in files if f != without))
        keys.add(checkpoint.folder(job, {}).name)
    assert len(keys) == 1 + len(files), "every file of the closure is part of the key"


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def copied(world, tmp_path, name):
    return Path(shutil.copytree(world / name, tmp_path / f"broken-{name}"))


@pytest.mark.parametrize("job", OUTS)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors", "model.safetensors: is "),
        ("config.json", "config.json: is not valid JSON"),
        ("tokenizer.json", "tokenizer cannot be loaded"),
    ],
)
def test_a_truncated_model(world, tmp_path, job, name, says):
    base = copied(world, tmp_path, "base")
    cut(base / name)
    fails(job, world, "broken-base", says, base=base)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_truncated_adapter(world, tmp_path, name):
    adapter = copied(world, tmp_path, "adapter")
    cut(adapter / name)
    fails("grpo", world, "broken-adapter", adapter=adapter)


def test_an_adapter_of_another_model(world, tmp_path):
    other = models.make_model(tmp_path / "other", hidden=128)
    adapter = models.make_adapter(other, tmp_path / "broken-adapter", rank=8)
    fails("grpo", world, "broken-adapter", "size mismatch", adapter=adapter)


@pytest.mark.parametrize("job", OUTS)
def test_a_base_with_a_weight_that_is_no_number(world, tmp_path, job):
    base = copied(world, tmp_path, "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("1.mlp.down_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    fails(job, world, str(base), name, "not finite", base=base)


@pytest.mark.parametrize("job", OUTS)
def test_a_tokenizer_that_does_not_fit(world, tmp_path, job):
    base = copied(world, tmp_path, "base")
    models.make_tokenizer(base, vocab=600)
    rows, tokens = 300, len(import_module("transformers").AutoTokenizer.from_pretrained(base))
    assert tokens > rows
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:rows].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = (base / "config.json").read_text().replace('"vocab_size": 512', f'"vocab_size": {rows}')
    (base / "config.json").write_text(config)
    fails(job, world, "broken-base", f"has {tokens} tokens, the model embeds only {rows}", base=base)


@pytest.mark.parametrize("job", OUTS)
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_loss_that_is_no_number(world, monkeypatch, job, max_grad_norm):
    """Without clipping there is no gradient norm to tell, and transformers would log the loss as 0."""
    from transformers import Trainer

    trainer, name = {"sft": (Trainer, "compute_loss"), "grpo": (import_module("trl").GRPOTrainer, "_compute_loss")}[job]
    loss = getattr(trainer, name)

    def broken(self, *arguments, **options):
        result = loss(self, *arguments, **options)
        bad = float("nan") if self.state.global_step == 2 else 1.0
        return (result[0] * bad, *result[1:]) if isinstance(result, tuple) else result * bad

    monkeypatch.setattr(trainer, name, broken)
    fails(job, world, "step 3: ", "is nan; lower the learning_rate", settings=[f"{job}.max_grad_norm={max_grad_norm}"])


def test_a_base_that_changes_during_grpo(world, monkeypatch):
    """One weight by one bit, as a trainer would that merges its adapter into the base and takes it out again."""
    from jobs.grpo import trainer

    original = trainer.Trainer._generate_single_turn

    def drift(self, *arguments, **options):
        if self.state.global_step == 2:
            weight = dict(self.model.named_parameters())[
                "base_model.model.model.layers.0.post_attention_layernorm.weight"
            ]
            weight.data.view(torch.int32)[5] ^= 1
        return original(self, *arguments, **options)

    monkeypatch.setattr(trainer.Trainer, "_generate_single_turn", drift)
    fails("grpo", world, "the base weights changed during training")


def test_a_reward_that_raises(world, monkeypatch):
    from jobs.grpo.rewards import Scorer

    def broken(self, text, verdict):
        raise ZeroDivisionError("a reward\nwith a bug")

    monkeypatch.setattr(Scorer, "score", broken)
    fails("grpo", world, "step 1: a reward failed (ZeroDivisionError: a reward with a bug)")


@pytest.mark.parametrize("job", OUTS)
def test_a_gpu_out_of_memory(world, undisturbed, job, monkeypatch):
    """At the fourth step: the checkpoint before it is used when there is room again."""
    from transformers import Trainer

    step = Trainer.training_step

    def crowded(self, *arguments, **options):
        if self.state.global_step == (3 if job == "grpo" else 10):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 79 GiB")
        return step(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", crowded)
        fails(job, world, "the GPU ran out of memory: lower batch_size", "Tried to allocate 20.00 GiB. GPU 0")
    assert checkpoints(job)
    assert works(job, world) == undisturbed[job]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "def f(x):", "answer": "x"}\n{"prompt": "de', "line 2 is not valid JSON"),
        (
            '{"prompt": "def f(x):", "answer": "x"}\nnonsense\n{"prompt": "", "answer": ""}\n',
            "line 2 is not valid JSON",
        ),
        ('{"prompt": "def f(x):"}\n', "row 1 has no 'answer'"),
        ("", "has no examples"),
        ('{"prompt": 1, "answer": null}\n', "row 1"),
    ],
)
def test_broken_examples(world, text, says):
    Path("broken.jsonl").write_text(text)
    fails("sft", world, "broken.jsonl", says, examples=Path("broken.jsonl"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"task_id": "a"}\n' * 6, "line 1 (a): has no prompt"),
        ("", "broken.jsonl: has no tasks"),
        ('{"task_id": "a", "prom', "line 1 is not valid"),
    ],
)
def test_broken_tasks(world, text, says):
    Path("broken.jsonl").write_text(text)
    result = invoke("grpo", world, tasks=Path("broken.jsonl"))
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2)
    assert "broken.jsonl" in result.stderr.splitlines()[-1]
    assert says in result.stderr.splitlines()[-1]


@pytest.fixture
def disk(tmp_path):
    """mounted(FOLDER, OPTIONS) makes FOLDER a file system of its own; mounted again, changes its options."""
    done = []

    def mounted(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        again = folder in done
        words = ["-o", f"remount,{options}"] if again else ["-t", "tmpfs", "-o", options, "tmpfs"]
        result = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {result.stderr.strip()}")
        if not again:
            done.append(folder)

    yield mounted
    from jobs.plumbing import checkpoint

    checkpoint.let_go()  # as the end of the job's process would
    for folder in done:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("job", OUTS)
def test_a_disk_that_is_full_at_a_checkpoint(world, undisturbed, disk, tmp_path, job, caplog):
    works(job, world)
    pages = sum(-(-p.stat().st_size // 4096) for p in checkpoints(job)[0].rglob("*") if p.is_file())
    shutil.rmtree(".checkpoints")
    remove_outs(job)
    disk(tmp_path / ".checkpoints", f"size={6 * pages}k")  # for one and a half
    fails(job, world, ".checkpoints/", "cannot be written")
    assert checkpoints(job)
    disk(tmp_path / ".checkpoints", "size=64m")
    with caplog.at_level("INFO"):
        assert works(job, world) == undisturbed[job]
    assert "resuming from" in caplog.text


@pytest.mark.parametrize("options", ["size=16k", "ro"])
def test_an_output_that_cannot_be_written_costs_no_step(world, undisturbed, disk, tmp_path, options, caplog):
    disk(tmp_path / "models", options)
    fails("sft", world, "models", "cannot be written")
    disk(tmp_path / "models", "rw,size=64m")
    with caplog.at_level("INFO"):
        assert works("sft", world) == undisturbed["sft"]
    assert "checkpoint-20" in caplog.text
