"""The comparison itself: for each view and mode the models' pass rates, and every pair's difference with its verdict."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import TYPE_CHECKING

from jobs.common import stats
from jobs.common.benchmarks import views
from jobs.compare import seeds
from jobs.compare.groups import by_group
from jobs.compare.load import Evaluation, Method, methods, pairing
from jobs.compare.rates import Rates, failures, rates, resampled

if TYPE_CHECKING:
    import numpy as np

    from jobs.common.task import Task
    from jobs.plumbing.params import Compare


def comparisons(evaluations: list[Evaluation], tasks: "dict[str, list[Task]]", settings: "Compare") -> list[dict]:
    """One entry for each view and mode: `models` by name, and `pairs` with their verdicts."""
    everyone = methods(evaluations)
    entries: list[dict] = []
    for benchmark, mode in itertools.product(tasks, dict.fromkeys(method.mode for method in everyone)):
        chosen = [method for method in everyone if method.mode == mode]
        for view, field in views(benchmark, tasks[benchmark]):
            known = {id(one): rates(one.results[benchmark], field) for m in chosen for one in m.runs}
            known |= {id(one): known[id(group[0])] for m in chosen for group in m.alike for one in group}
            runs = {m.name: [known[id(one)] for one in m.runs] for m in chosen}
            entries.append(
                {
                    "benchmark": benchmark,
                    "view": view,
                    "mode": mode,
                    "tasks": len(tasks[benchmark]),
                    "models": {name: of_one(rows, settings) for name, rows in runs.items()},
                    "pairs": [of_two(*two, known, settings) for two in itertools.combinations(chosen, 2)],
                    "failures": {m.name: failed(m, benchmark, field) for m in chosen},
                    "groups": by_group(
                        tasks[benchmark], {name: averaged(rows) for name, rows in runs.items()}, settings
                    ),
                }
            )
    judged(entries, settings.confidence)
    return entries


def judged(entries: list[dict], confidence: float) -> None:
    """Adds the corrected p and the verdict to every pair. Holm's correction is over those that can be established."""
    able = [pair for entry in entries for pair in entry["pairs"] if pair["over"] in ("weights", "methods")]
    for entry in entries:
        for pair in entry["pairs"]:
            pair |= {"p_holm": 1.0, "established": False}
    for pair, adjusted in zip(able, stats.holm([pair["p"] for pair in able]), strict=True):
        clear = pair["difference"]["low"] > 0 or pair["difference"]["high"] < 0
        pair |= {"p_holm": adjusted, "established": bool(clear and adjusted < 1 - confidence)}


def averaged(runs: Sequence[Rates]) -> dict[str, float]:
    return {task: mean(run.mean[task] for run in runs) for task in runs[0].mean}


def failed(method: Method, benchmark: str, field: str) -> dict[str, dict[str, float]]:
    """`failures`, the mean over the method's runs."""
    found = [failures(one.results[benchmark], field) for one in method.runs]
    return {
        part: {
            kind: mean(f[part].get(kind, 0.0) for f in found) for kind in sorted({k for f in found for k in f[part]})
        }
        for part in ("greedy", "sampled")
    }


def of_one(runs: Sequence[Rates], settings: "Compare") -> dict:
    """A model's pass rates on a view with their intervals, over tasks, and over runs from seeds.LEAST runs on."""
    import numpy as np

    def interval(rows: list[dict[str, float]]) -> dict:
        values = np.array([list(row.values()) for row in rows])
        if len(rows) >= seeds.LEAST:
            return asdict(seeds.crossed([values], confidence=settings.confidence, bounds=(0, 1), weight=1.0).interval)
        return asdict(resampled(values.mean(axis=0), settings, (0, 1), 1.0))

    found: dict = {
        "greedy": interval([run.greedy for run in runs]),
        "pass@1": interval([run.mean for run in runs]),
        f"pass@{runs[0].k}": interval([run.at_k for run in runs]),
    }
    if len(runs) > 1:
        means = [mean(run.mean.values()) for run in runs]
        found["runs"] = {"number": len(runs), "sd": stdev(means), "pass@1": means}
    return found


