"""Sample a model on the benchmarks, then score the samples: two steps over files.

\b
    python -m jobs evaluate --model models/grpo-merged --mode cot --out data/evaluations/grpo-cot \\
        --metrics metrics/evaluate-grpo-cot.json
    python -m jobs evaluate --model models/gguf/Q8_0.gguf --benchmark humaneval --mode plain
    python -m jobs evaluate --samples data/evaluations/grpo-cot --mode cot --out rescored --metrics rescored.json

\b
Reads   --model           a model folder, or a GGUF file; with --adapter, a PEFT adapter that is not merged
        --benchmarks-dir  the tasks of benchmark NAME in NAME.jsonl
        --samples         samples to score instead of drawing new ones
Writes  --out       samples-NAME.jsonl   task_id, sample (0: greedy; 1 to n: drawn), text, tokens, finish
                    results-NAME.jsonl   the same samples: solution (a whole program), outcome, passed, verdict's fields
                    settings.json        what was asked for, and of which files
        --metrics   by benchmark: pass@1 greedy, mean pass@1 and pass@k of the n samples, how samples failed

\b
Modes   plain   the model continues the task's prompt, up to the stop strings
        cot     the chat prompt with reasoning and solution in tags (jobs/common/answer_format.py)

HumanEval+ and MBPP+ count twice: NAME by the benchmark's own inputs, NAME+ by evalplus's added ones as well. A killed
run goes on where it stopped: finished batches wait in .checkpoints.
"""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, read_jsonl, replace_dir, sha256, write_json, write_jsonl, write_metrics
from jobs.common.program import extract, left_margin
from jobs.plumbing.cli import job, log, progress, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS
from jobs.plumbing.outputs import check as check_outputs

if TYPE_CHECKING:
    from jobs.inference import Generate
    from jobs.plumbing.params import Evaluate, Params
    from jobs.sandbox import Sandbox

T = TypeVar("T")

# A function is continued until something else begins at the left margin (Chen et al. 2021, section 2.1); a program
# begins there, and ends with what usually follows a function (evalplus's strings for MBPP).
STOP_BODY = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
STOP_PROGRAM = ('\n"""', "\nassert", "\nif __name__", "\nprint(", "\n# Test")
FLAWS = ("no_tags", "truncated", "syntax_error", "wrong_entry_point", "timeout", "crashed", "failed")


def load_engine(settings: "Evaluate", model: Path, adapter: Path | None) -> "Generate":
    if model.suffix == ".gguf":
        from jobs.inference import llama_cpp

        return llama_cpp.load(model, adapter=adapter)
    if settings.engine == "vllm":
        from jobs.inference import vllm

        return vllm.load(
            model,
            adapter=adapter,
            dtype=settings.dtype,
            batch_invariant=settings.batch_invariant,
            gpu_memory=settings.gpu_memory,
        )
    from jobs.inference import hf

    return hf.load(model, adapter=adapter, dtype=settings.dtype, batch_size=settings.batch_size)


def stop_strings(tasks: list[dict], mode: str) -> tuple[str, ...]:
    if mode == "cot":
        return ()
    return STOP_BODY if all(left_margin(task["prompt"], task["entry_point"]) for task in tasks) else STOP_PROGRAM


def calls(settings: "Evaluate", tasks: list[dict], mode: str, per_call: int | None) -> Iterator[tuple]:
    """(tasks, first sample's number, Sampling) for every call of the engine, of `per_call` sequences or all."""
    from jobs.inference import Sampling

    stop = stop_strings(tasks, mode)
    drawn = settings.sampled
    ordered = sorted(tasks, key=lambda task: len(task["prompt"]))
    wanted = [(0, Sampling(max_tokens=settings.max_tokens, stop=stop))]
    if drawn.n:
        wanted.append((1, Sampling(drawn.n, drawn.temperature, drawn.top_p, settings.max_tokens, stop, settings.seed)))
    for first, sampling in wanted:
        size = max(1, per_call // sampling.n) if per_call else len(tasks)
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size], first, sampling


