"""GRPO whose completions are sampled one step ahead, by a process of its own (grpo.staleness: 1)."""

import csv
import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from jobs.common.errors import UsageError
from jobs.common.files import read_json, read_jsonl, sha256
from jobs.plumbing.params import load
from tests import program, ranks
from tests import toy as models
from tests.jobs.test_grpo import OUTS
from tests.jobs.test_grpo import SMALL as SMALL_GRPO
from tests.program import ROOT

AHEAD = [
    *SMALL_GRPO, "grpo.staleness=1", "grpo.importance_correction=true", "grpo.top_p=1.0", "grpo.beta=0.0",
    "grpo.loss=dapo", "grpo.equal_groups=drop", "grpo.log_completions_every=1", "grpo.warmup_ratio=0.0",
    "grpo.steps=5", "sandbox.workers=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staleness")
    models.make_world(folder)
    return folder


def words(world: Path) -> list:
    inputs = ["--base", world / "base", "--adapter", world / "sft", "--tasks", world / "train.jsonl"]
    return [*inputs, "--validation", world / "validation.jsonl"]


def lengths_earn() -> None:
    """A random model solves nothing, so its answers earn by their lengths: every step changes the adapter."""
    from jobs.grpo.rewards import Scorer

    original = Scorer.functions

    def functions(self):
        _, weights = original(self)

        def earned(weight):
            def reward(completions, completion_ids, task_id, log_extra=None, **_):
                self.scores(completions, task_id)
                if weight == weights[0] and log_extra is not None:
                    log_extra("task_id", list(task_id))
                    log_extra("status", ["no answer"] * len(task_id))
                return [float(sum(ids) % 7) for ids in completion_ids]

            return reward

        found = [earned(weight) for weight in weights]
        for function, name in zip(found, ("format", "reasoning", "correctness"), strict=True):
            function.__name__ = name
        return found, weights

    Scorer.functions = functions


def grpo(world: Path, out: Path, *settings: str, patch=lengths_earn, **options) -> ranks.Ended:
    (ended,) = ranks.run(out, "grpo", *words(world), settings=[*AHEAD, *settings], ranks=1, patch=patch, **options)
    return ended


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in OUTS}


def curve(folder: Path) -> list[dict[str, str]]:
    with open(folder / "plots/grpo.csv") as file:
        return list(csv.DictReader(file))


def checkpoints(folder: Path) -> Path:
    return next(path for path in (folder / ".checkpoints/grpo").iterdir() if path.is_dir())


def completions(folder: Path, step: int) -> list[str]:
    return [row["completion"] for row in read_jsonl(folder / "data/grpo/completions.jsonl") if row["step"] == step]


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """With a checkpoint after every step, all of them kept."""
    out = tmp_path_factory.mktemp("ahead")
    ended = grpo(world, out, "checkpoints.every=1", "checkpoints.keep=9")
    assert ended.code == 0, ended.stderr
    return out


def test_the_curve_says_how_old_the_completions_are_and_what_that_makes(done):
    rows = curve(done)
    assert [float(row["staleness"]) for row in rows] == [0, 1, 1, 1, 1]
    differences = [float(row["sampling_logp_difference"]) for row in rows]
    assert differences[0] < 1e-5 < 1e-4 < min(differences[1:]), differences
    assert all(float(row["importance_ratio"]) > 0 for row in rows)
    times = read_json(done / "reports/provenance/grpo.json")["seconds_of_a_step"]
    assert times["rollout"] >= 0 and times["sampling"] > 0
    names = (done / "plots/grpo.csv").read_text().partition("\n")[0]
    assert names.endswith("staleness,sampling_logp_difference,importance_ratio")