def of_two(old: Method, new: Method, known: dict[int, Rates], settings: "Compare") -> dict:
    """The paired difference of two models on a view: new minus old.

    over: what the difference is told of: these "weights", the "methods" that made them, or none of both: "few" tasks, or
    "two" runs.
    """
    import numpy as np

    pairs = pairing(old, new)
    sides = [[known[id(one)] for one in side] for side in (zip(*pairs, strict=True) if pairs else (old.runs, new.runs))]
    used = [
        len({one.weights for one in side}) for side in (zip(*pairs, strict=True) if pairs else (old.runs, new.runs))
    ]
    matrices = [np.array([list(run.mean.values()) for run in side]) for side in sides]
    factors = [matrices[1] - matrices[0]] if pairs else [matrices[1], -matrices[0]]
    by_task = [round(float(d), 9) for d in sum(rows.mean(axis=0) for rows in factors)]
    counts = [len(rows) for rows in factors]
    tasks, few = len(by_task), len(by_task) < stats.least_tasks(settings.confidence)
    over = "few" if few else "weights" if max(counts) == 1 else "two" if 2 in counts else "methods"
    weight = stats.weight_of_ends(by_task)
    if over == "few":
        interval, p = stats.Interval(mean(by_task), -1.0, 1.0), 1.0
    elif over == "methods":
        found = seeds.crossed(factors, confidence=settings.confidence, bounds=(-1, 1), weight=weight)
        interval, p = found.interval, found.p
    else:
        interval = stats.of_differences(
            by_task, resamples=settings.resamples, confidence=settings.confidence, seed=settings.seed
        )
        p = stats.permutation_test(by_task, resamples=settings.resamples, seed=settings.seed)
    return {
        "old": old.name,
        "new": new.name,
        "difference": asdict(interval),
        "p": p,
        "over": over,
        "runs": {"old": used[0], "new": used[1], "paired": bool(pairs)},
        "by_run": [float(d) for d in factors[0].mean(axis=1)] if pairs else [],
        "agree": stats.standing_out(by_task) == 0,
        "greedy": greedy(*sides, paired=bool(pairs)),
        **outlook(factors, sides, by_task, settings.confidence, known=not few),
        "tasks": tasks,
    }


def outlook(
    factors: "list[np.ndarray]", sides: list[list[Rates]], by_task: list[float], confidence: float, known: bool
) -> dict:
    """The difference that as much scatter shows, and what others would need; None where nothing of it is known."""
    if not known or stats.standing_out(by_task) == 0:
        return {"detectable": None, "scatter": None, "needed": None}
    samples = min(run.samples for side in sides for run in side)
    noise = sum(mean(run.noise for run in side) for side in sides)
    found = seeds.scatter(factors, noise, samples)
    runs = (
        min(map(len, factors)) if found.runs is None else max(seeds.LEAST, min(n for n in map(len, factors) if n > 1))
    )
    needed = seeds.needed(found, runs, len(by_task), samples, confidence) if samples > 1 else None
    return {
        "detectable": seeds.detectable(found, runs, len(by_task), samples, confidence),
        "scatter": asdict(found) | {"seeds": runs, "samples_a_task": samples},
        "needed": needed,
    }


def greedy(olds: list[Rates], news: list[Rates], *, paired: bool) -> dict:
    """Tasks that the greedy answer wins and loses, with McNemar's p for one run of each; of several, the mean number."""
    two = list(zip(olds, news, strict=True)) if paired else list(itertools.product(olds, news))
    won = [sum(new.greedy[task] > old.greedy[task] for task in old.greedy) for old, new in two]
    lost = [sum(new.greedy[task] < old.greedy[task] for task in old.greedy) for old, new in two]
    if len(two) == 1:
        return {"won": won[0], "lost": lost[0], "p": stats.mcnemar(lost[0], won[0])}
    return {"won": mean(won), "lost": mean(lost)}
