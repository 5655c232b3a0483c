"""Learning curves from CSV files: columns of numbers by step, with gaps where a run had none."""

import math
from collections import Counter
from pathlib import Path

from jobs.common.curves import read_curve
from jobs.common.errors import JobError


def curves(paths: list[Path]) -> tuple[list[dict], list[str]]:
    """Each file as {name, label, columns}, and in words which cells are gaps. A label tells files of one name apart.

    Errors: JobError naming the file that is no CSV file or has no steps or nothing beside them, or line and column of
    what is no number.
    """
    names = Counter(path.stem for path in paths)
    found, said = [], []
    for path in paths:
        columns, gaps = read(path)
        found.append({"name": path.stem, "label": str(path) if names[path.stem] > 1 else "", "columns": columns})
        said += [f"{path}: `{name}` has no finite number at {told}: a gap in the curve." for name, told in gaps.items()]
    return found, said


def read(path: Path) -> tuple[dict[str, list[float | None]], dict[str, str]]:
    """A file's columns, and for each with NaN or infinity the steps of those. Rows without a step are left out."""
    head, rows = read_curve(path)
    if not head:
        raise JobError(f"{path}: is empty, and no learning curve")
    columns: dict[str, list[float | None]] = {name: [] for name in head}
    gaps: dict[str, list[str]] = {}
    for line, row in enumerate(rows, 2):
        step = row.get("step")
        if row and (step is None or not math.isfinite(step)):
            gaps.setdefault("step", []).append(f"line {line}")
            continue
        for name, value in row.items():
            finite = value is not None and math.isfinite(value)
            columns[name].append(value if finite else None)
            if value is not None and not finite:
                gaps.setdefault(name, []).append(f"step {step:g} ({value})")
    if not columns["step"]:
        raise JobError(f"{path}: has no line with a step")
    if not any(name in gaps or any(value is not None for value in columns[name]) for name in head if name != "step"):
        raise JobError(f"{path}: has no numbers beside its steps")
    return columns, {name: listed(steps) for name, steps in gaps.items()}


def listed(places: list[str], most: int = 5) -> str:
    return ", ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")
