"""Compare all evaluations: intervals, paired tests, in words what is established, and a report to look into.

\b
    python -m jobs compare --evaluations data/evaluations --curve plots/sft.csv --curve plots/grpo.csv \\
        --out reports/compare.html --metrics metrics/compare.json --plot plots/compare.csv

\b
Reads   --evaluations     folders MODEL-MODE as `evaluate` writes them
        --benchmarks-dir  the tasks that they are about
        --curve           learning curves: a column `step` and columns of numbers
Writes  --out      the report: one HTML file that needs no network
        --metrics  by benchmark and mode: each model's pass rates with intervals, each pair's difference, interval and p
        --plot     pass@1 with its interval, a row a model, for `dvc plots`

A difference is called established if the paired permutation test on the tasks' pass rates is below 1 - confidence,
after Holm's correction for the number of differences in the report, and the difference's interval leaves out 0.
"""

import base64
import csv
import hashlib
import itertools
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common import stats
from jobs.common.benchmarks import read_benchmarks, require_all, views
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, read_jsonl, replace_file, sealed, sha256, write_metrics
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import METRICS, SEALED, TABLE

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Compare, Params

TEMPLATE = Path(__file__).with_name("report.html")
PIPELINE = ("base", "sft", "grpo")  # the order in which models come; others follow by name
PRECISION = ("engine", "dtype", "batch_invariant")  # may differ between models, but is then said
ONE_RUN = (
    "Each model is one training run. What is said holds for these weights, not for the methods that made them: "
    "another seed gives other weights."
)


@dataclass(frozen=True)
class Evaluation:
    """One folder of `evaluate`. results, samples: by benchmark, rows in the same order."""

    model: str
    mode: str
    settings: dict
    results: dict[str, list[dict]]
    samples: dict[str, list[dict]]


@dataclass(frozen=True)
class Rates:
    """What a model does on each task of a view: greedy 0 or 1, the share of its samples that pass, and pass@k."""

    greedy: dict[str, float]
    mean: dict[str, float]
    at_k: dict[str, float]
    k: int


def load(folder: Path) -> list[Evaluation]:
    """All evaluations under `folder`, in the order of the pipeline. Errors: UsageError if there are none."""
    found = []
    for path in sorted(folder.glob("*/settings.json")):
        settings, name = read_json(path), path.parent.name
        benchmarks = sorted(settings["benchmarks"])
        found.append(
            Evaluation(
                name.removesuffix(f"-{settings['mode']}"),
                settings["mode"],
                settings,
                {bench: read_jsonl(path.parent / f"results-{bench}.jsonl") for bench in benchmarks},
                {bench: read_jsonl(path.parent / f"samples-{bench}.jsonl") for bench in benchmarks},
            )
        )
    if not found:
        raise UsageError(f"--evaluations: {folder} holds no evaluations")
    for one in found:
        if not any(row["sample"] for rows in one.results.values() for row in rows):
            raise UsageError(
                f"{folder}/{one.model}-{one.mode} has greedy answers alone (evaluate.sampled.n was 0); "
                "a comparison needs samples"
            )
    return sorted(found, key=lambda e: (e.mode, place(e.model)))


def place(model: str) -> tuple[int, str]:
    return (PIPELINE.index(model) if model in PIPELINE else len(PIPELINE), model)


def check_alike(evaluations: list[Evaluation]) -> None:
    """Errors: JobError if two evaluations differ in what must be the same for a comparison, naming both and the key."""
    first = evaluations[0]
    for other in evaluations[1:]:
        for key in sorted((first.settings.keys() | other.settings.keys()) - {"mode", *PRECISION}):
            if first.settings.get(key) != other.settings.get(key):
                raise JobError(
                    f"{first.model}-{first.mode} and {other.model}-{other.mode} cannot be compared: `{key}` "
                    f"is {first.settings.get(key)} and {other.settings.get(key)}"
                )
        for name, rows in first.results.items():
            if [numbered(row) for row in rows] != [numbered(row) for row in other.results[name]]:
                raise JobError(
                    f"{first.model}-{first.mode} and {other.model}-{other.mode} cannot be compared: their "
                    f"samples of {name} are not of the same tasks and numbers"
                )


def numbered(row: dict) -> tuple[str, int]:
    return row["task_id"], row["sample"]


def rates(rows: list[dict], field: str) -> Rates:
    greedy = {row["task_id"]: float(bool(row[field])) for row in rows if not row["sample"]}
    passes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["sample"]:
            passes[row["task_id"]].append(bool(row[field]))
    k = min(10, min(map(len, passes.values())))
    return Rates(
        greedy,
        {task: sum(p) / len(p) for task, p in passes.items()},
        {task: stats.pass_at_k(len(p), sum(p), k) for task, p in passes.items()},
        k,
    )


