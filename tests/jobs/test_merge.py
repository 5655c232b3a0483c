"""The merge as a job: what it writes, what it refuses, and what a kill leaves behind."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import merge
from jobs.common.errors import JobError, UsageError
from jobs.common.files import sha256
from jobs.plumbing.params import load
from tests import program
from tests.toy import make_adapter, make_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base") / "base", dtype="bfloat16", layers=3)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(base, tmp_path_factory.mktemp("adapter") / "grpo")


@pytest.fixture(scope="module")
def small(base, tmp_path_factory):
    """An update of about 2e-5, as GRPO's."""
    return make_adapter(base, tmp_path_factory.mktemp("small") / "grpo", scale=1.9e-3)


def params(**values):
    return load(ROOT / "params.yaml", [f"merge.{key}={value}" for key, value in values.items()])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(base, adapters, **values):
    return merge.run(params(**values), base, adapters, Path("out"), Path("m.json"), Path("p.csv"))


def test_the_model_loads_as_what_it_says_and_everything_else_is_the_bases(base, adapter, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base / "LICENSE").write_text("a licence\n")
    run(base, [adapter])
    out = tmp_path / "out"
    assert {file.name for file in out.glob("[!.]*")} == {file.name for file in base.iterdir()}
    for file in base.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = ((folder / "config.json").read_text() for folder in (base, out))
    assert after == before.replace('"bfloat16"', '"float16"') != before
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.float16
    assert AutoTokenizer.from_pretrained(out)("def f():")["input_ids"]
    figures = json.loads((tmp_path / "m.json").read_text())
    assert figures["retention"] == pytest.approx(1, abs=1e-4)
    assert set(figures["layers"]) == {"0", "1", "2"}
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["layer"] for row in rows] == ["0", "1", "2"]
    assert float(rows[1]["update_rms"]) == pytest.approx(figures["layers"]["1"]["update_rms"], rel=1e-3, abs=1e-6)


