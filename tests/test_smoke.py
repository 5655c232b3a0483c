"""The whole pipeline at toy size, as `make smoke` runs it, and what it must show: that the model learned."""

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from jobs.common.files import read_jsonl, sha256
from jobs.plumbing.yaml12 import dump, read_yaml
from tests.pages import blocks

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / ".smoke"
pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def smoke():
    """.smoke/ brought up to date: minutes the first time, seconds after `make smoke`."""
    with open(Path(tempfile.gettempdir()) / "jobs-tests-smoke.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker's tests may want it too
        done = subprocess.run([sys.executable, "-m", "jobs", "smoke"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def dvc(*words, cwd=SMOKE):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RUNTIME": "local",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metric(name):
    return json.loads((SMOKE / f"metrics/{name}.json").read_text())


def test_it_ends_with_metrics_a_time_line_and_the_report(smoke):
    for part in ("pass@1", "seconds by stage", "sample-grpo-cot", "evaluate-grpo-cot", "reports/compare.html"):
        assert part in smoke
    assert (SMOKE / "reports/compare.html").stat().st_size > 10_000


def test_it_learns(smoke):
    """100 held-out tasks, 10 samples each at temperature 0.8: base < SFT < GRPO, each by more than its interval."""
    assert len(read_jsonl(SMOKE / "data/tasks/toy.jsonl")) >= 100
    cot = metric("compare")["toy"]["cot"]
    base, sft, grpo = (cot[model]["pass@1"]["mean"] for model in ("base", "sft", "grpo"))
    for pair in ("sft-base", "grpo-sft"):
        assert cot[pair]["low"] > 0, (pair, cot[pair])
        assert cot[pair]["established"] == 1
    assert base < 0.6, "the base model is to be mediocre when sampled"
    expected = expected_pass_rates()
    assert abs(base - expected["base"]) < 0.08, "what is wrong in its corpus sets what the base passes"
    assert abs(sft - expected["sft"]) < 0.1, "the sign that its teacher forgets sets what SFT passes"
    assert base < sft < grpo
    assert grpo >= 0.9


def expected_pass_rates():
    """Of a base that has learned its corpus, and of an SFT model that has learned its teacher's answers."""
    from jobs.plumbing.params import load
    from jobs.sft import set_aside
    from jobs.toy.world import SIGNED, expected_pass

    params = load(SMOKE / "params.yaml")
    toy, sampled = params.base.toy, params.evaluate.sampled
    rows = read_jsonl(SMOKE / "data/distill/examples.jsonl")
    aside = set_aside(len(rows), params.sft.validation, Path("examples"))
    answers = [row["answer"] for i, row in enumerate(rows) if i not in aside]
    signed = sum(SIGNED in answer for answer in answers) / len(answers)
    assert 0.3 < signed < 0.4
    return {
        "base": expected_pass(toy.wrong, toy.signed, sampled.temperature, sampled.top_p),
        "sft": expected_pass(0.0, signed, sampled.temperature, sampled.top_p),
    }


def test_its_twin_learns_whole_programs(smoke):
    """In few steps what is trained on is solved more often, and in the end held-out tasks more often than SFT would."""
    twin = SMOKE.with_name(".smoke-stdin")
    assert "whole programs: solved while training" in smoke
    assert sha256(twin / ".cache/base") == sha256(SMOKE / "models/base")
    tasks = read_jsonl(twin / "data/tasks/toy_stdin.jsonl")
    assert len(tasks) >= 50 and all(task["stdin_tests"] and not task["entry_point"] for task in tasks)
    trained = json.loads((twin / "metrics/grpo.json").read_text())
    with open(twin / "plots/grpo.csv") as file:
        solved = [float(row["all_tests_passed"]) for row in csv.DictReader(file)]
    assert sum(solved[-2:]) / 2 > solved[0], solved
    assert trained["steps_without_signal"] == 0
    found = json.loads((twin / "metrics/evaluate-grpo-cot.json").read_text())["toy_stdin"]
    assert found["sampled"]["pass@1"] > 0.75, "a model that forgets the sign as its teacher does passes 0.70"
    assert found["failures"]["timeout"] == found["failures"]["crashed"] == 0


def test_tasks_are_graded_and_chosen_by_it(smoke):
    given, aside = (read_jsonl(SMOKE / f"data/{name}.jsonl") for name in ("graded", "validation"))
    grade = read_yaml(SMOKE / "params.yaml")["grade"]
    assert grade["samples"] and len(aside) == grade["validation"] > 0
    assert {row["graded"] for row in given} == {grade["samples"]}
    assert not {row["task_id"] for row in given} & {row["task_id"] for row in aside}
    low, high = read_yaml(SMOKE / "params.yaml")["grpo"]["difficulty"]
    chosen = [row for row in given if low <= row["pass_rate"] <= high]
    assert metric("grpo")["tasks"] == {"given": len(given), "chosen": len(chosen)}
    assert 0 < len(chosen) < len(given)
    trained = {row["task_id"] for row in read_jsonl(SMOKE / "data/grpo/completions.jsonl")}
    assert trained <= {row["task_id"] for row in chosen}


def test_held_out_tasks_are_answered_while_it_trains_and_the_best_adapter_is_kept(smoke):
    found, every = metric("grpo")["validation"], read_yaml(SMOKE / "params.yaml")["grpo"]["validate_every"]
    assert found["before"]["sampled"] < 0.9 < found["best"]["sampled"]
    curve = {int(row["step"]): row["validation_sampled"] for row in rows_of("grpo")}
    measured = {step: float(rate) for step, rate in curve.items() if rate}
    assert measured and all(step % every == 0 or step == max(curve) for step in measured)
    assert measured[found["best"]["step"]] == max(measured.values()) == found["best"]["sampled"]
    kept, last = (SMOKE / "models/adapters/grpo" / name / "adapter_model.safetensors" for name in (".", "last"))
    assert (kept.read_bytes() == last.read_bytes()) == (found["best"]["step"] == max(curve))


def test_sft_is_measured_after_every_epoch_by_examples_that_it_does_not_learn(smoke):
    found, params = metric("sft"), read_yaml(SMOKE / "params.yaml")["sft"]
    losses = [found["validation"][f"loss_after_epoch_{epoch}"] for epoch in range(1, params["epochs"] + 1)]
    assert losses[-1] < losses[0]
    assert [float(row["validation_loss"]) for row in rows_of("sft") if row["validation_loss"]] == losses
    assert found["examples"] + found["validation"]["examples"] == metric("distill")["examples"]


@pytest.mark.parametrize(("job", "tag"), [("sft", "eval/loss"), ("grpo", "train/validation/sampled")])
def test_the_event_log_has_the_steps_of_the_curve(smoke, job, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [file] = sorted((SMOKE / "reports/tracking/tensorboard" / job).iterdir(), key=lambda path: path.stat().st_mtime)[
        -1:
    ]
    log = EventAccumulator(str(file)).Reload()
    logged = {event.step: event.value for event in log.Scalars("train/loss")}
    curve = {int(row["step"]): float(row["loss"]) for row in rows_of(job)}
    assert logged == pytest.approx(curve, abs=1e-6)
    assert log.Scalars(tag)


def test_the_report_shows_these_curves(smoke):
    page = (SMOKE / "reports/compare.html").read_text()
    for name in ("validation_sampled", "validation_greedy", "validation_loss", "special_cased"):
        assert name in page, name


def rows_of(job):
    with open(SMOKE / f"plots/{job}.csv") as file:
        return [*csv.DictReader(file)]


def test_splits_share_no_task(smoke):
    prompts = {
        name: {row["prompt"] for row in read_jsonl(SMOKE / f"data/tasks/{name}.jsonl")}
        for name in ("distill", "train", "toy")
    }
    assert not prompts["distill"] & prompts["train"] and not prompts["toy"] & (prompts["distill"] | prompts["train"])
    examples = {row["prompt"] for row in read_jsonl(SMOKE / "data/distill/examples.jsonl")}
    assert len(examples) == metric("distill")["examples"] and examples <= prompts["distill"]


def test_the_teachers_bad_answers_were_refused_for_their_reasons(smoke):
    reasons = {row["reason"] for row in read_jsonl(SMOKE / "data/distill/rejects.jsonl")}
    assert len(reasons) >= 3 and "tags" in reasons


def test_merge_and_gguf_kept_the_training(smoke):
    assert metric("merge-grpo")["retention"] > 0.99
    assert metric("gguf")["Q8_0"]["kl"] < 0.01
    assert (SMOKE / "models/gguf").is_dir()


def test_a_second_run_does_nothing(smoke):
    assert "is up to date" in dvc("repro", "--dry") or "up to date" in dvc("status")


def test_one_training_param_reruns_from_there_on_only(smoke):
    path = SMOKE / "params.yaml"
    before = path.read_text()
    params = read_yaml(path)
    params["grpo"]["learning_rate"] *= 0.5
    try:
        path.write_text(dump(params))
        planned = dvc("repro", "--dry", "--force-downstream")
    finally:
        path.write_text(before)
    for stage in ("grpo", "merge@grpo", "sample@grpo-cot", "evaluate@grpo-cot", "compare", "gguf"):
        assert f"Running stage '{stage}'" in planned, stage
    for stage in (
        "base",
        "tasks",
        "distill",
        "sft",
        "grade",
        "merge@sft",
        "sample@base-cot",
        "sample@sft-cot",
        "evaluate@sft-cot",
    ):
        assert f"Running stage '{stage}'" not in planned, stage


def test_an_edit_of_the_sandbox_samples_nothing_anew(smoke):
    """Verdicts may change with it, and so what GRPO trains; what a model answers does not."""
    file = SMOKE / "jobs/sandbox/judge.py"
    before = file.read_text()
    try:
        file.write_text(before + "# edited\n")
        planned = dvc("repro", "--dry")
    finally:
        file.write_text(before)
    assert "Running stage 'evaluate@base-cot'" in planned
    assert "Running stage 'sample@base-cot'" not in planned
    assert "Running stage 'sample@sft-cot'" not in planned


@pytest.mark.parametrize(
    "words", [("metrics", "show"), ("metrics", "diff"), ("dag",), ("plots", "show"), ("status",)], ids=" ".join
)
def test_dvcs_commands_work(smoke, words):
    dvc(*words)


@pytest.mark.parametrize(
    "words", [("dag",), ("metrics", "show"), ("repro", "--dry", "--single-item", "base")], ids=" ".join
)
def test_dvcs_commands_work_in_the_repository(words):
    dvc(*words, cwd=ROOT)


def test_outs_are_the_lock_files(smoke):
    """What dvc.lock says of two outs is what lies there: nothing writes into an out after its stage."""
    lock = yaml.safe_load((SMOKE / "dvc.lock").read_text())["stages"]
    assert set(lock) >= {"base", "tasks", "distill", "sft", "grpo", "merge@sft", "merge@grpo", "compare", "gguf"}
    import hashlib

    for stage, out in (("compare", "reports/compare.html"), ("grpo", "data/grpo/completions.jsonl")):
        recorded = next(o["md5"] for o in lock[stage]["outs"] if o["path"] == out)
        assert hashlib.md5((SMOKE / out).read_bytes()).hexdigest() == recorded


def test_nothing_in_an_out_names_the_machine(smoke):
    import platform

    for folder in ("models", "metrics", "plots", "data/tasks", "data/distill", "data/samples", "data/evaluations"):
        for path in (SMOKE / folder).rglob("*"):
            if path.is_file() and path.suffix in (".json", ".jsonl", ".csv", ".md"):
                text = path.read_text()
                assert str(ROOT) not in text, path
                assert platform.node() not in text or len(platform.node()) < 4, path
    assert sha256(SMOKE / "models/base")


@pytest.mark.parametrize("heading", ["Try it on a laptop", "The real run"])
def test_the_readmes_lines_with_dvc_work_as_they_are_written(smoke, tmp_path, heading):
    """In a shell that has nothing of .venv on its PATH. For the real run, the smoke run stands in: all of it is done."""
    [block] = [block for block in blocks(ROOT / "README.md", heading) if "dvc " in block]
    place = tmp_path / (".smoke" if "cd .smoke" in block else "repository")
    shutil.copytree(SMOKE, place, symlinks=True)
    identity = ("-c", "user.name=reader", "-c", "user.email=reader@localhost")
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "another"], cwd=place, check=True)
    start = tmp_path if "cd .smoke" in block else place
    (start / ".venv").symlink_to(ROOT / ".venv")
    if "make install" in block:
        stamp = subprocess.run(
            ["make", "--no-print-directory", "--eval=stamp: ; @echo $(INSTALLED)", "stamp"],
            cwd=place,
            capture_output=True,
            text=True,
        )
        if not (place / stamp.stdout.strip()).exists():  # .venv is another lock's, and a test installs nothing into it
            block = block.replace("make install", "make --dry-run install")
    script = f"trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{block}"
    installed = {str(Path(sys.executable).parent), str(ROOT / ".venv/bin")}
    bare = os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder not in installed)
    done = subprocess.run(["bash", "-c", script], cwd=start, env=os.environ | {"PATH": bare, "RUNTIME": "local"},
                          capture_output=True, text=True)  # fmt: skip
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ") or "command not found" in line]
    assert set(failed) <= {"failed: make doctor"}, (
        done.stdout + done.stderr
    )  # it says what this machine lacks for the real run