def of_one(rates: Rates, settings: "Compare") -> dict:
    """A model's pass rates on a view with their intervals."""

    def interval(values: dict[str, float]) -> dict:
        return asdict(
            stats.bootstrap(
                list(values.values()),
                resamples=settings.resamples,
                bounds=(0, 1),
                confidence=settings.confidence,
                seed=settings.seed,
            )
        )

    return {"greedy": interval(rates.greedy), "pass@1": interval(rates.mean), f"pass@{rates.k}": interval(rates.at_k)}


def of_two(old: Rates, new: Rates, settings: "Compare") -> dict:
    """The paired difference of two models on a view: new minus old."""
    differences = [round(new.mean[task] - old.mean[task], 9) for task in old.mean]
    won = sum(new.greedy[task] > old.greedy[task] for task in old.greedy)
    lost = sum(new.greedy[task] < old.greedy[task] for task in old.greedy)
    interval = stats.bootstrap(
        differences, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed
    )
    return {
        "difference": asdict(interval),
        "p": stats.permutation_test(differences, resamples=settings.resamples, seed=settings.seed),
        "detectable": stats.detectable(differences, settings.confidence),
        "greedy": {"won": won, "lost": lost, "p": stats.mcnemar(lost, won)},
    }


def comparisons(evaluations: list[Evaluation], tasks: "dict[str, list[Task]]", settings: "Compare") -> list[dict]:
    """One entry for each view and mode: `models` by name, and `pairs` with their verdicts."""
    entries: list[dict] = []
    modes = list(dict.fromkeys(e.mode for e in evaluations))
    for benchmark, mode in itertools.product(tasks, modes):
        for view, field in views(benchmark, tasks[benchmark]):
            known = {e.model: rates(e.results[benchmark], field) for e in evaluations if e.mode == mode}
            pairs = [
                {"old": old, "new": new, **of_two(known[old], known[new], settings)}
                for old, new in itertools.combinations(known, 2)
            ]
            entries.append(
                {
                    "benchmark": benchmark,
                    "view": view,
                    "mode": mode,
                    "tasks": len(tasks[benchmark]),
                    "models": {m: of_one(r, settings) for m, r in known.items()},
                    "pairs": pairs,
                }
            )
    pairs = [pair for entry in entries for pair in entry["pairs"]]
    for pair, adjusted in zip(pairs, stats.holm([pair["p"] for pair in pairs]), strict=True):
        clear = pair["difference"]["low"] > 0 or pair["difference"]["high"] < 0
        pair |= {"p_holm": adjusted, "established": bool(clear and adjusted < 1 - settings.confidence)}
    return entries


def statement(entry: dict, pair: dict, comparisons: int, confidence: float) -> str:
    """What is known about a pair, in words."""
    difference = pair["difference"]
    low, high = (f"{100 * difference[end]:+.1f}" for end in ("low", "high"))
    old, new = (100 * entry["models"][pair[side]]["pass@1"]["mean"] for side in ("old", "new"))
    numbers = (
        f"mean pass@1 {old:.1f} % and {new:.1f} %, difference {100 * difference['mean']:+.1f} points, "
        f"{100 * confidence:g} % interval {low} to {high}, p {p_text(pair['p_holm'])}"
        + (f" after Holm's correction for {comparisons} comparisons" if comparisons > 1 else "")
    )
    where = f"On {entry['view']} ({entry['tasks']} tasks, {entry['mode']})"
    if pair["established"]:
        word = "better" if difference["mean"] > 0 else "worse"
        return f"Established: {where}, {pair['new']} is {word} than {pair['old']}: {numbers}."
    return (
        f"Not established: {where}, whether {pair['new']} or {pair['old']} is better: {numbers}. So many tasks "
        f"show a difference of {100 * pair['detectable']:.1f} points four times in five, a smaller one less often."
    )


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def statements(entries: list[dict], evaluations: list[Evaluation], confidence: float) -> list[str]:
    number = sum(len(entry["pairs"]) for entry in entries)
    said = [statement(entry, pair, number, confidence) for entry in entries for pair in entry["pairs"]]
    for key in PRECISION:
        values = {f"{e.model}-{e.mode}": e.settings.get(key) for e in evaluations}
        if len(set(values.values())) > 1:
            said.append(
                f"Not like for like: `{key}` differs between the evaluations "
                f"({', '.join(f'{name}: {value}' for name, value in values.items())})."
            )
    return [*said, ONE_RUN]


def metrics_of(entries: list[dict]) -> dict:
    """Numbers by benchmark and mode. What is infinite (one task has no interval) is left out."""
    metrics: dict = {}
    for entry in entries:
        models = {
            model: {
                name: {key: value for key, value in interval.items() if abs(value) <= 1}
                for name, interval in values.items()
            }
            for model, values in entry["models"].items()
        }
        pairs = {
            f"{pair['new']}-{pair['old']}": {
                **{key: value for key, value in pair["difference"].items() if abs(value) <= 1},
                "p": pair["p"],
                "p_holm": pair["p_holm"],
                "established": int(pair["established"]),
                "greedy": pair["greedy"],
            }
            for pair in entry["pairs"]
        }
        metrics.setdefault(entry["view"], {})[entry["mode"]] = {**models, **pairs}
    return metrics


