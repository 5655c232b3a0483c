"""docs/walks.md: its commands run as they stand there, in a repository whose params are the smoke run's, made tiny."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from jobs.common.files import read_json, read_jsonl, record_of, sha256, write_jsonl
from jobs.plumbing.params import merged, validate
from jobs.plumbing.yaml12 import dump, parse, read_yaml
from jobs.tasks import sources
from tests.pages import blocks
from tests.toy import make_model

ROOT = Path(__file__).parents[1]
WALKS = ROOT / "docs/walks.md"
pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(os.environ.get("JOBS_WALKS") != "1", reason="JOBS_WALKS=1 is not set; `make walks` sets it"),
]
TINY = {
    "base": {"toy": {"steps": 4, "hidden_size": 64, "intermediate_size": 64, "layers": 1, "heads": 2,
                     "kv_heads": 1, "head_dim": 32}},
    "tasks": {"toy": {"distill": 20, "train": 8, "heldout": 4}},
    "distill": {"examples": 8},
    "sft": {"epochs": 1, "validation": 0},
    "grade": {"samples": 0, "validation": 0},
    "grpo": {"steps": 2, "generations": 2, "batch_size": 4, "max_completion_length": 16, "difficulty": None,
             "validate_every": 0, "keep": "last"},
    "evaluate": {"max_tokens": 16, "sampled": {"n": 2}},
    "merge": {"min_retention": 0.0},
    "sandbox": {"workers": 1},
}  # fmt: skip


def sh(script: str, folder: Path, **more: str) -> str:
    """What the commands print. RUNTIME=local: the walks are about DVC; tests/containers have the engines.

    A make around the tests would have the commands' own say which folders they enter.
    """
    around = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in around}
    environment |= {"RUNTIME": "local", "COLUMNS": "100", "GIT_CONFIG_GLOBAL": str(folder.parent / "gitconfig")} | more
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def own_environment(folder: Path) -> None:
    """A .venv to install into, which sees the packages of the one that the tests run in."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    python = folder / ".venv/bin/python"
    [packages] = (folder / ".venv/lib").glob("python*/site-packages")
    (packages / "shared.pth").write_text(
        importlib.util.find_spec("dvc").submodule_search_locations[0].rpartition("/")[0]
    )
    (folder / ".venv/bin/dvc").write_text(f"#!{python}\nfrom dvc.cli import main\nraise SystemExit(main())\n")
    (folder / ".venv/bin/dvc").chmod(0o755)
    (folder / ".venv/bin/uv").symlink_to(Path(sys.executable).parent / "uv")
    installed = sh("make --eval='name: ; @echo $(INSTALLED)' name", folder)
    (folder / installed.strip()).touch()  # what `make` leaves once it has installed the lock


def prepared(folder: Path, *changes: dict) -> Path:
    """A repository with the smoke run's params and these changes, and an environment of its own."""
    subprocess.run([sys.executable, "-m", "jobs", "smoke", "--prepare", "--out", folder], cwd=ROOT, check=True)
    (folder.parent / "gitconfig").write_text("[user]\n\tname = walker\n\temail = walker@localhost\n")
    change(folder, *changes)
    own_environment(folder)
    sh("git add --all && git commit --quiet --message start", folder)
    return folder


def change(folder: Path, *changes: dict) -> None:
    params = read_yaml(folder / "params.yaml")
    for more in changes:
        params = merged(params, more)
    validate(params, "the walks' params")
    (folder / "params.yaml").write_text(dump(params))


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("walks") / "box", TINY)


