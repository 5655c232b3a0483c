"""Several processes draw one model's samples: the same bytes for every number of them, or a refusal."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from jobs.common.errors import JobError, UsageError
from jobs.common.files import write_jsonl
from jobs.plumbing.params import load
from jobs.sampling import shards
from jobs.sampling.benchmark import Drawn, calls, draw
from tests.toy import make_model

PARAMS = Path(__file__).parents[2] / "params.yaml"
SET = ["evaluate.engine=transformers", "evaluate.dtype=float32", "evaluate.max_tokens=12", "evaluate.batch_size=6",
       "evaluate.sampled={n: 2, temperature: 0.9, top_p: 0.95}"]  # fmt: skip


def task(number: int) -> dict:
    name = f"f{number}"
    return {"task_id": f"T/{number}", "prompt": f"def {name}(x):\n    # {'longer ' * number}\n", "entry_point": name,
            "setup": "", "reference": f"def {name}(x):\n    return x\n", "tests": [f"assert {name}(1) == 1"]}  # fmt: skip


TASKS = [task(number) for number in range(7)]


@pytest.fixture(autouse=True)
def no_cards(monkeypatch):
    """A job that trained in this process has taken the first one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny random model and a benchmark."""
    place = tmp_path_factory.mktemp("files")
    make_model(place / "model", hidden=128, layers=1)
    (place / "tasks").mkdir()
    write_jsonl(place / "tasks/toy.jsonl", TASKS)
    return place


@pytest.fixture
def here(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDS", raising=False)
    return files


def written(drawn: Drawn, name: str) -> dict[str, bytes]:
    Path(name).mkdir()
    drawn.write(Path(name))
    drawn.forget()
    return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


def ask(here, name: str) -> Drawn:
    return draw(load(PARAMS, SET), here / "model", None, "cot", {"toy": TASKS}, here / "tasks", name)


def test_any_number_of_processes_draws_the_same_samples_and_goes_on_where_another_stopped(here, monkeypatch):
    one = written(ask(here, "one"), "one")
    rows = [json.loads(line) for line in one["samples-toy.jsonl"].splitlines()]
    assert len(rows) == 21 and len({row["text"] for row in rows}) > 14, "which would differ if anything was mixed up"
    monkeypatch.setenv("SHARDS", "2")
    two = ask(here, "several")
    kept = two.checkpoint / "toy.jsonl"
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) > 3
    two.write(Path())
    assert Path("samples-toy.jsonl").read_bytes() == one["samples-toy.jsonl"]
    kept.write_text("".join(lines[:2]) + lines[2][:20])
    monkeypatch.setenv("SHARDS", "3")
    assert written(ask(here, "several"), "several") == one


def test_a_process_that_is_killed_fails_the_job_in_one_line_and_none_is_left(here, monkeypatch):
    monkeypatch.setenv("SHARDS", "2")
    monkeypatch.setattr(shards, "answer", dies)
    with pytest.raises(JobError, match=r"SHARDS: a process that drew samples was killed"):
        ask(here, "out")
    assert not children()


# A stand-in for vLLM with an engine in a process of its own: no daemon, and ended by what vLLM ends its by.
VLLM = """
import multiprocessing, os, time, weakref
from types import SimpleNamespace

def engine(parent):
    while os.getppid() == parent:
        time.sleep(0.05)

def end(process):
    process.terminate()
    process.join()

class LLM:
    def __init__(self, model, **options):
        process = multiprocessing.get_context("spawn").Process(target=engine, args=(os.getpid(),))
        process.start()
        at_the_end = weakref.finalize(self, end, process)
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=4096), engine_core=SimpleNamespace(shutdown=at_the_end)
        )

    def generate(self, prompts, params, **_):
        texts = [f"{len(prompt['prompt_token_ids'])} {one.seed}" for prompt, one in zip(prompts, params)]
        ends = [SimpleNamespace(text=text, token_ids=[1], finish_reason="stop") for text in texts]
        return [SimpleNamespace(outputs=[end]) for end in ends]

def SamplingParams(**fields):
    return SimpleNamespace(**fields)
