"""What tests/bench/scaling.py asks for and reads, on made-up logs and with commands that stand for jobs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jobs.plumbing.params import assign, merged, validate
from jobs.plumbing.yaml12 import read_yaml
from tests.bench import limited, scaling, scaling_grpo, scaling_inputs, scaling_killed, scaling_nodes
from tests.bench.gpu_jobs import REPO

NCCL = """\
h:410:512 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [receive] via NET/Socket/0
h:410:512 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[0] [send] via NET/Socket/0
h:410:512 [0] NCCL INFO Channel 02/0 : 0[4] -> 1[5] via P2P/CUMEM
h:410:512 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>
"""
LOG = """\
CHECKED rank 1: step 4: the adapter 00ff00ff00ff00ff00ff
step 5 of 12 ... CHECKED rank 3: step 12: the adapter 77
CHECKED rank 1: step 12: the adapter bb11bb11bb11bb11bb11
{'loss': 0.1}
CHECKED rank 0: step 12: the adapter aa11aa11aa11aa11aa11
"""


def test_cases_are_run_in_the_order_given_and_those_with_a_plus_together():
    options = scaling.parsed(["--out", "results", "cores", "killed+nodes", "--set", "grpo.steps=8"])
    assert options.cases == [["cores"], ["killed", "nodes"]]
    assert options.out.is_absolute() and options.set == ["grpo.steps=8"]
    assert [name for (name,) in scaling.parsed(["--out", "results"]).cases] == list(scaling.CASES)


def test_an_unknown_case_is_refused_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        scaling.parsed(["--out", "results", "cores", "killed+node"])
    assert "no case 'node'; there are allreduce" in capsys.readouterr().err


def test_what_nccls_channels_go_by():
    assert scaling_nodes.transports(NCCL) == ["NET/Socket/0", "P2P/CUMEM"]
    assert scaling_nodes.transports("nothing of channels") == []


def test_the_hashes_that_ranks_compared_last():
    assert scaling_grpo.last_checked(scaling_grpo.CHECKED.findall(LOG)) == {
        "0": "aa11aa11aa11aa11",
        "1": "bb11bb11bb11bb11",
    }
    assert scaling_grpo.last_checked([]) == {}


@pytest.mark.parametrize(
    ("other", "step"),
    [
        ("step,loss\n1,0.5\n2,0.4\n", None),
        ("step,loss\n1,0.5\n2,0.3\n", "2"),
        ("step,loss\n1,0.5\n", "2"),
        ("step,loss\n1,0.5\n2,0.4\n3,0.4\n", "3"),
    ],
)
def test_the_step_from_which_two_curves_differ(other, step):
    assert scaling_grpo.first_other("step,loss\n1,0.5\n2,0.4\n", other) == step


@pytest.mark.parametrize("shape", scaling_grpo.SHAPES)
@pytest.mark.parametrize("kind", ["toy", "4b"])
def test_each_shape_is_a_batch_that_the_ranks_can_share(kind, shape, tmp_path, monkeypatch):
    """Of the very words that a case gives its job: so many completions in all, whole groups on each rank, valid params."""
    told = {}
    monkeypatch.setattr(limited.Case, "run", lambda self, words, log, **around: told.update(words=words, around=around))
    monkeypatch.setattr(scaling_grpo, "facts_of", lambda folder: {})
    options = scaling.parsed(["--out", "x", "--toy", str(tmp_path), "--big", str(tmp_path), "--work", str(tmp_path)])
    case = limited.Case(f"{kind}-{shape}", tmp_path, 5)
    case.log().write_text("")
    scaling.CASES[case.name](case, options)

    path = next(word.partition("=")[2] for word in told["words"] if str(word).startswith("--params="))
    params = read_yaml(type(tmp_path)(path))
    for word in told["words"]:
        if str(word).startswith("--set="):
            assign(params, word.partition("=")[2])
    settings = validate(params, "the bench's params").grpo
    ranks, completions = scaling_grpo.SHAPES[shape]
    assert settings.batch_size * settings.gradient_accumulation == completions
    assert settings.processes == ranks
    assert ("torch.distributed.run" in told["words"]) == (ranks > 1)
    assert ranks == 1 or told["words"][told["words"].index("--nproc-per-node") + 1] == ranks
    assert (completions // ranks) % settings.generations == 0
    assert settings.gradient_accumulation % ranks == 0 or settings.batch_size % ranks == 0
    assert ("CUDA_VISIBLE_DEVICES" in told["around"]) == (ranks == 1)
    assert ("--draw" in told["words"]) == (kind == "4b")


@pytest.mark.parametrize("kind", scaling_grpo.AHEAD_STEPS)
def test_both_sides_of_sampling_ahead_differ_in_that_alone(kind, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(limited.Case, "run", lambda self, words, log, **around: told.append((words, around)))
    monkeypatch.setattr(scaling_grpo, "facts_of", lambda folder: {"seconds_of_a_step": SECONDS})
    options = scaling.parsed(["--out", "x", "--toy", str(tmp_path), "--big", str(tmp_path), "--work", str(tmp_path)])
    sections = []
    for staleness in (0, 1):
        case = limited.Case(f"ahead-{kind}-{staleness}", tmp_path, 5)
        case.log().write_text("")
        (case.folder / "plots").mkdir()
        (case.folder / "plots/grpo.csv").write_text("step,reward,kl\n1,0.1,\n2,0.3,\n3,0.5,\n4,0.7,\n5,0.9,\n6,0.8,\n")
        found = scaling.CASES[case.name](case, options)
        assert found["step"] == 3.0 and found["fifths"] == {"reward": [0.2, 0.6, 0.85]}
        words, around = told.pop()
        params = read_yaml(next(tmp_path.glob(f"inputs-{kind}/params.yaml")))
        for word in words:
            if str(word).startswith("--set="):
                assign(params, word.partition("=")[2])
        sections.append(validate(params, "the bench's params").grpo.model_dump())
        assert around == {"CUDA_VISIBLE_DEVICES": "0,1" if staleness else "0"}
    assert [section.pop("staleness") for section in sections] == [0, 1]
    assert sections[0] == sections[1]


SECONDS = {"rollout": 1.5, "reward": 0.5, "train": 1.0, "sampling": 4.0}


def test_the_bench_says_of_the_pipeline_what_it_runs_on_a_card():
    params = merged(
        merged(read_yaml(REPO / "params.yaml"), read_yaml(REPO / "data/smoke/params.yaml")), scaling_inputs.GPU
    )
    found = validate(params, "the bench's params")
    assert found.evaluate.engine == "vllm" and found.evaluate.batch_invariant and found.grpo.rollout == "vllm"


def test_results_are_added_to(tmp_path):
    for number in range(3):
        scaling.record(tmp_path / "results.json", {"case": number})
    assert [found["case"] for found in json.loads((tmp_path / "results.json").read_text())] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_case_that_fails_is_a_result_and_the_others_go_on(tmp_path, monkeypatch):
    def failing(case, options):
        case.run([sys.executable, "-c", "print('out of memory'); raise SystemExit(3)"], case.log())

    monkeypatch.setattr(scaling, "CASES", {"bad": failing, "good": lambda case, options: {"found": 1}})
    options = scaling.parsed(["--out", str(tmp_path), "--work", str(tmp_path / "work"), "bad", "good"])
    options.work.mkdir()
    for group in options.cases:
        scaling.measure(group[0], group, options)
    bad, good = json.loads((tmp_path / "results.json").read_text())
    assert "exit code 3" in bad["failed"] and "out of memory" in bad["failed"]
    assert good["found"] == 1


def test_a_run_beside_the_unbroken_one_waits_for_its_end_and_is_told_apart(tmp_path):
    def made(name: str, loss: str) -> limited.Case:
        case = limited.Case(name, tmp_path, 60)
        (case.folder / "models/adapters/grpo").mkdir(parents=True)
        (case.folder / "models/adapters/grpo/adapter_model.safetensors").write_text(loss)
        (case.folder / "plots").mkdir()
        (case.folder / "plots/grpo.csv").write_text(f"step,loss\n1,0.5\n2,{loss}\n")
        return case

    options = scaling.parsed(["--out", "x", "--work", str(tmp_path), "toy-2x64+killed", "nodes"])
    alone = made("nodes", "0.3")
    assert scaling_grpo.beside_unbroken(alone, options) == {"same_as_unbroken": None}
    case = made("killed", "0.4")
    threading.Timer(0.2, lambda: (made("toy-2x64", "0.4"), options.ended["toy-2x64"].set())).start()
    assert scaling_grpo.beside_unbroken(case, options) == {"same_as_unbroken": True, "other_from_step": None}
    assert scaling_grpo.beside_unbroken(alone, options) == {"same_as_unbroken": False, "other_from_step": "2"}


OUTLIVING = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(600)
"""