def generate(
    settings: "Evaluate",
    tasks: list[dict],
    mode: str,
    engine: "Callable[[], Generate]",
    per_call: int | None,
    checkpoint: Path,
) -> list[dict]:
    """The samples of all tasks, in their order. Finished calls are kept in the file `checkpoint`, a line each."""
    finished = whole_lines(checkpoint)
    samples = {(row["task_id"], row["sample"]): row for rows in finished for row in rows}
    todo = list(calls(settings, tasks, mode, per_call))
    if finished:
        log.info("%s: %d of %d calls were made before", checkpoint.stem, len(finished), len(todo))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with open(checkpoint, "a", encoding="utf-8") as file:
        for part, first, sampling in progress(todo[len(finished) :], label=f"evaluate: {checkpoint.stem}"):
            prompts = [answer_format.chat_prompt(t["prompt"]) if mode == "cot" else t["prompt"] for t in part]
            rows = [
                {"task_id": task["task_id"], "sample": first + i, **asdict(completion)}
                for task, completions in zip(part, engine()(prompts, sampling), strict=True)
                for i, completion in enumerate(completions)
            ]
            file.write(json.dumps(rows) + "\n")
            file.flush()
            os.fsync(file.fileno())
            samples.update({(row["task_id"], row["sample"]): row for row in rows})
    return [samples[task["task_id"], i] for task in tasks for i in range(1 + settings.sampled.n)]


