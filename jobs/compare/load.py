"""Evaluations from folders: which model, in which mode, of which run; and whether they may be compared at all."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jobs.common.benchmarks import RESULT, SAMPLE, read_rows
from jobs.common.errors import JobError, UsageError
from jobs.common.files import dumps, read_json

PIPELINE = ("base", "sft", "grpo")  # the order in which models come; others follow by name
PRECISION = ("engine", "dtype", "batch_invariant")  # may differ between models, but is then said


@dataclass(frozen=True)
class Evaluation:
    """One folder of `evaluate`. results, samples: by benchmark, rows in the same order.

    run: the number of the run that it belongs to, where models of one run were made from one another; None where the
    runs of different models have nothing to do with each other.
    """

    model: str
    mode: str
    settings: dict
    results: dict[str, list[dict]]
    samples: dict[str, list[dict]]
    run: int | None = 1
    folder: Path = Path()

    def __str__(self) -> str:
        return f"{self.model}-{self.mode}" if self.run == 1 else str(self.folder)

    @cached_property
    def weights(self) -> str:
        """What tells one set of weights from another: their recorded hash, or where there is none, one of all samples.

        Runs of other seeds may give the same samples, as models do that have learned a small world to its end.
        """
        if recorded := self.settings.get("model"):
            return dumps(recorded)
        said = [
            [row["task_id"], row["sample"], row["text"]] for name in sorted(self.samples) for row in self.samples[name]
        ]
        return hashlib.sha256(dumps(said).encode()).hexdigest()


def load(folders: Sequence[Path], named: Mapping[str, Sequence[Path]]) -> list[Evaluation]:
    """All evaluations, in the order of mode, pipeline and run.

    folders: each holds the evaluations MODEL-MODE of one run. named: of a method, the evaluations of its runs.
    Errors: UsageError naming a folder without evaluations, one that is given twice, or one without samples.
    """
    found: list[Evaluation] = []
    for number, folder in enumerate(folders, 1):
        # One that has lost a file is an error. A hidden one is a job's, which was killed or is not done yet.
        marks = (path for name in ("settings.json", "results-*.jsonl") for path in folder.glob(f"[!.]*/{name}"))
        paths = sorted({path.parent for path in marks})
        if not paths and (folder / "settings.json").exists():
            raise UsageError(f"--evaluations: {folder} is one evaluation; name the folder that holds it, or use --runs")
        if not paths:
            raise UsageError(f"--evaluations: {folder} holds no evaluations")
        found += [read(path, number) for path in paths]
    for name, of_name in named.items():
        found += [read(path, None, name) for path in of_name]
    twice(found)
    for one in found:
        if not any(row["sample"] for rows in one.results.values() for row in rows):
            raise UsageError(
                f"{one.folder} has greedy answers alone (evaluate.sampled.n was 0); a comparison needs samples"
            )
    return sorted(found, key=lambda e: (e.mode, place(e.model), e.run or 0))


def read(folder: Path, run: int | None, name: str | None = None) -> Evaluation:
    """The evaluation in `folder`; its model is `name`, or what the folder's name says before the mode."""
    settings = read_json(folder / "settings.json")
    for key, kind in (("mode", str), ("benchmarks", dict)):
        if not isinstance(settings.get(key), kind):
            raise JobError(f"{folder}/settings.json: has no `{key}`, so this is no folder of `evaluate`")
    mode, benchmarks = settings["mode"], sorted(settings["benchmarks"])
    results = {bench: read_rows(folder / f"results-{bench}.jsonl", RESULT) for bench in benchmarks}
    samples = {bench: read_rows(folder / f"samples-{bench}.jsonl", SAMPLE) for bench in benchmarks}
    for bench in benchmarks:
        if list(map(numbered, results[bench])) != list(map(numbered, samples[bench])):
            raise JobError(f"{folder}: samples-{bench}.jsonl and results-{bench}.jsonl are not of the same samples")
    return Evaluation(name or folder.name.removesuffix(f"-{mode}"), mode, settings, results, samples, run, folder)