"""


def test_processes_with_an_engine_in_a_process_of_its_own_each_end(here, tmp_path, monkeypatch):
    (tmp_path / "lib/vllm/lora").mkdir(parents=True)
    (tmp_path / "lib/vllm/__init__.py").write_text(VLLM)
    (tmp_path / "lib/vllm/lora/__init__.py").write_text("")
    (tmp_path / "lib/vllm/lora/request.py").write_text("LoRARequest = tuple")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    for name in ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_BATCH_INVARIANT", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "unset")  # the job sets them, and the tests after this one are not to have them
    settings = load(PARAMS, [*SET, "evaluate.engine=vllm", "evaluate.batch_invariant=true"])
    monkeypatch.setenv("SHARDS", "2")
    with ends_within(60):
        drawn = draw(settings, here / "model", None, "cot", {"toy": TASKS}, here / "tasks", "out")
    texts = {row["text"] for row in drawn.samples["toy"]}
    assert len(drawn.samples["toy"]) == 21 and len(texts) > 14, "which were the engines' own"
    assert not children()


@contextlib.contextmanager
def ends_within(seconds: int):
    """Fails a test that would else wait for ever."""

    def late(*_):
        raise AssertionError(f"it has not ended after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def dies(call):
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(call):
    time.sleep(600)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interruption_does_not_wait_for_the_processes(here, monkeypatch):
    monkeypatch.setenv("SHARDS", "2")
    monkeypatch.setattr(shards, "answer", sleeps)

    def interrupted(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.alarm(8)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(here, "out")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 20
    assert not children()


def children() -> list[str]:
    """The processes that draw, as long as they live, by the system: another thread may have waited for one's end."""
    import multiprocessing

    for process in multiprocessing.active_children():
        process.join(5)
    left = [process for process in multiprocessing.active_children() if process.pid]
    return [process.name for process in left if lives(process.pid)]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("value", "engine", "batch_invariant", "cards", "message"), [
    ("two", "transformers", False, None, "SHARDS=two: must be a number of processes from 1 to 64"),
    ("0", "transformers", False, None, "SHARDS=0: must be"), ("65", "transformers", False, None, "SHARDS=65: must be"),
    ("2", "vllm", False, "0,1", "SHARDS=2: vLLM's samples would change with it; set evaluate.batch_invariant"),
    ("3", "vllm", True, "0,1", "SHARDS=3: CUDA_VISIBLE_DEVICES=0,1 names fewer cards"),
])  # fmt: skip
def test_what_would_change_samples_or_has_no_card_is_refused(
    monkeypatch, value, engine, batch_invariant, cards, message
):
    monkeypatch.setenv("SHARDS", value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if cards:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        shards.number_of_shards(engine, batch_invariant)


def test_one_process_is_what_there_is_without_it(monkeypatch):
    monkeypatch.delenv("SHARDS", raising=False)
    assert shards.number_of_shards("vllm", False) == 1
    monkeypatch.setenv("SHARDS", "1")
    assert shards.number_of_shards("vllm", False) == 1


def test_each_process_has_a_card_of_its_own(here, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,7")
    monkeypatch.setattr(shards, "answer", says_its_card)
    with shards.drawn_by(2, load(PARAMS, SET).evaluate, here / "model", None) as drawer:
        assert set(drawer.answers(range(40))) == {"5", "3"}


def says_its_card(call):
    time.sleep(0.2)
    return os.environ["CUDA_VISIBLE_DEVICES"], 0.0


def test_vllms_share_of_tasks_is_of_about_equal_lengths_and_leaves_none_out():
    settings = load(PARAMS, SET).evaluate

    def of_greedy(*asked) -> list[list[str]]:
        found = [[keys[0] for keys in call.rows] for call in calls(settings, *asked)]
        return [[task for task, _ in of_call] for of_call in found if of_call[0][1] == 0]

    parts = of_greedy(TASKS, "cot", None, 3)
    assert parts == [["T/0", "T/3", "T/6"], ["T/1", "T/4"], ["T/2", "T/5"]]
    assert of_greedy(TASKS, "cot", None) == [[f"T/{number}" for number in range(7)]]
    assert len([*calls(settings, TASKS[:2], "cot", None, 5)]) == 4, "no process gets an empty call"
    assert [call.rows for call in calls(settings, TASKS, "cot", None, greedy=False)] == [
        call.rows for call in calls(settings, TASKS, "cot", None) if call.rows[0][0][1]
    ], "all but the greedy ones"
