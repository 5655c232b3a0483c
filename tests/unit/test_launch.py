"""Which process does a job's work, what the environment must say for several, and what the params refuse."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jobs import sft
from jobs.common.errors import JobError, UsageError
from jobs.common.files import write_jsonl
from jobs.grpo import job as grpo
from jobs.plumbing import launch
from jobs.plumbing.params import load
from jobs.toy import world
from jobs.training import loop, ranks
from jobs.training.order import Order
from tests import program
from tests.program import ROOT
from tests.unit.test_supervisor import alive, gone

PLAIN = ["sft.engine=transformers", "grpo.engine=transformers"]
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, str(value)) for name, value in values.items()]


def test_one_process_works_itself_and_several_are_started_once(environment):
    assert launch.works("grpo.processes", 1)
    assert not launch.works("grpo.processes", 2)
    assert (launch.rank(), launch.ranks(), launch.ranks_here()) == (0, 1, 1)
    environment(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2)
    assert launch.works("grpo.processes", 4)
    assert (launch.rank(), launch.rank_here(), launch.ranks(), launch.ranks_here()) == (3, 1, 4, 2)
    with pytest.raises(
        UsageError, match=r"grpo.processes is 2, and this process was started as one of 4 \(WORLD_SIZE\)"
    ):
        launch.works("grpo.processes", 2)


def test_the_first_ranks_result_stands_alone_on_stdout_and_inputs_are_checked_before_ranks_start(
    environment, monkeypatch, capsys
):
    called = []
    monkeypatch.setattr(launch, "start", lambda key, processes: called.append((key, processes)))

    def work() -> dict:
        print("an engine's banner")
        return {"loss": 0.5}

    launch.on_ranks("sft.processes", 2, lambda: called.append("checked"), work)
    assert called == ["checked", ("sft.processes", 2)]
    assert capsys.readouterr() == ("", ""), "the work is that of the ranks"
    environment(RANK=0, WORLD_SIZE=2)
    launch.on_ranks("sft.processes", 2, pytest.fail, work)
    assert capsys.readouterr() == ('{"loss": 0.5}\n', "an engine's banner\n")
    launch.on_ranks("sft.processes", 2, pytest.fail, lambda: None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("given", "taken"), [(None, "0"), ("3,1", "3"), ("2", "2"), ("", "")])
def test_one_process_takes_one_card_of_those_it_may_have(environment, monkeypatch, given, taken):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "restored after the test")
    del os.environ["CUDA_VISIBLE_DEVICES"]
    if given is not None:
        environment(CUDA_VISIBLE_DEVICES=given)
    loop.prepare("transformers")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == taken
    environment(RANK=0, WORLD_SIZE=2, CUDA_VISIBLE_DEVICES="0,1")
    loop.prepare("transformers")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_rank_judges_with_its_part_of_the_machine(environment, monkeypatch):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(16)))
    assert [launch.workers(wanted) for wanted in (0, 5)] == [16, 5]
    environment(RANK=0, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4)
    assert [launch.workers(wanted) for wanted in (0, 5, 2)] == [4, 1, 1]


def test_several_machines_are_described_whole_or_refused_by_name(environment):
    assert launch.machines("sft.processes", 3) == launch.Machines()
    environment(NODES=2)
    with pytest.raises(UsageError, match=r"sft.processes is 3, which NODES \(2\) machines cannot share evenly"):
        launch.machines("sft.processes", 3)
    for name, value in (("NODE_RANK", 1), ("MASTER_ADDR", "first"), ("MASTER_PORT", 29500)):
        with pytest.raises(UsageError, match=f"NODES is 2, and {name} is not set"):
            launch.machines("sft.processes", 4)
        environment(**{name: value})
    assert launch.machines("sft.processes", 4) == launch.Machines(2, 1, "first", 29500)
    environment(NODE_RANK=2)
    with pytest.raises(UsageError, match="NODE_RANK is 2; with NODES 2 it is 0 to 1"):
        launch.machines("sft.processes", 4)
    environment(NODES="two")
    with pytest.raises(UsageError, match="NODES is 'two', not a whole number"):
        launch.machines("sft.processes", 4)


def test_the_command_ends_as_its_ranks():
    with pytest.raises(SystemExit) as caught:
        launch.end_as(1, 2)
    assert caught.value.code == 2
    for code in (-signal.SIGKILL, -signal.SIGTERM, 143):
        with pytest.raises(JobError, match=r"rank 1 was ended by SIG(KILL|TERM), so the others were stopped"):
            launch.end_as(1, code)


@pytest.mark.parametrize("given", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("RANKS_TIMEOUT", given)
    with pytest.raises(UsageError, match=f"RANKS_TIMEOUT is '{given}'; it must be seconds"):
        launch.timeout()


def test_a_function_that_is_called_without_its_ranks_says_how_they_are_started(environment):
    said = r"grpo\.processes is 2, and this is one process: start it as python -m jobs"
    with pytest.raises(UsageError, match=said), ranks.joined("grpo.processes", 2):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["grpo.processes=2", "grpo.engine=unsloth"], "grpo: processes is 2, and engine unsloth trains in one"),
        (["sft.processes=2", "sft.engine=unsloth"], "sft: processes is 2, and engine unsloth trains in one"),
        (["grpo.processes=3"], r"grpo: processes is 3, which cannot share batch_size x gradient_accumulation (16 x 4)"),
        (["sft.processes=4"], r"sft: processes is 4, which cannot share batch_size x gradient_accumulation (2 x 1)"),
        (["grpo.processes=8"], "is 8 completions for each, not a multiple of generations (16)"),
        (["grpo.processes=0"], "grpo.processes: is 0; it must be at least 1"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_by_the_params(settings, said):
    with pytest.raises(UsageError) as caught:
        load(ROOT / "params.yaml", [*PLAIN, *settings])
    assert said in str(caught.value)


def test_a_run_does_not_go_on_from_the_checkpoint_of_another_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "adapter", "rows"):
        (tmp_path / name).write_text(name)
    base, adapter, rows = (Path(name) for name in ("base", "adapter", "rows"))
    found = {}
    for count in (1, 2, 1):
        settings = [f"{section}.processes={count}" for section in ("sft", "grpo")]
        params = load(ROOT / "params.yaml", [*PLAIN, *settings, "sft.batch_size=4"])
        folders = sft.resume_folder(params, base, rows), grpo.resume_folder(params, base, adapter, rows)
        assert found.setdefault(count, folders) == folders
    assert not set(found[1]) & set(found[2])


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "share"),
    [
        (16, 4, 1, (16, 4)),
        (16, 4, 2, (16, 2)),
        (16, 4, 4, (16, 1)),
        (32, 4, 8, (16, 1)),
        (16, 6, 4, (8, 3)),
        (8, 1, 2, (4, 1)),
    ],
)
def test_passes_are_shared_before_the_rows_of_a_pass(batch_size, accumulation, processes, share):
    settings = [f"grpo.batch_size={batch_size}", f"grpo.gradient_accumulation={accumulation}", "grpo.generations=4"]
    params = load(ROOT / "params.yaml", [*PLAIN, *settings, f"grpo.processes={processes}"])
    assert params.grpo.share == share


def test_the_rows_of_an_epoch_are_the_same_however_many_ranks_share_them():
    lengths = [5, 9, 1, 7, 3, 8, 2]
    for by_length in (False, True):
        one, several = (Order(lengths, 4, 7, by_length=by_length, filled=filled) for filled in (False, True))
        orders = []
        for epoch in range(3):
            one.set_epoch(epoch)
            several.set_epoch(epoch)
            orders.append(list(one))
            assert sorted(orders[-1]) == list(range(7))
            assert list(several) == [*orders[-1], 7]
            assert len(several) == 8
        assert orders[0] != orders[1]


def test_a_usage_error_is_said_once_before_any_rank_is_started(tmp_path):
    settings = [*PLAIN, "grpo.processes=2", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch"]
    for name in ("base", "sft"):
        (tmp_path / name).mkdir()
    (tmp_path / "tasks.jsonl").write_text("")
    ended = program.run(
        tmp_path, "grpo", "--base", "base", "--adapter", "sft", "--tasks", "tasks.jsonl", settings=settings
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == "error: tasks.jsonl: has no tasks"


STALLED = """
import os, time
if os.environ.get("RANK"):
    import jobs.plumbing.params
    from jobs.common.errors import UsageError

    def load(*_):
        if os.environ["ENDS"] == os.environ["RANK"]:
            raise UsageError("what was asked is wrong")
        open(f"rank-{os.environ['RANK']}", "w").write(str(os.getpid()))
        time.sleep(60)

    jobs.plumbing.params.load = load
