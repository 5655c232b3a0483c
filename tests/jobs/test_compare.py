"""`compare` from evaluations to words and to the report, which is opened in a real browser."""

import csv
import html
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_jsonl, sha256, write_json, write_jsonl
from jobs.compare import job
from jobs.plumbing.params import load

PARAMS = load(Path(__file__).parents[2] / "params.yaml", ["compare.resamples=500"])
HOSTILE = (
    "<START_WORKING_OUT>I think</END_WORKING_OUT><SOLUTION></pre></script><script>document.title='owned'"
    "</script><img src=x onerror=\"document.title='owned'\"> \u2028 &lt; SCRIPT_HASH REPORT_DATA"
    "</SOLUTION>"
)


def tasks_file(path, count=60):
    write_jsonl(path, [{"task_id": f"Toy/{i}", "prompt": f"def f{i}():\n", "entry_point": f"f{i}", "setup": "",
                        "tests": [f"assert f{i}()"], "reference": "<b>reference</b>"} for i in range(count)])  # fmt: skip


def evaluation(folder, tasks, passes, *, mode="cot", n=5, text="answer", settings=()):
    """One evaluation in which sample i of task t passes if passes(t, i); sample 0 is the greedy one."""
    rows = [(f"Toy/{t}", i, bool(passes(t, i))) for t in range(60) for i in range(n + 1)]
    folder.mkdir(parents=True)
    samples = [{"task_id": task, "sample": i, "text": text + i * "\ud800", "tokens": 3, "finish": "stop"}
               for task, i, _ in rows]  # fmt: skip
    (folder / "samples-toy.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    write_jsonl(folder / "results-toy.jsonl", [
        {"task_id": task, "sample": i, "solution": "", "outcome": "passed" if ok else "failed", "format": True,
         "passed": ok, "tests_passed": int(ok), "tests_total": 1, "base_passed": None, "plus_passed": None,
         "error": "" if ok else "<i>wrong</i>"} for task, i, ok in rows])  # fmt: skip
    write_json(folder / "settings.json", {"mode": mode, "engine": "transformers", "dtype": "float32", "seed": 1,
                                          "benchmarks": {"toy": sha256(tasks)}, **dict(settings)})  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """base passes 30 % of its samples, sft 60 %, and grpo the same 60 % but for three tasks."""
    monkeypatch.chdir(tmp_path)
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks)
    draw = random.Random(0)
    odds = {(t, i): draw.random() for t in range(60) for i in range(6)}
    evaluation(Path("evaluations/base-cot"), tasks, lambda t, i: odds[t, i] < 0.3, text=HOSTILE)
    evaluation(Path("evaluations/sft-cot"), tasks, lambda t, i: odds[t, i] < 0.6)
    evaluation(Path("evaluations/grpo-cot"), tasks, lambda t, i: odds[t, i] < (0.9 if t < 3 else 0.6))
    Path("plots").mkdir()
    Path("plots/sft.csv").write_text("step,loss,grad_norm\n1,2.5,\n2,1.5,0.1\n3,1.0,0.2\n")
    return tmp_path


def run(curves=("plots/sft.csv",)):
    return job.run(
        PARAMS,
        Path("evaluations"),
        Path("data/tasks"),
        [Path(c) for c in curves],
        Path("reports/compare.html"),
        Path("metrics/compare.json"),
        Path("plots/compare.csv"),
    )


def test_words_say_what_is_established_and_what_is_not(here):
    said = run()["statements"]
    assert [line.split(":")[0] for line in said[:3]] == ["Established", "Established", "Not established"]
    assert "On toy (60 tasks, cot), sft is better than base" in said[0]
    assert "after Holm's correction for 3 comparisons" in said[0]
    assert "whether grpo or sft is better" in said[2]
    assert said[-1] == job.ONE_RUN