def write_sources(folder: Path) -> dict:
    """Stand-ins of a few tasks for HumanEval+, MBPP+ and MBPP, and the params that pin them.

    Their numbers are none of MBPP's: evalplus compares some of those by rules of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)  # it is there where the repository has sources of its own
    plus = {"plus_input": [[5]], "atol": 0, "contract": "", "base_input": [[3], [4]]}
    rows = {
        "HumanEvalPlus": [
            plus | {"task_id": f"HumanEval/{n}", "prompt": f'def h{n}(x):\n    """Multiply by {n}."""\n', "test": "",
                    "entry_point": f"h{n}", "canonical_solution": f"    return x * {n}\n"} for n in (7, 9)],
        "MbppPlus": [
            plus | {"task_id": f"Mbpp/{n}", "prompt": f'"""\nTake {n} away.\nassert m{n}({n}) == 0\n"""\n',
                    "entry_point": f"m{n}", "canonical_solution": f"def m{n}(x):\n    return x - {n}\n",
                    "assertion": f"assert m{n}({n}) == 0"} for n in range(9002, 9006)],
        "mbpp": [
            {"text": f"Write a function to cube a number and add {n} to it.", "task_id": n,
             "code": f"def c{n}(x):\n    y = x**3\n    return y + {n}", "test_setup_code": "",
             "test_list": [f"assert c{n}(0) == {n}"], "challenge_test_list": []} for n in range(9002, 9014)],
    }  # fmt: skip
    for row in rows["mbpp"]:
        row |= {name: row.pop(name) for name in sources.MBPP_FIELDS}  # in the order that its hash is of
    for name, found in rows.items():
        write_jsonl(folder / f"{name}.jsonl", found)
    digests = {name: {"sha256": sha256(folder / f"{name}.jsonl")} for name in rows}
    pinned = {"humaneval_plus": digests["HumanEvalPlus"], "mbpp_plus": digests["MbppPlus"], "mbpp": digests["mbpp"]}
    return {"tasks": {"toy": None, "exclude": [], "heldout": 1, **pinned}}


def test_a_base_model_and_tasks_of_ones_own(tmp_path):
    box = prepared(tmp_path / "own", TINY)
    task = {"task_id": "own/1", "prompt": "Write `half(x)` that returns x // 2.", "entry_point": "half",
            "tests": ["assert half(8) == 4", "assert half(-3) == -2"],
            "reference": "def half(x):\n    return x // 2\n"}  # fmt: skip
    (box / "my_tasks.jsonl").write_text(json.dumps(task) + "\n")
    check, walk = blocks(WALKS, "One GPU, a base model and tasks of your own")
    checked = sh(check, box)
    assert "gpu" in checked, "doctor spoke"
    printed, _ = json.JSONDecoder().raw_decode(checked[checked.index("{") :])
    make_model(box / "my_base", layers=1)
    change(
        box,
        write_sources(box / "data/sources"),
        {"tasks": {"files": [parse(printed["for tasks.files"])]}, "evaluate": {"benchmarks": ["humaneval", "mbpp"]}},
        {"base": {"toy": None, "folder": {"path": "my_base", "sha256": sha256(box / "my_base")}}},
        {"distill": {"recorded": None, "references": True, "examples": 6}, "gguf": {"benchmark": "humaneval"}},
    )
    walked = sh(walk, box)
    assert '"job": "tasks"' in walked
    assert all(f"\n{stage}:" in walked for stage in ("base", "tasks", "sft", "gguf")), "nothing had been run"
    assert "own/1" in {row["task_id"] for row in read_jsonl(box / "data/tasks/train.jsonl")}
    assert record_of(box / "models/base")["source"]["folder"] == "my_base"
    measured = read_json(box / "metrics/evaluate-grpo-cot.json")
    assert {"humaneval", "mbpp"} <= measured.keys()
    assert '"statements"' in walked and "On humaneval" in walked
    assert (box / "reports/compare.html").is_file()


def test_three_seeds_by_two_losses(box):
    sweep, table, comparison = blocks(WALKS, "Three seeds by two losses")
    ran = sh(sweep, box)
    for stage in ("base", "tasks", "distill"):
        assert ran.count(f"Running stage '{stage}'") == 1, f"{stage} ran again for another seed"
    assert ran.count("Running stage 'grpo'") == 7
    assert ran.count("Running stage 'sft'") <= 4, "both losses train from one adapter of a seed"
    shown = sh(table, box)
    assert all(len(line) <= 100 for line in shown.splitlines()), shown
    for seed in (1, 2, 3):
        for loss in ("bnpo", "dr_grpo"):
            assert re.search(rf"\[{loss}-{seed}\].*\b{seed}\b.*\b{loss}\b", shown), shown
    sh(comparison, box)
    models = json.loads((box / "compared/metrics.json").read_text())["toy"]["cot"]
    assert {"bnpo", "dr_grpo", "dr_grpo-bnpo"} <= models.keys()


@pytest.fixture(scope="module")
def storage(box):
    """An S3 server on this machine, from a package that is in the box's environment alone."""
    wanted = ["uv", "pip", "install", "--quiet", "--python", ".venv/bin/python", "--constraint",
              "docker/images/cpu/packages.lock", "moto[server]"]  # fmt: skip
    done = subprocess.run(wanted, cwd=box, env=os.environ | {"PATH": f"{box}/.venv/bin:{os.environ['PATH']}"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        pytest.skip(f"an S3 server (moto) cannot be installed here: {done.stderr.strip()[-200:]}")
    log = open(box.parent / "moto.log", "w")  # noqa: SIM115
    server = subprocess.Popen([box / ".venv/bin/python", "-m", "moto.server", "--port", "0"], stdout=log, stderr=log)
    url, deadline = None, time.monotonic() + 60
    while url is None and time.monotonic() < deadline:
        time.sleep(0.2)
        found = re.search(r"http://127\.0\.0\.1:\d+", (box.parent / "moto.log").read_text())
        url = found and found.group()
    assert url, (box.parent / "moto.log").read_text()
    urllib.request.urlopen(urllib.request.Request(f"{url}/models", method="PUT"), timeout=30).close()
    yield {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.terminate()
    server.wait()
    log.close()


def test_what_was_run_is_shared_by_s3(box, storage):
    ours, theirs = blocks(WALKS, "A shared machine, and what was run on it in S3")
    sh(". .venv/bin/activate; dvc repro evaluate@grpo-cot", box)
    sh("git add --all; git commit --quiet --allow-empty --message run", box)
    sh(ours, box, **storage)
    said = sh("docker/doctor || true", box, PATH=f"{box}/.venv/bin:{os.environ['PATH']}", **storage)
    assert "ok       dvc        default remote 'shared' (s3://models/post-training)" in said
    other = box.parent / "other"
    sh(f"git clone --quiet {box} {other} && ln -s {box}/.venv {other}/.venv", box.parent)
    sh(theirs, other, **storage)
    for name in ("data/evaluations/grpo-cot", "models/grpo", "data/responses"):
        assert sorted(p.name for p in (other / name).rglob("*")) == sorted(p.name for p in (box / name).rglob("*")), (
            name
        )
    state = sh(". .venv/bin/activate; dvc status evaluate@grpo-cot", other)
    assert "up to date" in state, "who pulled need not run it again"
    shutil.rmtree(other)