def test_a_steps_completions_are_of_the_adapter_two_steps_before_its_end(world, done, tmp_path):
    """Sampled again here, in one process, by each checkpoint's adapter and the seed of the run: one adapter alone fits."""
    import torch

    from jobs.grpo.ahead import drawn_seed
    from jobs.grpo.rollout import decoded
    from jobs.inference import sample_seed
    from jobs.training import loop
    from jobs.weights.tokenizer import load_tokenizer

    params = load(ROOT / "params.yaml", AHEAD)
    tokenizer = load_tokenizer(world / "base")
    model = loop.load_model(world / "base", params.sft.lora, world / "sft", params.seed).eval()
    kept = checkpoints(done)

    def sampled_by(place: Path, prompts: list[list[int]], state) -> list[list[int]]:
        loop.load_adapter(model, place)
        torch.set_rng_state(state)
        seed = drawn_seed()
        seeds = [sample_seed(seed, "", i) for i in range(len(prompts))]
        return decoded(model, prompts, seeds, params.grpo.temperature, params.grpo, {tokenizer.eos_token_id})

    assert read_json(kept / "checkpoint-1/ahead.json")["policy"] == 0
    for number in (1, 2):  # within an epoch, at whose start the loader of the tasks draws a number too
        batch = read_json(kept / f"checkpoint-{number + 1}" / "ahead.json")
        assert (batch["step"], batch["policy"]) == (number + 2, number)
        state = torch.load(kept / f"checkpoint-{number}" / "rng_state.pth", weights_only=False)["cpu"]
        places = [world / "sft", *(kept / f"checkpoint-{i}" for i in (1, 2, 3, 4))]
        fits = [i for i, place in enumerate(places) if sampled_by(place, batch["prompts"], state) == batch["ids"]]
        assert fits == [number]
        texts = tokenizer.batch_decode(batch["ids"], skip_special_tokens=True)
        assert texts == completions(done, number + 2)


def test_the_same_bytes_however_the_processes_times_fall(world, done, tmp_path):
    """Here the trainer, or rather what it waits for, is much slower."""
    ended = grpo(world, tmp_path, "checkpoints.every=1", "checkpoints.keep=9", patch=slow)
    assert ended.code == 0, ended.stderr
    assert hashes(tmp_path) == hashes(done)


def slow() -> None:
    from jobs.grpo.trainer import Trainer

    lengths_earn()
    original = Trainer.training_step

    def step(self, *arguments, **options):
        time.sleep(0.7)
        return original(self, *arguments, **options)

    Trainer.training_step = step


def die(step: int) -> None:
    from jobs.grpo.trainer import Trainer

    lengths_earn()
    original = Trainer._calculate_rewards

    def dying(self, *arguments):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    Trainer._calculate_rewards = dying


def test_a_killed_run_goes_on_to_the_bytes_of_an_undisturbed_one(world, tmp_path):
    """Killed in step 4; it goes on after step 2, with the completions that were under way there."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert grpo(world, whole).code == 0
    assert grpo(world, broken, patch=functools.partial(die, 3)).code == -signal.SIGKILL
    again = grpo(world, broken)
    assert again.code == 0 and "checkpoint-2" in again.stderr.partition("resuming from")[2], again.stderr
    assert hashes(broken) == hashes(whole)


def test_a_run_whose_sampling_process_is_killed_ends_with_one_line_within_three_seconds(world, tmp_path):
    """While the trainer is in the middle of a step that takes a minute."""
    ended = grpo(world, tmp_path, patch=kill_the_server)
    assert ended.code == 1
    assert "error: grpo.staleness: the process that samples has ended by SIGKILL" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.time() - float((tmp_path / "killed").read_text()) < 3
    assert not (tmp_path / "models").exists()


def kill_the_server() -> None:
    from jobs.grpo.trainer import Trainer

    original = Trainer.training_step

    def step(self, *arguments, **options):
        if self.state.global_step == 2:
            Path("killed").write_text(str(time.time()))
            os.kill(self.ahead.remote.process.pid, signal.SIGKILL)
            time.sleep(60)
        return original(self, *arguments, **options)

    Trainer.training_step = step


def test_the_sampling_process_ends_with_the_trainer(world, tmp_path):
    ended = grpo(world, tmp_path, patch=leave)
    assert ended.code == -signal.SIGKILL
    server = int((tmp_path / "server").read_text())
    deadline = time.monotonic() + 10
    while alive(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def leave() -> None:
    from jobs.grpo.trainer import Trainer

    original = Trainer.training_step

    def step(self, *arguments, **options):
        if self.state.global_step == 1:
            Path("server").write_text(str(self.ahead.remote.process.pid))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **options)

    Trainer.training_step = step


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_stops_both_processes(world, tmp_path, number, code):
    process = program.start(tmp_path, "grpo", *words(world), settings=[*AHEAD, "grpo.steps=400", "grpo.patience=0"])
    drawn = tmp_path / "plots/grpo.csv"
    while not (drawn.exists() and len(drawn.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    (server,) = (pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_server(pid, tmp_path))
    program.ends_of_signal(process, number, code)
    assert not alive(server)


def is_server(pid: int, folder: Path) -> bool:
    """Whether a process in `folder` was started by multiprocessing to run a function."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"multiprocessing.spawn" in command and Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