def twice(evaluations: Iterable[Evaluation]) -> None:
    seen: dict[tuple, Evaluation] = {}
    for one in evaluations:
        for key in ((one.folder.resolve(),), (one.model, one.mode, one.run)):
            if key in seen and (len(key) == 1 or one.run is not None):
                raise UsageError(f"{one.folder} is given twice, or is a second {one.model}-{one.mode} of one run")
            seen[key] = one


def of_pattern(text: str) -> tuple[str, list[Path]]:
    """NAME=PATTERN of --runs: the name, and the folders of `evaluate` that the path or pattern names, sorted.

    Errors: UsageError naming the value where it has no name, or names no such folder.
    """
    name, equals, pattern = text.partition("=")
    if not equals or not name.strip() or not pattern:
        raise UsageError(f"--runs {text}: not of the form NAME=FOLDER, or NAME='PATTERN'")
    path = Path(pattern)
    start = Path(path.anchor) if path.is_absolute() else Path()
    try:
        matched = [path] if path.is_dir() else sorted(start.glob(str(path.relative_to(start))))
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"--runs {text}: {pattern} is no usable pattern ({error})") from None
    folders = [folder for folder in matched if (folder / "settings.json").is_file()]
    if not folders:
        raise UsageError(f"--runs {text}: {pattern} names no folder that `evaluate` wrote, one with a settings.json")
    return name.strip(), folders


def of_patterns(texts: Sequence[str]) -> dict[str, list[Path]]:
    """The folders of each method, of all values of --runs together."""
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, folders = of_pattern(text)
        found.setdefault(name, []).extend(folders)
    return found


def place(model: str) -> tuple[int, str]:
    return (PIPELINE.index(model) if model in PIPELINE else len(PIPELINE), model)


def check_alike(evaluations: list[Evaluation]) -> None:
    """Errors: JobError if two evaluations differ in what must be the same for a comparison, naming both and the key."""
    first = evaluations[0]
    for other in evaluations[1:]:
        for key in sorted((first.settings.keys() | other.settings.keys()) - {"mode", "model", "first", *PRECISION}):
            if first.settings.get(key) != other.settings.get(key):
                raise JobError(
                    f"{first} and {other} cannot be compared: `{key}` "
                    f"is {first.settings.get(key)} and {other.settings.get(key)}"
                )
        for name, rows in first.results.items():
            if [numbered(row) for row in rows] != [numbered(row) for row in other.results[name]]:
                raise JobError(
                    f"{first} and {other} cannot be compared: their samples of {name} are not of the same tasks and numbers"
                )


def numbered(row: dict) -> tuple[str, int]:
    return row["task_id"], row["sample"]


@dataclass(frozen=True)
class Method:
    """A model's runs in one mode, those of equal weights once: `alike` are the groups of runs of equal weights."""

    name: str
    mode: str
    runs: list[Evaluation]
    alike: list[list[Evaluation]]


def methods(evaluations: list[Evaluation]) -> list[Method]:
    """By mode and model, in the order of the evaluations."""
    grouped: dict[tuple[str, str], dict[str, list[Evaluation]]] = {}
    for one in evaluations:
        grouped.setdefault((one.mode, one.model), {}).setdefault(one.weights, []).append(one)
    return [
        Method(model, mode, [group[0] for group in weights.values()], list(weights.values()))
        for (mode, model), weights in grouped.items()
    ]


def pairing(old: Method, new: Method) -> list[tuple[Evaluation, Evaluation]] | None:
    """The two models of every run that has both, pairs of equal weights once; None where their runs are independent.

    They are where a run of either belongs to no numbered run, or no run has both.
    """
    if any(one.run is None for side in (old, new) for group in side.alike for one in group):
        return None
    by_run = [{one.run: one for group in side.alike for one in group} for side in (old, new)]
    common = [number for number in by_run[0] if number in by_run[1]]
    pairs = {(by_run[0][n].weights, by_run[1][n].weights): (by_run[0][n], by_run[1][n]) for n in common}
    return list(pairs.values()) or None
