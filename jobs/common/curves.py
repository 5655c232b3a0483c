"""A curve from its CSV file: a column `step` and columns of numbers."""

import csv
from pathlib import Path

from jobs.common.errors import JobError


def read_curve(path: Path) -> tuple[list[str], list[dict[str, float | None]]]:
    """The columns' names, and each further line as a number by column: None where a cell is empty, {} for an empty line.

    An empty file has neither. Errors: JobError naming the file that is no CSV file or has no column `step`, or the line
    and column of what is no number. NaN and infinity are numbers.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head, *lines = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise JobError(f"{path}: cannot be read as a CSV file ({error})") from None
    if head and "step" not in head:
        raise JobError(f"{path}: has no column `step`")
    rows = []
    for line, row in enumerate(lines, 2):
        if len(row) > len(head):
            raise JobError(f"{path}: line {line} has {len(row)} cells, and the header {len(head)}")
        cells = [cell.strip() for cell in row] + [""] * (len(head) - len(row))
        values = {name: number(cell, f"{path}: line {line}: `{name}`") for name, cell in zip(head, cells, strict=True)}
        rows.append(values if row else {})
    return head, rows


def number(cell: str, where: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise JobError(f"{where} is {cell[:40]!r}, which is no number") from None