def test_retention_is_what_it_says(base, small, tmp_path):
    """Against figures computed in one piece from the written files, in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = run(base, [small], dtype="bfloat16", min_retention=0.0)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), small)
    whole = model.merge_and_unload().state_dict()
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    u, s, same = [], [], []
    for key in before:
        if "_proj" in key:
            w = before[key].double()
            u.append((whole[key].double() - w).flatten())
            s.append((after[key].double() - w).flatten())
            same.append((after[key] == before[key]).flatten())
    u, s, same = (torch.cat(parts) for parts in (u, s, same))
    assert result["retention"] == pytest.approx(float(u @ s / (u @ u)), abs=2e-3)
    assert result["relative_error"] == pytest.approx(float((s - u).norm() / u.norm()), rel=2e-3)
    assert result["unchanged"] == pytest.approx(float(same.double().mean()), abs=1e-6)
    assert 0.3 < result["retention"] < 0.8, "bfloat16 is known to lose about half of so small an update"


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ({"dtype": "float16"}, 0.998),
        ({"dtype": "bfloat16", "rounding": "stochastic"}, 0.97),
        ({"dtype": "float32"}, 0.999999),
    ],
)
def test_other_storage_keeps_a_small_update(base, small, tmp_path, values, least):
    assert least <= run(base, [small], **values)["retention"] < 1.03


def test_a_merge_that_loses_the_update_fails_keeps_nothing_and_says_what_would_pass(base, small, tmp_path):
    with pytest.raises(JobError, match=r"keeps .*% of the update") as caught:
        run(base, [small], dtype="bfloat16")
    for passing in ("float16 (", "bfloat16 stochastic (", "float32 ("):
        assert passing in str(caught.value)
    assert "bfloat16 nearest (" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_sum_too_large_for_float16_is_refused_and_named(base, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", scale=300.0)
    with pytest.raises(JobError, match=r"_proj\.weight does not fit float16") as caught:
        run(base, [adapter])
    assert "largest magnitude" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert run(base, [adapter], dtype="bfloat16")["retention"] > 0.99


def test_a_large_weight_that_no_adapter_touches_is_refused_too(base, adapter, tmp_path):
    broken = shutil.copytree(base, tmp_path / "base")
    held = load_file(broken / "model.safetensors")
    held["model.layers.0.mlp.up_proj.weight"][3, 5] = 70000
    save_file(held, broken / "model.safetensors")
    with pytest.raises(JobError, match=r"up_proj\.weight does not fit float16"):
        run(broken, [adapter])


def test_an_adapter_of_zeros_is_refused(base, tmp_path):
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.0)
    with pytest.raises(JobError, match="changes nothing"):
        run(base, [adapter])


def test_a_quantized_base_is_refused(base, adapter, tmp_path):
    broken = shutil.copytree(base, tmp_path / "base")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(JobError, match="quantized"):
        run(broken, [adapter])


def test_stochastic_rounding_is_for_bfloat16_alone():
    with pytest.raises(UsageError, match="bfloat16 only"):
        params(dtype="float16", rounding="stochastic")


def test_shards_and_index_stay_right(adapter, tmp_path):
    base = make_model(tmp_path / "base", dtype="bfloat16", layers=3, shard="1MB")
    names = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) > 2, "one shard: this test says nothing"
    run(base, [adapter], dtype="float32")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"] == names
    held = {}
    for name in set(names.values()):
        held |= load_file(tmp_path / "out" / name)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values())
    whole = make_model(tmp_path / "whole", dtype="bfloat16", layers=3)
    shutil.move(tmp_path / "out", tmp_path / "sharded")
    run(whole, [adapter], dtype="float32")
    for key, tensor in load_file(tmp_path / "out/model.safetensors").items():
        assert torch.equal(tensor, held[key]), key


def test_the_same_bytes_however_the_work_is_cut_and_another_seed_others(base, small, tmp_path, monkeypatch):
    values = {"dtype": "bfloat16", "rounding": "stochastic"}
    written, started = ("out", "m.json", "p.csv"), []

    class Counted(ProcessPoolExecutor):
        def __init__(self, processes: int, *others) -> None:
            started.append(processes)
            super().__init__(processes, *others)

    monkeypatch.setattr("jobs.weights.sum.ProcessPoolExecutor", Counted)
    figures = run(base, [small], **values)
    first = {name: sha256(tmp_path / name) for name in written}
    assert not started, "so small a model is summed where it is"
    monkeypatch.setattr("jobs.weights.sum.UNIT", 5000)
    monkeypatch.setattr("jobs.weights.sum.WORKERS", 6)
    for cores in (1, 3, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert run(base, [small], **values) == figures
        assert {name: sha256(tmp_path / name) for name in written} == first
    assert started == [2, 4, 7], "a process a core, as many as there may be, and one for the hash of the base"
    other = load(ROOT / "params.yaml", ["seed=1", "merge.dtype=bfloat16", "merge.rounding=stochastic"])
    merge.run(other, base, [small], Path("out"), Path("m.json"), Path("p.csv"))
    assert sha256(tmp_path / "out") != first["out"]


def test_a_process_that_is_killed_ends_the_merge_in_one_line_and_none_goes_on(base, small, tmp_path, monkeypatch):
    job = os.getpid()

    def killed(*_) -> None:
        assert os.getpid() != job, "the sum of so many units is computed by other processes"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("jobs.weights.sum.UNIT", 5000)
    monkeypatch.setattr("jobs.weights.sum.write_rows", killed)
    with pytest.raises(JobError, match="computed the sum was killed"):
        run(base, [small])
    assert not multiprocessing.active_children()
    assert not (tmp_path / "out").exists()


def test_what_stops_a_merge_does_not_wait_for_what_its_processes_are_at(base, small, tmp_path, monkeypatch):
    def endless(*_) -> None:
        threading.Event().wait()

    def told(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.weights.sum.UNIT", 5000)
    monkeypatch.setattr("jobs.weights.sum.write_rows", endless)
    monkeypatch.setattr("jobs.weights.sum.synced", told)
    with pytest.raises(KeyboardInterrupt):
        run(base, [small])
    assert not multiprocessing.active_children()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_shard_names_the_same_noise_whatever_file_holds_it(adapter, tmp_path):
    one = make_model(tmp_path / "one", layers=3)
    many = make_model(tmp_path / "many", layers=3, shard="1MB")
    held = []
    for base in (one, many):
        run(base, [adapter], dtype="bfloat16", rounding="stochastic")
        held.append({k: t for file in (tmp_path / "out").glob("*.safetensors") for k, t in load_file(file).items()})
    assert all(torch.equal(held[0][key], held[1][key]) for key in held[0] | held[1])


def big_base(folder, mib=128):
    """`mib` MiB of weights beside the toy's: long enough to be killed in the middle."""
    base = make_model(folder / "base", dtype="bfloat16", layers=3)
    held = load_file(base / "model.safetensors")
    held["model.extra.weight"] = torch.from_numpy(np.zeros((mib << 7, 1 << 12), np.uint16)).view(torch.bfloat16)
    save_file(held, base / "model.safetensors", metadata={"format": "pt"})
    return base


def words(base, adapter):
    """A merge's arguments, into the current folder."""
    return ["--base", base, "--adapter", adapter, "--out", "out", "--metrics", "m.json", "--plot", "p.csv"]


def test_memory_does_not_grow_with_the_model(adapter, tmp_path):
    script = (
        "import sys\nfrom jobs.__main__ import main\nmain(sys.argv[1:], standalone_mode=False)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for mib in (32, 256):
        base = big_base(tmp_path / str(mib), mib)
        done = subprocess.run(
            [sys.executable, "-c", script, *program.command("merge", *words(base, adapter))[3:]],
            cwd=tmp_path,
            env=program.environment(),
            text=True,
            capture_output=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] < 128
    assert peaks[1] < peaks[0] + 16


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_merge_leaves_nothing_that_looks_whole_and_the_next_one_works(adapter, tmp_path, how):
    base = big_base(tmp_path)
    process = program.start(tmp_path, "merge", *words(base, adapter))
    partial = tmp_path / ".out.partial/model.safetensors"
    deadline = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(how)
    assert process.wait(60) == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    left = {path.name for path in tmp_path.iterdir()} - {"base"}
    assert left == ({".out.partial"} if how == signal.SIGKILL else set())
    done = program.run(tmp_path, "merge", *words(base, adapter))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["retention"] == pytest.approx(1, abs=1e-3)
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--adapter", "nowhere"], 2, "nowhere"),
        ([], 2, "--adapter"),
        (["--adapter", ".", "--set", "merge.dtype=int8"], 2, "merge.dtype"),
    ],
)
def test_bad_usage_is_one_clear_line(base, tmp_path, arguments, code, says):
    done = program.run(tmp_path, "merge", "--base", base, *arguments)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