def test_what_stops_the_sampling_process_is_said_by_the_run(world, tmp_path):
    """It cannot put a checkpoint's adapter into its model; the trainer can."""
    ended = grpo(world, tmp_path, patch=other_adapter)
    assert ended.code == 1
    assert "adapter_model.safetensors: the adapter cannot be loaded" in ended.stderr
    assert "Traceback" not in ended.stderr


def other_adapter() -> None:
    from jobs.grpo.rollout_server import RemoteRollout

    original = RemoteRollout.ask

    def ask(self, what, model, *arguments, **options):
        if model is None or self.number < 1:
            return original(self, what, model, *arguments, **options)

        class Broken:
            def save_pretrained(self, folder, **_):
                folder.mkdir()
                (folder / "adapter_model.safetensors").write_text("nothing")

        return original(self, what, Broken(), *arguments, **options)

    RemoteRollout.ask = ask


def test_validation_stops_a_run_early_and_keeps_the_best_with_completions_under_way(world, tmp_path):
    settings = ("grpo.validate_every=1", "grpo.validate_patience=2", "grpo.validate_samples=2", "grpo.keep=best")
    ended = grpo(world, tmp_path, *settings, "checkpoints.every=1")
    assert ended.code == 0, ended.stderr
    assert "none of 2 validations was better" in ended.stderr
    assert len(curve(tmp_path)) == 2
    assert (tmp_path / "models/adapters/grpo/last/adapter_model.safetensors").is_file()


def test_mix_and_curriculum_are_looked_up_ahead_and_a_kl_term_does_no_harm(world, tmp_path):
    from jobs.common.files import write_jsonl

    rows = read_jsonl(world / "train.jsonl")
    write_jsonl(
        tmp_path / "mixed.jsonl",
        [row | {"source": "few" if i < 3 else "many", "pass_rate": i / 6} for i, row in enumerate(rows)],
    )
    settings = [*AHEAD, "grpo.mix={few: 1, many: 1}", "grpo.curriculum=0.5", "grpo.beta=0.05"]
    inputs = ["--base", world / "base", "--adapter", world / "sft", "--tasks", tmp_path / "mixed.jsonl"]
    for count in ("one", "two"):
        (ended,) = ranks.run(tmp_path / count, "grpo", *inputs, settings=settings, ranks=1, patch=lengths_earn)
        assert ended.code == 0, ended.stderr
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