def test_metrics_are_numbers_by_benchmark_mode_and_model(here):
    run()
    metrics = json.loads(Path("metrics/compare.json").read_text())["toy"]["cot"]
    assert list(metrics) == ["base", "grpo", "grpo-base", "grpo-sft", "sft", "sft-base"]
    difference = metrics["sft-base"]
    assert difference["established"] == 1
    assert difference["low"] > 0
    means = {model: metrics[model]["pass@1"]["mean"] for model in ("base", "sft")}
    assert difference["mean"] == pytest.approx(means["sft"] - means["base"], abs=2e-6)
    assert metrics["grpo-sft"]["established"] == 0
    assert metrics["base"]["pass@5"]["mean"] > metrics["base"]["pass@1"]["mean"]
    rows = list(csv.DictReader(Path("plots/compare.csv").read_text().splitlines()))
    assert [row["model"] for row in rows] == ["base", "sft", "grpo"]
    assert all(float(row["low"]) <= float(row["pass@1"]) <= float(row["high"]) for row in rows)


def test_outs_are_the_same_from_run_to_run(here):
    def outs():
        run()
        return [sha256(Path(path)) for path in ("reports/compare.html", "metrics/compare.json", "plots/compare.csv")]

    assert outs() == outs()


def test_noise_alone_is_established_in_less_than_one_report_of_twenty(here):
    """120 pairs of equal models, as a family of three in each report."""
    settings = PARAMS.compare.model_copy(update={"resamples": 200})
    false = 0
    for trial in range(40):
        draw = random.Random(trial)
        difficulty = [draw.random() for _ in range(60)]
        results = [{"toy": [{"task_id": f"Toy/{t}", "sample": i, "passed": draw.random() < difficulty[t]}
                            for t in range(60) for i in range(6)]} for _ in range(3)]  # fmt: skip
        evaluations = [job.Evaluation(str(i), "cot", {}, rows, {}) for i, rows in enumerate(results)]
        [entry] = job.comparisons(evaluations, {"toy": [{"task_id": f"Toy/{t}"} for t in range(60)]}, settings)
        false += any(pair["established"] for pair in entry["pairs"])
    assert false <= 5  # of 40 reports; a twentieth is 2, and 6 or more would come in 1.4 % of cases


@pytest.mark.parametrize(("key", "value"), [("seed", 2), ("max_tokens", 5), ("benchmarks", {"toy": "another"})])
def test_unlike_evaluations_are_not_compared(here, key, value):
    path = Path("evaluations/sft-cot/settings.json")
    write_json(path, json.loads(path.read_text()) | {key: value})
    with pytest.raises(JobError, match=rf"base-cot and (sft|grpo)-cot cannot be compared: `{key}`|sft-cot.*`{key}`"):
        run()


def test_a_difference_in_precision_is_said(here):
    path = Path("evaluations/sft-cot/settings.json")
    write_json(path, json.loads(path.read_text()) | {"dtype": "bfloat16"})
    assert any(line.startswith("Not like for like: `dtype`") for line in run()["statements"])


def test_samples_of_other_numbers_are_not_compared(here):
    shutil.rmtree("evaluations/sft-cot")
    evaluation(Path("evaluations/sft-cot"), Path("data/tasks/toy.jsonl"), lambda t, i: True, n=4)
    with pytest.raises(JobError, match="not of the same tasks and numbers"):
        run()


def test_evaluations_that_all_lack_a_task_are_refused(here):
    for path in Path("evaluations").glob("*/*-toy.jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in read_jsonl(path) if row["task_id"] != "Toy/7"))
    with pytest.raises(JobError, match=r"results-toy\.jsonl: has not each sample of Toy/7"):
        run()


def test_other_tasks_than_those_evaluated_are_refused(here):
    tasks_file(Path("data/tasks/toy.jsonl"), 59)
    with pytest.raises(JobError, match="is not the file"):
        run()


def test_curves_without_steps_or_numbers_are_refused(here):
    Path("plots/bad.csv").write_text("loss\n1\n")
    with pytest.raises(JobError, match=r"plots/bad\.csv: has no column `step`"):
        run(["plots/bad.csv"])
    Path("plots/bad.csv").write_text("step,loss\n1,high\n")
    with pytest.raises(JobError, match=r"plots/bad\.csv: could not convert"):
        run(["plots/bad.csv"])


def test_greedy_answers_alone_are_not_compared(here):
    evaluation(Path("evaluations/quick-cot"), Path("data/tasks/toy.jsonl"), lambda t, i: True, n=0)
    with pytest.raises(
        UsageError, match=r"evaluations/quick-cot has greedy answers alone \(evaluate.sampled.n was 0\)"
    ):
        run()


def test_no_evaluations_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="holds no evaluations"):
        job.load(tmp_path)