def whole_lines(path: Path) -> list[list[dict]]:
    """The finished calls; a line cut short by a kill is removed from the file."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def score(tasks: list[dict], samples: list[dict], mode: str, sandbox: "Sandbox") -> list[dict]:
    """A result for each sample, in order: its program, the sandbox's verdict, and the outcome in one word.

    outcome: "passed", or the first that holds of FLAWS. Equal programs of a task are run once.
    Errors: JobError naming the sample whose task is unknown, or on which the sandbox itself failed.
    """
    by_id = {task["task_id"]: task for task in tasks}
    extracted = []
    for row in samples:
        task = by_id.get(row["task_id"])
        if task is None:
            raise JobError(f"a sample of {row['task_id']}, which is not among the tasks")
        extracted.append(extract(row["text"], task["prompt"], task["entry_point"], mode, row["finish"] == "length"))
    pairs = dict.fromkeys((row["task_id"], e.solution) for row, e in zip(samples, extracted, strict=True) if e.solution)
    futures = {pair: sandbox.submit(by_id[pair[0]], pair[1]) for pair in pairs}
    verdicts = {pair: futures[pair].result() for pair in progress(futures, label="evaluate: scoring")}
    results = []
    for row, extraction in zip(samples, extracted, strict=True):
        verdict = verdicts.get((row["task_id"], extraction.solution))
        if verdict is not None and verdict.status == "infrastructure_error":
            raise JobError(f"the sandbox failed on sample {row['sample']} of {row['task_id']}: {verdict.error}")
        passed = verdict is not None and verdict.passed
        fields = {"tests_passed": 0, "tests_total": 0, "base_passed": None, "plus_passed": None, "error": ""}
        if verdict is not None:
            fields = {name: getattr(verdict, name) for name in fields}
        results.append(
            {
                "task_id": row["task_id"],
                "sample": row["sample"],
                "solution": extraction.solution,
                "outcome": outcome(passed, row, extraction.flaw, verdict.status if verdict else None),
                "format": answer_format.parse(row["text"]) is not None,
                "passed": passed,
                **fields,
            }
        )
    return results


def outcome(passed: bool, row: dict, flaw: str | None, status: str | None) -> str:
    if passed:
        return "passed"
    if flaw == "no_tags":
        return flaw
    if row["finish"] == "length":
        return "truncated"
    return flaw or {"invalid": "wrong_entry_point"}.get(str(status), str(status))


def views(name: str, tasks: list[dict]) -> list[tuple[str, str]]:
    """What is reported of a benchmark: (name, the result's field that says whether a sample passes)."""
    if any(task.get("base_input") for task in tasks):
        return [(name, "base_passed"), (f"{name}+", "passed")]
    return [(name, "passed")]


def summary(name: str, tasks: list[dict], samples: list[dict], results: list[dict], mode: str) -> dict:
    """Metrics by view; `failures` are fractions of all samples, greedy ones among them."""
    from jobs.common.stats import pass_at_k

    drawn = len(results) // len(tasks) - 1
    metrics = {}
    for view, field in views(name, tasks):
        counts = Counter(row["task_id"] for row in results if row["sample"] and row[field])
        greedy = mean(bool(row[field]) for row in results if not row["sample"])
        metrics[view] = {"tasks": len(tasks), "greedy": {"pass@1": greedy}}
        if drawn:
            ks = dict.fromkeys((1, min(10, drawn)))
            sampled = {f"pass@{k}": mean(pass_at_k(drawn, counts[task["task_id"]], k) for task in tasks) for k in ks}
            metrics[view]["sampled"] = sampled
    kinds = Counter(row["outcome"] for row in results)
    metrics[name] |= {
        "failures": {kind: kinds[kind] / len(results) for kind in FLAWS},
        "tokens": mean(row["tokens"] for row in samples),
    }
    if mode == "cot":
        metrics[name]["format"] = mean(row["format"] for row in results)
    return metrics


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def read_tasks(folder: Path, names: list[str]) -> dict[str, list[dict]]:
    """The tasks of each benchmark. Errors: JobError for one with another number of tasks than sizes.json says."""
    missing = [name for name in names if not (folder / f"{name}.jsonl").is_file()]
    if missing:
        raise UsageError(f"benchmark {missing[0]}: {folder / missing[0]}.jsonl does not exist")
    benchmarks = {name: read_jsonl(folder / f"{name}.jsonl") for name in names}
    sizes = read_json(folder / "sizes.json") if (folder / "sizes.json").is_file() else {}
    for name, tasks in benchmarks.items():
        if len(tasks) != sizes.get(name, len(tasks)):
            raise JobError(
                f"{folder / name}.jsonl: has {len(tasks)} tasks, and {sizes[name]} are recorded in sizes.json"
            )
    return benchmarks


def require_all(where: str, tasks: list[dict], rows: list[dict]) -> None:
    """Errors: JobError unless `rows` has each sample of each task once: a metric over fewer would be another one."""
    found: dict[str, list[int]] = {task["task_id"]: [] for task in tasks}
    for row in rows:
        found.setdefault(row["task_id"], []).append(row["sample"])
    wanted = sorted({number for numbers in found.values() for number in numbers})
    odd = [task["task_id"] for task in tasks if sorted(found[task["task_id"]]) != wanted or not wanted]
    if odd:
        raise JobError(
            f"{where}: has not each sample of {odd[0]} once; all {len(tasks)} tasks are to have the same samples"
        )


def run(
    params: "Params",
    model: Path | None,
    adapter: Path | None,
    samples: Path | None,
    mode: str,
    names: list[str],
    folder: Path,
    out: Path,
    metrics_path: Path | None,
) -> dict:
    from jobs.plumbing import checkpoint
    from jobs.sandbox import Sandbox

    settings, benchmarks = params.evaluate, read_tasks(folder, names)
    asked = {
        "mode": mode,
        "engine": "llama_cpp" if model and model.suffix == ".gguf" else settings.engine,
        **settings.model_dump(exclude={"engine", "benchmarks", "batch_size", "gpu_memory"}),
        "benchmarks": {name: sha256(folder / f"{name}.jsonl") for name in names},
    }
    drawn: dict[str, list[dict]] = {}
    kept = None
    seconds = {"load": 0.0, "generate": 0.0, "score": 0.0}
    if samples is not None:
        asked = read_json(samples / "settings.json") | {"mode": mode, "benchmarks": asked["benchmarks"]}
        drawn = {name: read_jsonl(samples / f"samples-{name}.jsonl") for name in names}
        for name, rows in drawn.items():
            require_all(f"{samples}/samples-{name}.jsonl", benchmarks[name], rows)
    elif model is not None:
        if asked["engine"] == "vllm":
            from jobs.inference import vllm

            vllm.begin_import(settings.batch_invariant)
        inputs = [path for path in (model, adapter) if path]
        asked_for = asked | {"batch_size": settings.batch_size}
        kept = checkpoint.folder("evaluate", asked_for, *inputs, run=f"evaluate-{out.name}")
        engine = once(lambda: timed(seconds, "load", lambda: load_engine(settings, model, adapter)))
        per_call = None if asked["engine"] == "vllm" else settings.batch_size
        for name, tasks in benchmarks.items():
            drawn[name] = timed(
                seconds,
                "generate",
                partial(generate, settings, tasks, mode, engine, per_call, kept / f"{name}.jsonl"),
            )
        seconds["generate"] -= seconds["load"]  # the engine is loaded within the first call
        del engine
    metrics: dict[str, dict] = {}
    with Sandbox.from_params(params.sandbox, benchmark=True) as sandbox, replace_dir(out) as unfinished:
        for name, tasks in benchmarks.items():
            results = timed(seconds, "score", partial(score, tasks, drawn[name], mode, sandbox))
            write_jsonl(unfinished / f"samples-{name}.jsonl", drawn[name])
            write_jsonl(unfinished / f"results-{name}.jsonl", results)
            metrics |= summary(name, tasks, drawn[name], results, mode)
        write_json(unfinished / "settings.json", asked)
    if metrics_path is not None:
        write_metrics(metrics_path, metrics)
    if kept is not None:
        shutil.rmtree(kept)
    checkpoint.provenance(
        f"evaluate-{out.name}",
        seconds_by_phase={k: round(v, 2) for k, v in seconds.items()},
        tokens=sum(row["tokens"] for rows in drawn.values() for row in rows),
    )
    return metrics


def timed(seconds: dict[str, float], phase: str, work: "Callable[[], T]") -> "T":
    began = time.perf_counter()
    result = work()
    seconds[phase] += time.perf_counter() - began
    return result


def once(make: "Callable[[], Generate]") -> "Callable[[], Generate]":
    """`make`, called when its result is first needed: a run that only has to score never loads the model."""
    made: list[Generate] = []

    def get() -> "Generate":
        if not made:
            made.append(make())
        return made[0]

    return get


@job("evaluate", "sandbox")
@reads("--model", None, "A model folder or GGUF file.")
@reads("--adapter", None, "A PEFT adapter on top of --model.")
@reads("--samples", None, "An earlier --out, whose samples are scored anew.")
@click.option("--mode", type=click.Choice(["plain", "cot"]), default="cot", show_default=True)
@click.option("--benchmark", "names", multiple=True, metavar="NAME", help="Instead of evaluate.benchmarks; repeatable.")
@reads("--benchmarks-dir", "data/tasks", "Folder of the benchmarks.")
@writes("--out", None, "Folder of samples and results.  [default: data/evaluations/MODEL-MODE]", FOLDER)
@writes("--metrics", None, "Metrics; without it they are only printed.", METRICS)
def command(
    params: "Params",
    model: Path | None,
    adapter: Path | None,
    samples: Path | None,
    mode: str,
    names: tuple[str, ...],
    benchmarks_dir: Path,
    out: Path | None,
    metrics: Path | None,
) -> None:
    if (model is None) == (samples is None):
        raise UsageError("give either --model or --samples")
    out = out or Path("data/evaluations") / f"{(adapter or model or samples).stem}-{mode}"  # type: ignore[union-attr]
    inputs = {"--model": model, "--adapter": adapter, "--samples": samples, "--benchmarks-dir": benchmarks_dir}
    check_outputs({flag: path for flag, path in inputs.items() if path}, {"--out": (out, FOLDER)})  # its default too
    chosen = list(names) or params.evaluate.benchmarks
    click.echo(json.dumps(run(params, model, adapter, samples, mode, chosen, benchmarks_dir, out, metrics), indent=2))