VLLM = """
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

SamplingParams = TokensPrompt = SimpleNamespace


class Held(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.inner = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)

    def load_weights(self, pairs):
        own = dict(self.inner.named_parameters())
        found = set()
        for name, weight in pairs:
            own[name].data.copy_(weight)
            found.add("inner." + name)
        return found


class LLM:
    def __init__(self, base, **options):
        assert options["dtype"] == "float16" and "enable_lora" not in options
        self.held, self.drawn = Held(base), torch.Generator().manual_seed(options["seed"])
        core = SimpleNamespace(get_output=lambda: SimpleNamespace(outputs=self.over))
        self.states = {}
        self.llm_engine = SimpleNamespace(
            engine_core=core, output_processor=SimpleNamespace(request_states=self.states)
        )

    def apply_model(self, function):
        return [function(self.held)]

    def reset_prefix_cache(self):
        pass

    def generate(self, requests, sampling, lora_request, use_tqdm):
        return [SimpleNamespace(outputs=[self.one(r, sampling) for _ in range(sampling.n)]) for r in requests]

    def one(self, request, sampling):
        draw = self.drawn if getattr(sampling, "seed", None) is None else torch.Generator().manual_seed(sampling.seed)
        ids, logps = [], []
        with torch.inference_mode():
            while len(ids) < 6:
                given = torch.tensor([[*request.prompt_token_ids, *ids]])
                logits = self.held.inner(given).logits[0, -1] / (sampling.temperature or 1e-6)
                token = int(torch.multinomial(logits.softmax(-1), 1, generator=draw))
                ids.append(token)
                logps.append(float(logits.log_softmax(-1)[token]))
        detokenizer = SimpleNamespace(output_token_ids=ids[:-1])
        self.states["it"] = SimpleNamespace(prompt_token_ids=request.prompt_token_ids, detokenizer=detokenizer)
        self.over = [SimpleNamespace(request_id="it", new_token_ids=ids[-1:], finish_reason="length")]
        self.llm_engine.engine_core.get_output()
        return SimpleNamespace(token_ids=ids, logprobs=SimpleNamespace(logprobs=logps))
"""


def with_vllm(place: str) -> None:
    from jobs.grpo.rewards import Scorer

    lengths_earn()
    sys.path.insert(0, place)  # the process that samples has the path of this one
    original = Scorer.start

    def start(self, completions, task_ids, pending=None):
        if pending is not None:
            with open("told", "a") as file:
                file.write("told\n" * len(completions))
        original(self, completions, task_ids, pending)

    Scorer.start = start


def test_the_process_has_vllm_over_its_own_model(world, tmp_path):
    """A stand-in for it, which holds the sum of base and adapter in float16 and samples six tokens."""
    (tmp_path / "lib/vllm").mkdir(parents=True)
    (tmp_path / "lib/vllm/__init__.py").write_text(VLLM)
    patch = functools.partial(with_vllm, str(tmp_path / "lib"))
    settings = ("grpo.rollout=vllm_merged", "grpo.validate_every=2", "grpo.keep=best", "grpo.validate_samples=2")
    for name in ("one", "two"):
        ended = grpo(world, tmp_path / name, *settings, patch=patch)
        assert ended.code == 0, ended.stderr
    rows = curve(tmp_path / "one")
    differences = [float(row["sampling_logp_difference"]) for row in rows]
    assert [float(row["staleness"]) for row in rows] == [0, 1, 1, 1, 1]
    assert differences[0] < 1e-3 < min(differences[1:])
    assert (tmp_path / "one/told").read_text() == "told\n" * 5 * 8, "each answer is sent to be judged as it ends"
    assert [row["validation_greedy"] != "" for row in rows] == [False, True, False, True, True]
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    folders = Path("/dev/shm").glob(f"jobs-adapter-in{os.stat('/proc/self/ns/pid').st_ino}-*")
    assert all(Path("/proc", path.name.split("-")[3]).exists() for path in folders), "nothing of ours is left"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("engine=unsloth", "engine to transformers"),
        ("importance_correction=false", "importance_correction to true"),
        ("top_p=0.95", "top_p to 1"),
        ("iterations=2", "iterations to 1"),
        ("processes=2", "processes to 1"),
        ("turns=2", "turns to 1"),
        ("equal_groups=refill", "equal_groups to drop or keep"),
    ],
)
def test_what_cannot_be_sampled_ahead_is_refused_by_its_key(setting, said):
    load(ROOT / "params.yaml", AHEAD)
    with pytest.raises(UsageError) as caught:
        load(ROOT / "params.yaml", [*AHEAD, f"grpo.{setting}"])
    assert str(caught.value).endswith(f"grpo: staleness is 1, which needs other settings: set {said}")


def test_a_second_card_is_wanted_where_there_are_cards(monkeypatch):
    import torch

    from jobs.grpo.rollout_server import second_card

    assert second_card("0,1") is None, "there is none here"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [second_card(visible) for visible in ("3,1", "GPU-a,GPU-b,GPU-c", None, "")] == ["1", "GPU-b", "1", "1"]
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES is 3: name two, or set staleness to 0"):
        second_card("3")
