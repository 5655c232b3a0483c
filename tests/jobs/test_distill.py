"""`jobs distill` as a process, with the real sandbox, against a server that misbehaves."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from jobs.common import answer_format, official
from jobs.common.files import read_json, read_jsonl, write_jsonl
from jobs.distill import cache
from jobs.plumbing.params import load
from jobs.tasks import sources
from jobs.toy import world
from tests import program
from tests.teacher_server import TRANSIENT, Behaviour, TeacherServer

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
SECRET = "sk-very-secret-0123456789"
OUTS = "out/examples.jsonl", "out/rejects.jsonl", "out/README.md", "metrics.json"

# Answers that a test must not pass and a sandbox must hold; {name} is the entry point.
ATTACKS = (
    "import os\nos._exit(0)\ndef {name}(*args): return None",
    "class Same:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef {name}(*args): return Same()",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef {name}(*args): return None",
    "import builtins\nbuiltins.AssertionError = builtins.all = None\ndef {name}(*args): raise SystemExit(0)",
    "import os\nfor n in range(50): os.fork()\ndef {name}(*args): return None",
    "import glob, os\nfound = str(dict(os.environ)) + ''.join(open(p, errors='ignore').read() for p in glob.glob("
    "'/proc/*/environ'))\nopen('/tmp/stolen-by-distill-test', 'w').write(found)\ndef {name}(*args): return found",
    "def {name}(*args):\n    raise Exception(__import__('os').environ)",
    "def {name}(*args):\n    while True: pass",
)
# How a spoiled answer is spoiled, and the reasons it may be rejected for; None: it is right after all.
SPOILED: dict[str, set[str] | None] = {
    **dict.fromkeys(TRANSIENT),
    "huge": {"too_large"},
    "other_model": {"model"},
    "truncated": {"truncated"},
    "empty": {"tags"},
    "tags": {"tags"},
    "chatter": {"tags"},
    "syntax": {"syntax"},
    "failing": {"failed"},
    "entry_point": {"entry_point"},
    "attack": {"failed", "crashed", "timeout", "invalid"},
    "400": {"refused"},
}

KILLS = int(os.environ.get("KILLS", "3"))


def behaviour(task: dict, way: str, rng: random.Random) -> Behaviour:
    """The teacher's answer to a task, made of its reference solution and spoiled as `way` says."""
    name = task["entry_point"]
    answer = answer_format.render(
        f"The task asks for {name}. Follow it step by step, and return the result as the example shows.",
        task["reference"],
    )
    texts = {
        "tags": answer.replace("</END_WORKING_OUT>", "</START_WORKING_OUT>"),
        "chatter": f"Certainly! Here it is:\n\n{answer}",
        "syntax": answer_format.render(
            "This is the solution to the task, as it was asked for.", f"def {name}(:\n    pass"
        ),
        "failing": answer_format.render(
            "This is the solution to the task, as it was asked for.", f"def {name}(*args):\n    return 'wrong'"
        ),
        "entry_point": answer_format.render(
            "This is the solution to the task, as it was asked for.", "def other(*args):\n    return 'wrong'"
        ),
        "attack": answer_format.render(
            "This is the solution to the task, as it was asked for.", rng.choice(ATTACKS).format(name=name)
        ),
    }
    return Behaviour(texts.get(way, answer), way if way not in texts else "right", thinking="hm")


def toy_tasks(count: int) -> list[dict]:
    return world.tasks(7, {"distill": count})["distill"]


def real_tasks() -> list[dict]:
    """The tasks of MBPP that are not in MBPP+: what the real run distils from."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data (mbpp.jsonl.gz, MbppPlus.jsonl.gz)")
    params = load(ROOT / "params.yaml").tasks
    known = {row["task_id"] for row in sources.evalplus_rows("MbppPlus", params.mbpp_plus, DATA)}
    records = map(official.task_of, sources.mbpp_rows(params.mbpp, DATA))
    return [task for task in records if task["task_id"] not in known and not task["setup"]]


def start(folder: Path, url: str, *assignments: str, key: str | None = SECRET) -> subprocess.Popen:
    settings = [
        f"distill.base_url={url}",
        "distill.api_key_env=FAKE_TEACHER_KEY",
        "distill.timeout=20.0",
        "distill.recorded=null",
        "distill.similarity=1.0",
        *assignments,
    ]
    outs = ("--out", "out", "--responses", "responses", "--metrics", "metrics.json")
    words = ("--tasks", "tasks.jsonl", "--benchmarks", "benchmarks.jsonl", *outs)
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {"TMPDIR": str(folder / "tmp")} | ({"FAKE_TEACHER_KEY": key} if key else {})
    return program.start(folder, "distill", *words, settings=settings, **environment)


def distil(folder: Path, url: str, *assignments: str, key: str | None = SECRET) -> tuple[int, str, str]:
    process = start(folder, url, *assignments, key=key)
    try:
        stdout, stderr = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def processes(folder: Path) -> list[str]:
    """Command lines of the sandbox's processes for a job in `folder`: they name its scratch directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if f"{folder}/tmp" in line]


