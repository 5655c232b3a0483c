import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs import evaluate, sample
from jobs.__main__ import JOBS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "trl", "peft", "numpy", "datasets", "evalplus", "openai", "llama_cpp", "pydantic")


@pytest.mark.parametrize("job", ["", *JOBS])
def test_help_names_the_job_and_imports_nothing_heavy(job):
    """--help must be instant; what makes it slow is an import at the top of a file."""
    code = (
        "import sys, runpy; sys.argv = ['jobs', *sys.argv[1:]]\n"
        "try: runpy.run_module('jobs', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *([job] if job else []), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "HEAVY []" in done.stdout
    assert not job or f"jobs {job}" in done.stdout


@pytest.mark.parametrize(("job", "out"), [("base", "models/base"), ("sft", "models/adapters/sft"),
                                          ("grpo", "models/adapters/grpo")])  # fmt: skip
def test_dry_run_says_what_would_be_read_and_written_and_writes_nothing(job, out, tmp_path):
    for folder in ("models/base", "models/adapters/sft", "data/distill", "data/tasks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/distill/examples.jsonl").touch()
    (tmp_path / "data/graded.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "jobs", job, "--dry-run", "--params", str(ROOT / "params.yaml")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'"{out}"' in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sample --model models/base", '"--out": "data/samples/base-cot"'),
        ("sample --model models/base --adapter adapters/sft --mode plain", '"--out": "data/samples/sft-plain"'),
        ("sample --model models/base --repair samples/base-cot", '"--out": "data/samples/base-repair"'),
        ("sample --model models/base --out own", '"--out": "own"'),
        ("sample --model models/base --repair samples/base-cot --mode cot --out own", "give either --mode or --repair"),
        ("evaluate --model models/base", '"--out": "data/evaluations/base-cot"'),
        ("evaluate --samples samples/base-cot", '"--out": "data/evaluations/base-cot"'),
        ("evaluate --out own", "give either --model or --samples"),
    ],
)
def test_an_output_whose_place_hangs_on_other_flags_is_in_the_dry_run_too(line, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("models/base", "adapters/sft", "samples/base-cot", "data/tasks"):
        Path(folder).mkdir(parents=True)
    name, *flags = line.split()
    command = {"sample": sample.command, "evaluate": evaluate.command}[name]
    done = CliRunner().invoke(command, [*flags, "--dry-run", "--params", str(ROOT / "params.yaml")])
    assert said in done.output
    assert done.exit_code == (2 if said.startswith("give") else 0)


def test_an_unknown_job_is_bad_usage():
    done = subprocess.run([sys.executable, "-m", "jobs", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("score", "--tasks"),
        ("score --tasks params.yaml", "--samples"),
        ("score --tasks params.yaml --samples params.yaml", "--out"),
        ("sample --benchmarks-dir tests", "--model"),
        ("merge --base tests", "--adapter"),
        ("publish", "--repo"),
    ],
)
def test_a_flag_without_a_default_is_asked_for(given, missing):
    done = subprocess.run([sys.executable, "-m", "jobs", *given.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"Missing option '{missing}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_ends_with_143():
    """A stopped container gets SIGTERM; what a job holds is then released as on Ctrl-C."""
    import signal

    code = (
        "import runpy, sys, threading, time; import jobs.plumbing.params, jobs.sft\n"
        "jobs.plumbing.params.load = lambda *a: (print('ready', flush=True), time.sleep(60))\n"
        "sys.argv = ['jobs', 'sft']; runpy.run_module('jobs', run_name='__main__')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=20) == 143
    assert time.monotonic() - began < 20