def test_when_its_time_is_over_a_case_ends_what_it_has_started_in_other_sessions_too(tmp_path):
    case = limited.Case("slow", tmp_path, 60)
    process = case.start([sys.executable, "-c", OUTLIVING], case.log())
    reader = threading.Event()
    while "child" not in case.log().read_text():
        assert process.poll() is None and not reader.wait(0.05)
    child = int(case.log().read_text().split()[1])
    assert {process.pid, child} <= set(case.processes())
    case.deadline = time.monotonic()
    with pytest.raises(limited.Failed, match="time was over: child"):
        case.wait(process, case.log())
    assert case.settled(0.0)
    case.end()
    assert process.wait(10) == -signal.SIGKILL
    assert case.settled(10.0) == []


def test_the_shell_that_runs_a_bench_is_no_process_of_its_cases(tmp_path):
    bench = f"""
from pathlib import Path
from tests.bench.limited import Case
case = Case("one", Path({str(tmp_path)!r}), 60)
case.run(["true"], case.log())
print(case.settled(0.0))
case.end()"""
    shell = f'python -c "$BENCH"; echo "see {tmp_path}/one"'
    around = os.environ | {"BENCH": bench, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", shell], cwd=REPO, env=around, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"[]\nsee {tmp_path}/one\n"), done.stderr


def test_a_rank_is_found_by_its_number(tmp_path):
    case = limited.Case("ranks", tmp_path, 60)
    waits = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    ranks = [case.start(waits, case.log(str(number)), RANK=str(number)) for number in (0, 1, 11)]
    for number in (0, 1, 11):
        while "up" not in case.log(str(number)).read_text():
            time.sleep(0.05)
    try:
        assert [scaling_killed.rank_in(case, str(number)) for number in (0, 1, 11)] == [rank.pid for rank in ranks]
    finally:
        case.end()
        for rank in ranks:
            rank.wait(10)


IP = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
case $* in *veth*) echo "RTNETLINK answers: Operation not supported" >&2; exit 2 ;; esac
"""


def test_where_no_namespaces_can_be_made_the_result_says_so_and_none_is_left(tmp_path, monkeypatch):
    (tmp_path / "ip").write_text(IP.format(log=tmp_path / "log"))
    (tmp_path / "ip").chmod(0o755)
    (tmp_path / "nsenter").write_text("#!/bin/sh\n")
    (tmp_path / "nsenter").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    with limited.two_machines() as machines:
        assert "RTNETLINK answers: Operation not supported" in machines.kind and "loopback" in machines.kind
        assert machines.enter(1) == [] and machines.INTERFACE == "lo"
    assert (tmp_path / "log").read_text().splitlines()[-2:] == ["netns del bench0", "netns del bench1"]

    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with limited.two_machines() as machines:
        assert "no ip on this machine" in machines.kind


def test_namespaces_are_entered_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "ip").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {tmp_path}/log\n")
    (tmp_path / "ip").chmod(0o755)
    (tmp_path / "nsenter").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    with limited.two_machines() as machines:
        assert [machines.enter(number)[1] for number in (0, 1)] == [
            "--net=/run/netns/bench0",
            "--net=/run/netns/bench1",
        ]
        assert machines.ADDRESS == "10.78.0.1" and "veth" in machines.kind
    said = (tmp_path / "log").read_text().splitlines()
    assert "link add eth0 netns bench0 type veth peer name eth0 netns bench1" in said
    assert "-n bench1 address add 10.78.0.2/24 dev eth0" in said