def outs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTS}


def prepare(folder: Path, records: list[dict], benchmarks: tuple[dict, ...] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "tasks.jsonl", records)
    write_jsonl(folder / "benchmarks.jsonl", benchmarks)
    return folder


def recorded(records: list[dict], right: int, *assignments: str) -> list[dict]:
    """Recorded responses to the first attempt at every task; all after the first `right` break the format."""
    settings = load(ROOT / "params.yaml", [f"distill.base_url={OFFLINE}", *assignments]).distill
    rows = []
    for i, task in enumerate(records):
        asked = cache.request(settings, task["prompt"], 0)
        answer = behaviour(task, "right" if i < right else "tags", random.Random(i)).answer
        rows.append(cache.record(asked, cache.response(asked, answer)))
    return rows


OFFLINE = "http://127.0.0.1:9/v1"


def test_recorded_answers_need_no_network_and_no_key(tmp_path):
    records = toy_tasks(16)
    write_jsonl(prepare(tmp_path, records) / "recorded.jsonl", recorded(records, 12))
    given = "distill.recorded=recorded.jsonl", "distill.examples=10"
    code, stdout, stderr = distil(tmp_path, OFFLINE, *given, key=None)
    assert code == 0, stderr
    assert json.loads(stdout) == read_json(tmp_path / "metrics.json")
    assert len(read_jsonl(tmp_path / "out/examples.jsonl")) == 10
    assert list((tmp_path / "responses").iterdir()) == []
    before = outs(tmp_path)
    assert distil(tmp_path, OFFLINE, *given, "distill.concurrency=1", key=None)[0] == 0
    assert outs(tmp_path) == before

    code, _, stderr = distil(tmp_path, OFFLINE, "distill.recorded=recorded.jsonl", "distill.examples=13", key=None)
    assert code == 1
    assert re.search(r"^error: recorded.jsonl: has no response for Toy/distill/\d+, attempt 1", stderr, re.MULTILINE)
    assert outs(tmp_path) == before


def test_a_recorded_file_has_one_answer_to_a_request(tmp_path):
    records = toy_tasks(6)
    rows = recorded(records, 6)
    other = cache.record(rows[2]["request"], cache.response(rows[2]["request"], "I would rather not."))
    given = "distill.recorded=recorded.jsonl", "distill.examples=4"
    write_jsonl(prepare(tmp_path, records) / "recorded.jsonl", [*rows, *rows])  # merged with its own copy
    assert distil(tmp_path, OFFLINE, *given, key=None)[0] == 0
    before = outs(tmp_path)
    write_jsonl(tmp_path / "recorded.jsonl", [*rows, other])
    code, _, stderr = distil(tmp_path, OFFLINE, *given, key=None)
    assert code == 1
    assert "error: recorded.jsonl: line 7 holds another answer to a request" in stderr
    assert outs(tmp_path) == before