"""


@pytest.fixture
def started(tmp_path):
    """A function that starts GRPO with two ranks, which do nothing but wait once they are there."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(STALLED)
    for name in ("base", "sft"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "tasks.jsonl", world.tasks(1, {"train": 8})["train"])
    settings = [*PLAIN, "grpo.processes=2", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch"]
    words = ("--base", "base", "--adapter", "sft", "--tasks", "tasks.jsonl")

    def start(ends: str = "none", **environ: str) -> subprocess.Popen:
        path = f"{tmp_path / 'site'}:{ROOT}"
        return program.start(tmp_path, "grpo", *words, settings=settings, PYTHONPATH=path, ENDS=ends, **environ)

    return start


def pid_of(rank: int, folder: Path) -> int:
    file, deadline = folder / f"rank-{rank}", time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(file.read_text())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_and_its_ranks_end_within_three_seconds_of_a_signal(started, tmp_path, number, code):
    process = started()
    pids = [pid_of(rank, tmp_path) for rank in range(2)]
    program.ends_of_signal(process, number, code)
    assert not any(alive(pid) for pid in pids)


def test_a_rank_that_is_killed_ends_the_others_and_the_command_says_which(started, tmp_path):
    process = started()
    pids = [pid_of(rank, tmp_path) for rank in range(2)]
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 4
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "error: rank 1 was ended by SIGKILL, so the others were stopped"
    assert "Traceback" not in stderr
    assert not any(alive(pid) for pid in pids)


def test_a_rank_that_fails_ends_the_others_and_the_command_as_itself(started, tmp_path):
    process = started(ends="1")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert [line for line in stderr.splitlines() if "error" in line] == ["error: rank 1: what was asked is wrong"]
    assert "Traceback" not in stderr
    assert not list(Path(tempfile.gettempdir()).glob(f"ranks-{process.pid}-*"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("number", "taken", "said"),
    [
        (
            0,
            False,
            r"^of 2 machines not all came to this one within 1 s, .*MASTER_ADDR 127.0.0.1, MASTER_PORT {port}\)",
        ),
        (
            1,
            False,
            r"^machine 1 has no connection to the first one \(MASTER_ADDR 127.0.0.1, MASTER_PORT {port}\), .* 1 s",
        ),
        (0, True, r"^MASTER_PORT {port} is in use on this machine: another run has it, or set another on all"),
    ],
    ids=["the others do not come", "the first does not come", "the port is taken"],
)
def test_machines_that_do_not_meet_are_a_failure_that_names_where(environment, monkeypatch, number, taken, said):
    monkeypatch.setenv("RANKS_TIMEOUT", "1")
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1] if taken else free_port()
        environment(NODES=2, NODE_RANK=number, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with pytest.raises(JobError, match=said.format(port=port)):
            launch.start("grpo.processes", 2)


def test_a_machine_that_finds_no_other_says_so_in_one_line(started):
    where = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = started(RANKS_TIMEOUT="1", **where)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(stderr.splitlines()) == 1 and stderr.startswith("error: machine 1 has no connection"), stderr


RANK = """
import os, sys
from jobs.plumbing import supervisor
supervisor.supervise()
print(os.getpid(), flush=True)
import time
time.sleep(60)
"""


def test_a_rank_does_not_outlive_the_command_that_started_it():
    """Whose supervisor is killed, which no rank is told of otherwise."""
    starts = (
        "import os, subprocess, sys, time\n"
        "os.environ |= {'RANK': '0', 'WORLD_SIZE': '1'}\n"
        f"subprocess.Popen([sys.executable, '-c', {RANK!r}])\n"
        "time.sleep(60)"
    )
    command = subprocess.Popen([sys.executable, "-c", starts], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    job = int(command.stdout.readline())
    command.kill()
    command.wait()
    assert gone(job, 3.0)
