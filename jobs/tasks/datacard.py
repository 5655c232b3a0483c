"""The data card of the tasks: their origin, what was left out by which rule, and what to beware of, as Markdown."""

from collections import Counter
from typing import TYPE_CHECKING

from jobs.tasks.sources import TRAINING

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Tasks as Settings

MEANING = {
    "solves": "its reference passes all tests of a benchmark's task",
    "statement": "its statement is like a benchmark's (TF-IDF cosine of at least {likeness:g}, examples left out)",
    "words": "its prompt shares {words} words in a row with a benchmark's",
    "any": "at least one of these",
}
WHY = {
    "setup": "its tests need more than the prompt tells",
    "entry_point": "its tests do not call one function of its own",
    "excluded": "it is listed in params (tasks.exclude)",
    "contaminated": "it overlaps with a benchmark's task",
    "unusable": "no task can be made of its row (tasks.sources)",
    "too_long": "its prompt is longer than its source may have (tasks.sources)",
    "repeated": "an earlier row of its source has the same prompt (tasks.sources)",
    "packages": "it needs packages that the sandbox does not have (sandbox.packages)",
    "unverified": "none of its solutions passes its tests (tasks.sources)",
}


def limits(splits: "dict[str, list[Task]]") -> list[str]:
    """What is said of the training tasks' own limits of time; nothing where none has one."""
    counts = Counter((name, task.get("timeout")) for name in TRAINING for task in splits.get(name, []))
    own = [f"{count} of {name} have {seconds:g} s" for (name, seconds), count in counts.items() if seconds]
    said = (
        "A training task whose reference is quick has a time limit of its own (`timeout`), the others sandbox.timeout: "
    )
    return [said + ", ".join(own) + ".", ""] if own else []


def card(splits: "dict[str, list[Task]]", metrics: dict, settings: "Settings") -> str:
    """splits: the tasks that are written; metrics: as jobs/tasks/job.py writes them. The same from run to run."""
    origins = [
        f"| {split} | {count} | {source} | {licence} |"
        for split, tasks in splits.items()
        for (source, licence), count in sorted(Counter((t["source"], t["license"]) for t in tasks).items())
    ]
    names = list(metrics["contaminated"])
    found = [
        f"| {rule} | {text.format(**settings.overlap.model_dump())} | "
        + " | ".join(str(metrics["contaminated"][name][rule]) for name in names)
        + " |"
        for rule, text in MEANING.items()
    ]
    return "\n".join(
        [
            "# Tasks",
            "",
            "Programming tasks with tests and a reference solution each, and the benchmarks that models are measured by. "
            "Written by `python -m jobs tasks`; jobs/common/task.py says what the fields are.",
            "",
            "| split | tasks | source | licence |",
            "|---|---|---|---|",
            *origins,
            "",
            "Every reference passes its own tests in the sandbox. A benchmark keeps all the tasks it was drawn with.",
            "",
            *limits(splits),
            "## Left out of training",
            "",
            "| reason | meaning | tasks |",
            "|---|---|---|",
            *(f"| {reason} | {WHY[reason]} | {count} |" for reason, count in metrics["left_out"].items()),
            "",
            "left_out.jsonl lists them. What overlaps, by rule; contamination.jsonl has every pair:",
            "",
            f"| rule | meaning | {' | '.join(names)} |",
            f"|---|---|{'---|' * len(names)}",
            *found,
            "",
            "## Limits",
            "",
            "- A paraphrase whose solution is another function passes all three rules.",
            "- Some tasks are dropped that only sound alike, or are one trivial function: the rules are drawn to find more "
            "rather than less.",
            "- A reference that passes its own tests can still be wrong where they do not look.",
            "",
        ]
    )