def test_a_run_goes_on_where_its_budget_ended(tmp_path):
    records = toy_tasks(12)
    with TeacherServer({task["prompt"]: behaviour(task, "right", random.Random(1)) for task in records}) as server:
        code, _, stderr = distil(prepare(tmp_path, records), server.url, "distill.examples=9", "distill.max_requests=5")
        assert code == 1
        assert "error: the budget ended before there were 9 examples; 5 examples from 5 answers" in stderr
        assert not (tmp_path / "out").exists()
        assert server.asked.total() == len(list((tmp_path / "responses").iterdir())) == 5
        assert distil(tmp_path, server.url, "distill.examples=9")[0] == 0
        assert server.asked.total() == 9
    # The server is gone; the cache answers.
    before = outs(tmp_path)
    code, _, stderr = distil(tmp_path, server.url, "distill.examples=9", key=None)
    assert code == 0, stderr
    assert outs(tmp_path) == before
    code, _, stderr = distil(tmp_path, server.url, "distill.examples=10", key=None)
    assert code == 2
    assert "FAKE_TEACHER_KEY is not set" in stderr


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_and_leaves_no_out(tmp_path, number, expected):
    records = toy_tasks(6)
    stalled = {task["prompt"]: Behaviour("", "stall", times=99) for task in records}
    with TeacherServer(stalled) as server:
        process = start(prepare(tmp_path, records), server.url, "distill.examples=6", "distill.timeout=60.0")
        deadline = time.monotonic() + 60
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes(tmp_path)
        program.ends_of_signal(process, number, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmarks.jsonl", "responses", "tasks.jsonl", "tmp"]
    assert not processes(tmp_path)


def test_too_few_tasks_and_broken_cache(tmp_path):
    code, _, stderr = distil(prepare(tmp_path, toy_tasks(3)), OFFLINE, "distill.examples=4")
    assert code == 2
    assert "distill.examples: 4 wanted, but tasks.jsonl has 3 tasks" in stderr


def check_examples(folder: Path, ways: dict[str, str], wanted: int, log: str) -> int:
    """Every kept example is right, every reject has the reason it was spoiled with; returns the requests needed.

    log: the job's; where the machine is so busy that a good answer comes too late, that is a request more.
    """
    examples, rejects = read_jsonl(folder / "out/examples.jsonl"), read_jsonl(folder / "out/rejects.jsonl")
    assert len(examples) == len({row["task_id"] for row in examples}) == wanted
    for row in examples:
        assert SPOILED.get(ways[row["task_id"]]) is None, row
        assert answer_format.parse(row["answer"]) == answer_format.Answer(row["reasoning"], row["code"])
        assert row["thinking"] == "hm"
        assert (folder / "responses" / f"{row['request']}.json").is_file()
    for row in rejects:
        if row["reason"] != "near_duplicate":
            assert row["reason"] in (SPOILED[ways[row["task_id"]]] or ()), row
    decided = [ways[row["task_id"]] for row in examples + rejects]
    assert len(list((folder / "responses").iterdir())) == len(decided)
    metrics = read_json(folder / "metrics.json")
    assert (metrics["examples"], metrics["requests"]) == (wanted, len(decided))
    late = max(0, log.count("no answer within") - sum(way in ("stall", "drip") for way in decided))
    return sum(2 if way in TRANSIENT else 1 for way in decided) + late


def spoil(records: list[dict], share: float, rng: random.Random) -> tuple[dict[str, str], dict[str, Behaviour]]:
    """Which way each task is answered (every way about as often), and the server's behaviour for its prompt."""
    ways: dict[str, str] = {}
    turns = list(SPOILED)
    rng.shuffle(turns)
    for i, task in enumerate(rng.sample(records, len(records))):
        ways[task["task_id"]] = turns[i // 3 % len(turns)] if i % 3 < share * 3 else "right"
    return ways, {task["prompt"]: behaviour(task, ways[task["task_id"]], rng) for task in records}


def test_100_real_examples_survive_kills(tmp_path):
    """A third of the answers is spoiled in some way; runs are each killed at a random moment and then resumed.

    KILLS=10 in the environment makes it the long test.
    """
    records = real_tasks()
    rng = random.Random(20)
    ways, behaviours = spoil(records, 1 / 3, rng)
    given = "distill.examples=100", "distill.concurrency=16", "distill.similarity=0.9", "distill.timeout=5.0"
    with TeacherServer(behaviours) as server:
        started = time.monotonic()
        code, _, stderr = distil(prepare(tmp_path / "whole", records), server.url, *given)
        whole = time.monotonic() - started
        assert code == 0, stderr
        assert server.asked.total() == check_examples(tmp_path / "whole", ways, 100, stderr)
        assert SECRET not in stderr
        expected = outs(tmp_path / "whole")

    seed = time.time_ns()
    moments = random.Random(seed)
    print(f"an undisturbed run takes {whole:.1f} s; moments by seed {seed}")
    killed = 0
    for trial in range(KILLS):
        folder = prepare(tmp_path / f"killed-{trial}", records)
        with TeacherServer(behaviours, port=server.server.server_port) as server:
            process = start(folder, server.url, *given)
            time.sleep(moments.uniform(0.1, whole))
            process.kill()
            killed += process.wait() == -signal.SIGKILL
            log = process.communicate()[1]
            stored = {path.name for path in (folder / "responses").glob("[!.]*")}
            asked, flying = Counter(server.asked), server.flying
            code, _, stderr = distil(folder, server.url, *given)
            assert code == 0, stderr
            assert outs(folder) == expected
            deadline = time.monotonic() + 20
            while (left := processes(folder)) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not left
            # No answer that was stored is asked for again, and all the others no more than once more.
            again = {
                row["request"]["body"]["messages"][-1]["content"]
                for row in (read_json(folder / "responses" / name) for name in stored)
            }
            assert not [prompt for prompt in again if server.asked[prompt] != asked[prompt]]
            assert server.asked.total() <= check_examples(folder, ways, 100, log + stderr) + 16 + flying
    assert killed >= KILLS // 2


def test_no_secret_is_left_and_no_attack_succeeds(tmp_path):
    records = toy_tasks(len(ATTACKS) + 2)
    stolen = Path("/tmp/stolen-by-distill-test")
    stolen.unlink(missing_ok=True)
    behaviours = {}
    for task, attack in zip(records, (*ATTACKS, *[None] * 2), strict=True):
        behaviours[task["prompt"]] = behaviour(task, "right", random.Random(1))
        if attack:
            behaviours[task["prompt"]].answer = answer_format.render(
                f"Read the key {SECRET} and keep it for later use.", attack.format(name=task["entry_point"])
            )
    with TeacherServer(behaviours) as server:
        code, stdout, stderr = distil(
            prepare(tmp_path, records), server.url, "distill.examples=2", "distill.attempts=1", "distill.patience=100"
        )
    assert code == 0, stderr
    assert {row["task_id"] for row in read_jsonl(tmp_path / "out/examples.jsonl")} == {
        task["task_id"] for task in records[-2:]
    }
    assert not stolen.exists()
    assert SECRET not in stdout + stderr
    found = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not found
