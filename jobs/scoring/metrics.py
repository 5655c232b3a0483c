"""From results to metrics: pass rates by view, and how samples failed."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jobs.common.benchmarks import views
from jobs.common.stats import pass_at_k
from jobs.extraction.program import RULES
from jobs.scoring.judge import FLAWS

if TYPE_CHECKING:
    from jobs.common.task import Task


def pass_rates(samples: Iterable[tuple[str, bool]], ks: Sequence[int]) -> dict[str, float]:
    """pass@k for each of `ks` that every task has samples for: the unbiased estimate, averaged over the tasks.

    samples: (task id, whether it passes).
    """
    passes: dict[str, list[bool]] = defaultdict(list)
    for task_id, passed in samples:
        passes[task_id].append(passed)
    least = min(map(len, passes.values()), default=0)
    return {f"pass@{k}": mean(pass_at_k(len(p), sum(p), k) for p in passes.values()) for k in ks if k <= least}


def summary(name: str, tasks: "list[Task]", samples: list[dict], results: list[dict], mode: str) -> dict:
    """Metrics by view; `passed` and `failures` are fractions of all samples, greedy ones among them, and add up to 1.

    rules: how often each rule of extraction had a part in finding a sample's program (docs/extraction.md).
    """
    drawn = len(results) // len(tasks) - 1
    metrics: dict[str, dict] = {}
    for view, field in views(name, tasks):
        greedy = mean(bool(row[field]) for row in results if not row["sample"])
        metrics[view] = {"tasks": len(tasks), "greedy": {"pass@1": greedy}}
        if drawn:
            marks = [(row["task_id"], bool(row[field])) for row in results if row["sample"]]
            metrics[view]["sampled"] = pass_rates(marks, list(dict.fromkeys((1, min(10, drawn)))))
        kinds = Counter(row["outcome"] for row in results if not row[field])
        metrics[view] |= {
            "passed": mean(bool(row[field]) for row in results),
            "failures": {kind: kinds[kind] / len(results) for kind in FLAWS},
        }
    fired = Counter(rule for row in results for rule in row["rule"].split("+"))
    metrics[name] |= {
        "rules": {rule: fired[rule] / len(results) for rule in RULES},
        "tokens": mean(row["tokens"] for row in samples),
    }
    if mode != "plain":
        metrics[name]["format"] = mean(row["format"] for row in results)
    return metrics


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