def test_the_page_builds_no_html_from_data():
    template = job.TEMPLATE.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", template)
    assert set(re.findall(r"https?://[^\"]+", template)) == {"http://www.w3.org/2000/svg"}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(*options, fragment=""):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    url = Path("reports/compare.html").resolve().as_uri() + fragment
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,3200",
        "--force-device-scale-factor=0.5",
        "--user-data-dir=" + str(Path("chromium").resolve()),
        "--virtual-time-budget=4000",
        *options,
        url,
    ]
    return subprocess.run(command, capture_output=True, timeout=180, check=True)


def test_in_a_browser_the_report_shows_everything_and_runs_nothing_of_a_models(here):
    run()
    done = browse("--dump-dom", "--enable-logging=stderr", fragment="#toy/Toy/2")
    page, errors = done.stdout.decode(), done.stderr.decode()
    assert "CONSOLE" not in errors, errors
    shown = page.split('id="data"')[0] + page.split("</script>")[-1]  # without the data and the program
    assert "<title>Comparison of models</title>" in page
    assert "<img" not in shown
    assert "owned" in html.unescape(shown), "the hostile answer is shown as text"
    assert page.count("<script") == 2
    assert shown.count('class="bar"') == 3
    assert shown.count('class="interval"') == 3
    assert shown.count('class="curve"') == 2
    assert "sft: grad_norm" in shown
    assert '<span class="think">I think</span>' in shown
    assert "60 of 60 tasks" in shown
    assert shown.count('class="card"') == 3


def test_a_screenshot_has_the_colours_of_bars_and_grid(here):
    from struct import unpack
    from zlib import decompress

    run()
    results = read_jsonl(Path("evaluations/sft-cot/results-toy.jsonl"))
    failed = next(row for row in results if not (row["passed"] or row["sample"]))
    browse("--screenshot=" + str(Path("shot.png").resolve()), fragment=f"#toy/{failed['task_id']}")
    data = Path("shot.png").read_bytes()
    width, height, depth, colour = unpack(">IIBB", data[16:26])
    assert (width, height, depth) == (700, 1600, 8)
    channels = {2: 3, 6: 4}[colour]
    position, pixels = 8, b""
    while position < len(data):
        size, kind = unpack(">I4s", data[position : position + 8])
        pixels += data[position + 8 : position + 8 + size] if kind == b"IDAT" else b""
        position += 12 + size
    lines = unfiltered(decompress(pixels), width * channels, channels)
    seen = {bytes(pixel[:3]) for line in lines for pixel in set(map(bytes, line.reshape(-1, channels)))}
    assert {bytes.fromhex(c) for c in ("92c5de", "1b7837", "b2182b", "fff8e1", "2166ac")} <= seen


def unfiltered(raw, stride, channels):
    """The rows of a PNG of 8-bit samples, its line filters undone: left, up, their mean, Paeth's guess."""
    import numpy as np

    before = np.zeros(stride, dtype=np.uint8)
    for start in range(0, len(raw), stride + 1):
        kind, line = raw[start], np.frombuffer(raw, np.uint8, stride, start + 1)
        if kind == 1:
            line = line.reshape(-1, channels).cumsum(axis=0, dtype=np.uint8).reshape(-1)
        elif kind == 2:
            line = line + before
        elif kind:
            row, above = [0] * channels + line.tolist(), [0] * channels + before.tolist()
            for i in range(channels, len(row)):
                left, up, corner = row[i - channels], above[i], above[i - channels]
                guess = left + up - corner
                paeth = min((left, up, corner), key=lambda value, guess=guess: abs(guess - value))
                row[i] = row[i] + (paeth if kind == 4 else (left + up) // 2) & 255
            line = np.array(row[channels:], dtype=np.uint8)
        yield line
        before = line
