"""Folders of `evaluate` made by hand, and `compare` run over them."""

import json
import random
from pathlib import Path

from jobs.common.files import read_jsonl, sha256, write_json, write_jsonl
from jobs.compare import job
from jobs.compare.load import load, of_patterns
from jobs.plumbing.params import load as load_params

PARAMS = load_params(Path(__file__).parents[1] / "params.yaml", ["compare.resamples=500"])

HOSTILE = (
    "<START_WORKING_OUT>I think</END_WORKING_OUT><SOLUTION></pre></script><script>document.title='owned'"
    "</script><img src=x onerror=\"document.title='owned'\"> \u2028 &lt; SCRIPT_HASH REPORT_DATA"
    "</SOLUTION>"
)


def tasks_file(path, count=60, **fields):
    """fields: of a task besides, each a function of its number."""
    write_jsonl(path, [{"task_id": f"Toy/{i}", "prompt": f"def f{i}():\n", "entry_point": f"f{i}", "setup": "",
                        "tests": [f"assert f{i}()"], "reference": "<b>reference</b>",
                        **{key: value(i) for key, value in fields.items()}} for i in range(count)])  # fmt: skip


def evaluation(folder, tasks, passes, *, mode="cot", n=5, text="answer", settings=(), base=None, outcome="failed"):
    """One evaluation in which sample i of task t passes if passes(t, i); sample 0 is the greedy one.

    base: likewise, whether it passes the benchmark's own inputs, where there are plus inputs.
    """
    ids = [row["task_id"] for row in read_jsonl(tasks)]
    rows = [(ids[t], i, bool(passes(t, i)), base and bool(base(t, i))) for t in range(len(ids)) for i in range(n + 1)]
    folder.mkdir(parents=True)
    samples = [{"task_id": task, "sample": i, "text": text + i * "\ud800", "tokens": 3, "finish": "stop"}
               for task, i, _, _ in rows]  # fmt: skip
    (folder / "samples-toy.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    write_jsonl(folder / "results-toy.jsonl", [
        {"task_id": task, "sample": i, "solution": "", "outcome": "passed" if ok else outcome, "format": True,
         "passed": ok, "tests_passed": int(ok), "tests_total": 1, "base_passed": own, "plus_passed": own and ok,
         "error": "" if ok else "<i>wrong</i>"} for task, i, ok, own in rows])  # fmt: skip
    write_json(folder / "settings.json", {"mode": mode, "engine": "transformers", "dtype": "float32", "seed": 1,
                                          "benchmarks": {"toy": sha256(tasks)}, **dict(settings)})  # fmt: skip


def run(curves=(), *, folders=("evaluations",), runs=(), completions=None, tasks=None, params=PARAMS):
    return job.run(
        params,
        load([Path(folder) for folder in folders], of_patterns(runs)),
        Path("data/tasks"),
        [Path(curve) for curve in curves],
        completions and Path(completions),
        tasks and Path(tasks),
        Path("reports/compare.html"),
        Path("metrics/compare.json"),
        Path("plots/compare.csv"),
    )


def metrics(mode="cot", view="toy"):
    return json.loads(Path("metrics/compare.json").read_text())[view][mode]


def shown():
    """The data that the report shows."""
    page = Path("reports/compare.html").read_text()
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def lay_out():
    """In the working folder: base passes 30 % of its samples, sft 60 %, and grpo the same 60 % but for three tasks."""
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks)
    draw = random.Random(0)
    odds = {(t, i): draw.random() for t in range(60) for i in range(6)}
    evaluation(Path("evaluations/base-cot"), tasks, lambda t, i: odds[t, i] < 0.3, text=HOSTILE)
    evaluation(Path("evaluations/sft-cot"), tasks, lambda t, i: odds[t, i] < 0.6)
    evaluation(Path("evaluations/grpo-cot"), tasks, lambda t, i: odds[t, i] < (0.9 if t < 3 else 0.6))
    Path("plots").mkdir()
    Path("plots/sft.csv").write_text("step,loss,grad_norm\n1,2.5,\n2,1.5,0.1\n3,1.0,0.2\n")


def lay_out_alike(values, base=0.5):
    """In the working folder: of each task, `before` passes a share `base` of 10 samples, `later` that and `values`."""
    tasks = Path("data/tasks/toy.jsonl")
    tasks_file(tasks, len(values))
    evaluation(Path("evaluations/before-cot"), tasks, lambda t, i: 0 < i <= 10 * base, n=10)
    evaluation(Path("evaluations/later-cot"), tasks, lambda t, i: 0 < i <= round(10 * (base + values[t])), n=10)