def curves(paths: list[Path]) -> dict[str, dict[str, list]]:
    """Each file's columns of numbers by its name. Errors: JobError naming the file without steps, or the cell."""
    found = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and "step" not in rows[0]:
            raise JobError(f"{path}: has no column `step`")
        try:
            found[path.stem] = {
                name: [float(row[name]) if row[name] else None for row in rows] for name in (rows[0] if rows else ())
            }
        except ValueError as error:
            raise JobError(f"{path}: {error}") from None
    return found


def report(data: dict) -> str:
    """The page: the template with the data as JSON, and a policy that lets its own script run and no other.

    `<` is written as an escape, so that nothing in the data can end the element that holds it.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return template.replace("SCRIPT_HASH", f"'sha256-{digest}'").replace("REPORT_DATA", text.replace("<", "\\u003c"))


def browsable(evaluations: list[Evaluation], tasks: "dict[str, list[Task]]") -> dict:
    """Tasks and samples as the report shows them: each benchmark's tasks, and per evaluation their samples' rows."""
    shown = {}
    for benchmark, records in tasks.items():
        shown[benchmark] = {
            "tasks": [
                {
                    "id": t["task_id"],
                    "prompt": t["prompt"],
                    "reference": t["reference"],
                    "tests": t.get("check") or "\n".join(t["tests"]),
                }
                for t in records
            ],
            "samples": {f"{e.model} {e.mode}": by_task(e, benchmark) for e in evaluations},
        }
    return shown


def by_task(evaluation: Evaluation, benchmark: str) -> dict[str, list[list]]:
    """Lists of [sample, text, outcome, tests passed, tests, error] by task id; sample 0 is the greedy one."""
    rows: dict[str, list[list]] = defaultdict(list)
    for sample, result in zip(evaluation.samples[benchmark], evaluation.results[benchmark], strict=True):
        rows[sample["task_id"]].append(
            [
                sample["sample"],
                sample["text"],
                result["outcome"],
                result["tests_passed"],
                result["tests_total"],
                result["error"],
            ]
        )
    return rows


def run(
    params: "Params", folder: Path, benchmarks: Path, curve_paths: list[Path], out: Path, metrics_path: Path, plot: Path
) -> dict:
    from jobs.plumbing.provenance import provenance

    settings, evaluations = params.compare, load(folder)
    check_alike(evaluations)
    tasks = read_benchmarks(benchmarks, list(evaluations[0].results))
    for name, recorded in evaluations[0].settings["benchmarks"].items():
        if sha256(benchmarks / f"{name}.jsonl") != recorded:
            raise JobError(f"{benchmarks / name}.jsonl: is not the file that {folder} was evaluated on")
        one = evaluations[0]
        require_all(f"{folder}/{one.model}-{one.mode}/results-{name}.jsonl", tasks[name], one.results[name])
    entries = comparisons(evaluations, tasks, settings)
    said = statements(entries, evaluations, settings.confidence)
    for line in said:
        log.info(line)
    page = report(
        {
            "entries": finite(entries),
            "statements": said,
            "curves": curves(curve_paths),
            "benchmarks": browsable(evaluations, tasks),
            "confidence": settings.confidence,
        }
    )
    with replace_file(out) as partial:
        partial.write_text(sealed(page), encoding="utf-8")
    with replace_file(plot) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["benchmark", "mode", "model", "evaluation", "pass@1", "low", "high"])
        for entry in entries:
            for model, values in entry["models"].items():
                name = f"{entry['view']} {entry['mode']} {model}"
                numbers = [round(values["pass@1"][key], 6) for key in ("mean", "low", "high")]
                table.writerow([entry["view"], entry["mode"], model, name, *numbers])
    write_metrics(metrics_path, metrics_of(entries))
    provenance("compare")
    return {"report": str(out), "statements": said}


def finite(value):
    """The same with None for what JSON cannot say: the ends of an interval over one task."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and abs(value) == float("inf") else value


@job("compare")
@reads("--evaluations", "data/evaluations", "Folder of evaluations.")
@reads("--benchmarks-dir", "data/tasks", "Folder of the benchmarks.")
@reads("--curve", None, "A learning curve to show; repeatable.", multiple=True)
@writes("--out", "reports/compare.html", "The report.", SEALED)
@writes("--metrics", "metrics/compare.json", "Metrics.", METRICS)
@writes("--plot", "plots/compare.csv", "Pass rates for `dvc plots`.", TABLE("benchmark", "mode", "model", "evaluation"))
def command(
    params: "Params",
    evaluations: Path,
    benchmarks_dir: Path,
    curve: tuple[Path, ...],
    out: Path,
    metrics: Path,
    plot: Path,
) -> None:
    result = run(params, evaluations, benchmarks_dir, list(curve), out, metrics, plot)
    click.echo(json.dumps(result, indent=2, ensure_ascii=False))
