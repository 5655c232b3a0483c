"""Learning curves from CSV files: columns of numbers by step, with gaps where a run had none."""

import csv
import math
from collections import Counter
from pathlib import Path

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
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise JobError(f"{path}: cannot be read as a CSV file ({error})") from None
    if not head:
        raise JobError(f"{path}: is empty, and no learning curve")
    if "step" not in head:
        raise JobError(f"{path}: has no column `step`")
    columns: dict[str, list[float | None]] = {name: [] for name in head}
    gaps: dict[str, list[str]] = {}
    for line, row in enumerate(rows, 2):
        if len(row) > len(head):
            raise JobError(f"{path}: line {line} has {len(row)} cells, and the header {len(head)}")
        cells = [cell.strip() for cell in row] + [""] * (len(head) - len(row))
        values = {name: number(cell, f"{path}: line {line}: `{name}`") for name, cell in zip(head, cells, strict=True)}
        step = values.get("step")
        if row and (step is None or not math.isfinite(step)):
            gaps.setdefault("step", []).append(f"line {line}")
        elif row:
            for name, value in values.items():
                finite = value is not None and math.isfinite(value)
                columns[name].append(value if finite else None)
                if value is not None and not finite:
                    gaps.setdefault(name, []).append(f"step {step:g} ({value})")
    if not columns["step"]:
        raise JobError(f"{path}: has no line with a step")
    if not any(name in gaps or any(value is not None for value in columns[name]) for name in head if name != "step"):
        raise JobError(f"{path}: has no numbers beside its steps")
    return columns, {name: listed(steps) for name, steps in gaps.items()}


def number(cell: str, where: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise JobError(f"{where} is {cell[:40]!r}, which is no number") from None


def listed(places: list[str], most: int = 5) -> str:
    return ", ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")
