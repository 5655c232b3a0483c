"""Score a model's samples on the benchmarks; with --model, sample it first.

\b
    python -m jobs evaluate --samples data/samples/grpo-cot --out data/evaluations/grpo-cot \\
        --metrics metrics/evaluate-grpo-cot.json
    python -m jobs evaluate --model models/gguf/grpo-Q8_0.gguf --benchmark humaneval --mode plain

\b
Reads   --samples         samples to score: what `sample` or an earlier `evaluate` wrote
        --model           in their place a model folder or a GGUF file to sample as `sample` does; with --adapter, a
                          PEFT adapter that is not merged
        --benchmarks-dir  the tasks of benchmark NAME in NAME.jsonl
Writes  --out       samples-NAME.jsonl   the samples that were scored (see `sample`)
                    results-NAME.jsonl   the same samples: solution (a whole program), outcome, passed, verdict's fields
                    settings.json        what was asked of the model, and the files it was scored by
        --metrics   by benchmark: pass@1 greedy, mean pass@1 and pass@k of the n samples, how samples failed

HumanEval+ and MBPP+ count twice: NAME by the benchmark's own inputs, NAME+ by evalplus's added ones as well.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.benchmarks import SAMPLE, read_benchmarks, read_rows, require_all
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, replace_dir, sha256, write_json, write_jsonl, write_metrics
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.delegate import delegate
from jobs.plumbing.outputs import FOLDER, METRICS
from jobs.scoring.judge import score
from jobs.scoring.metrics import summary

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

MODES = ("plain", "cot")
KNOWN = (*MODES, "repair")  # of samples; a second answer is in the format of "cot"


def run(
    params: "Params",
    samples: Path | None,
    model: Path | None,
    adapter: Path | None,
    mode: str | None,
    names: list[str],
    folder: Path,
    out: Path,
    metrics_path: Path | None,
) -> dict:
    """Scores `samples`, or those that are drawn of `model`. names: of the benchmarks; [] for those that params, or the
    samples' settings, name. mode: None for "cot", or the samples' own."""
    if samples is not None:
        settings = read_json(samples / "settings.json")
        mode, names = agreed(samples, settings, mode), named(samples, settings, names)
        rows = {name: read_rows(samples / f"samples-{name}.jsonl", SAMPLE) for name in names}
        for name, tasks in read_benchmarks(folder, names).items():
            require_all(f"{samples}/samples-{name}.jsonl", tasks, rows[name])
            path = folder / f"{name}.jsonl"
            if settings.get("benchmarks", {}).get(name, digest := sha256(path)) != digest:
                log.warning("%s is not the file that %s was drawn or scored by: its tests decide now", path, samples)
        return scored(params, rows, settings, mode, folder, out, metrics_path)
    assert model is not None
    mode, names = mode or "cot", names or params.evaluate.benchmarks
    drawn = delegate("sample").drawn(params, model, adapter, mode, names, folder, out.name)
    metrics = scored(params, drawn.samples, drawn.settings, mode, folder, out, metrics_path, drawn.seconds)
    drawn.forget()
    return metrics


def named(samples: Path, settings: dict, names: list[str]) -> list[str]:
    """The benchmarks to score. Errors: UsageError for one that was not sampled, or if there is none."""
    recorded = settings.get("benchmarks", {})
    if not isinstance(recorded, dict):
        raise JobError(f"{samples}/settings.json: its benchmarks are no mapping of names to hashes")
    chosen = names or sorted(recorded)
    if not chosen:
        raise UsageError(f"{samples}/settings.json: names no benchmarks; give --benchmark")
    for name in chosen:
        if not (samples / f"samples-{name}.jsonl").is_file():
            raise UsageError(f"benchmark {name}: {samples} has no samples of it")
    return chosen


def agreed(samples: Path, settings: dict, mode: str | None) -> str:
    """The mode the samples were drawn in. Errors: UsageError if --mode is another, or if none is known."""
    own = settings.get("mode", mode)
    if own not in KNOWN:
        raise UsageError(f"{samples}/settings.json: its mode is {own!r}, none of {', '.join(KNOWN)}")
    if mode not in (None, own):
        raise UsageError(f"--mode: {samples} was sampled in mode {own}, not {mode}")
    return own


def scored(
    params: "Params",
    drawn: dict[str, list[dict]],
    settings: dict,
    mode: str,
    folder: Path,
    out: Path,
    metrics_path: Path | None,
    seconds: dict[str, float] | None = None,
) -> dict:
    """Writes results and metrics of `drawn`, samples by benchmark; `seconds` were spent on sampling
    them in this process, by phase."""
    from jobs.plumbing.provenance import provenance
    from jobs.sandbox import Sandbox

    benchmarks = read_benchmarks(folder, list(drawn))
    hashes = {name: sha256(folder / f"{name}.jsonl") for name in benchmarks}
    began = time.perf_counter()
    metrics: dict[str, dict] = {}
    with Sandbox.from_params(params.sandbox, benchmark=True) as sandbox, replace_dir(out) as unfinished:
        for name, tasks in benchmarks.items():
            results = score(tasks, drawn[name], mode, sandbox)
            write_jsonl(unfinished / f"samples-{name}.jsonl", drawn[name])
            write_jsonl(unfinished / f"results-{name}.jsonl", results)
            metrics |= summary(name, tasks, drawn[name], results, mode)
        write_json(unfinished / "settings.json", settings | {"mode": mode, "benchmarks": hashes})
    phases = (seconds or {}) | {"score": time.perf_counter() - began}
    if metrics_path is not None:
        write_metrics(metrics_path, metrics)
    provenance(
        f"evaluate-{out.name}",
        delegated=("sample",) if seconds else (),
        seconds_by_phase={phase: round(spent, 2) for phase, spent in phases.items()},
        tokens=sum(row["tokens"] for rows in drawn.values() for row in rows),
    )
    return metrics


def place(samples: Path | None, model: Path | None, adapter: Path | None, mode: str | None, **_: object) -> Path:
    """Where the results go unless --out says otherwise. Errors: UsageError."""
    if samples is not None and model is None:
        return Path("data/evaluations") / samples.name
    if model is not None and samples is None:
        return Path("data/evaluations") / f"{(adapter or model).stem}-{mode or 'cot'}"
    raise UsageError("give either --model or --samples")


@job("evaluate", "sandbox")
@reads("--samples", None, "Samples to score: what `sample` or an earlier `evaluate` wrote.")
@reads("--model", None, "A model folder or GGUF file to sample first.")
@reads("--adapter", None, "A PEFT adapter on top of --model.")
@click.option("--mode", type=click.Choice(MODES), help="How to sample --model.  [default: cot]")
@click.option("--benchmark", "names", multiple=True, metavar="NAME", help="Instead of evaluate.benchmarks; repeatable.")
@reads("--benchmarks-dir", "data/tasks", "Folder of the benchmarks.")
@writes("--out", None, "Folder of samples and results.  [default: data/evaluations/MODEL-MODE]", FOLDER, place)
@writes("--metrics", None, "Metrics; without it they are only printed.", METRICS)
def command(
    params: "Params",
    samples: Path | None,
    model: Path | None,
    adapter: Path | None,
    mode: str | None,
    names: tuple[str, ...],
    benchmarks_dir: Path,
    out: Path,
    metrics: Path | None,
) -> None:
    found = run(params, samples, model, adapter, mode, list(names), benchmarks_dir, out, metrics)
    click.echo(json.dumps(found, indent=2))
