"""The report's page: the template with everything that it shows as JSON."""

import base64
import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.benchmarks import views
from jobs.compare.load import Evaluation, methods

if TYPE_CHECKING:
    from jobs.common.task import Task

TEMPLATE = Path(__file__).with_name("report.html")
STYLE = Path(__file__).with_name("report.css")
SCRIPTS = [Path(__file__).with_name(name) for name in ("report.js", "sections.js", "browse.js")]

ABOUT = ("source", "difficulty", "pass_rate", "date")  # of a task, where it says so


def report(data: dict) -> str:
    """The page: the template with style, script and the data as JSON. Its policy lets its own script run and no other.

    `<` is written as an escape, so that nothing in the data can end the element that holds it.
    """
    script = "\n" + "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    parts = {
        "SCRIPT_HASH": f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        "REPORT_STYLE": STYLE.read_text(encoding="utf-8"),
        "REPORT_SCRIPT": script,
        "REPORT_DATA": json.dumps(finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, text in parts.items():  # the data come last, as they may hold any of these names
        page = page.replace(name, text)
    return page


def finite(value):
    """The same with None for what JSON cannot say: NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def browsable(evaluations: list[Evaluation], tasks: "dict[str, list[Task]]") -> dict:
    """Tasks and samples as the report shows them: each benchmark's views and tasks, and of the first run of each model and
    mode the samples' rows."""
    shown = {}
    for benchmark, records in tasks.items():
        seen = views(benchmark, records)
        shown[benchmark] = {
            "views": [name for name, _ in seen],
            "tasks": [
                {
                    "id": t["task_id"],
                    "prompt": t["prompt"],
                    "reference": t.get("reference") or "",
                    "tests": t.get("check") or "\n".join(t.get("tests") or ()),
                    "about": {key: value for key, value in t.items() if key in ABOUT and value not in (None, "")},
                }
                for t in records
            ],
            "samples": {
                f"{m.name} {m.mode}": by_task(m.runs[0], benchmark, [field for _, field in seen])
                for m in methods(evaluations)
            },
        }
    return shown


def by_task(evaluation: Evaluation, benchmark: str, fields: list[str]) -> dict[str, list[list]]:
    """Lists of [sample, text, outcome, tests passed, tests, error, passes] by task id; sample 0 is the greedy one.

    passes: whether it passes each view.
    """
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
                [int(bool(result[field])) for field in fields],
            ]
        )
    return rows
