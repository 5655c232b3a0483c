"""Watch a training run in the terminal: its curves as they grow, and the answers it logs, page by page.

\b
    python -m jobs watch            # of GRPO; --curve plots/sft.csv for SFT
    python -m jobs watch --once     # print one picture and stop, as without a terminal

\b
Reads   --curve         the curve that the run writes after every step
        --completions   logged answers; without it those beside the latest run's checkpoints, or where these are gone
                        data/grpo/completions.jsonl

\b
Keys    n, p    the next and the previous answer          t   the next task
        f       show all, those that passed, those that did not          q   quit

It only reads, so it can come and go. Answers are a model's: what is no printable character is shown as an escape.
"""

import contextlib
import itertools
import math
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jobs.common.curves import read_curve
from jobs.common.errors import JobError
from jobs.common.files import numbered_jsonl
from jobs.plumbing.checkpoint import ROOT
from jobs.plumbing.cli import exit_codes

BARS = "▁▂▃▄▅▆▇█"
GAP = "×"
LOGGED = Path("data/grpo/completions.jsonl")
WIDTH = 40  # of a curve, in characters
REFRESH = 1.0  # seconds between two looks at the files
FILTERS = ("all", "passed", "not passed")


@click.command(name="watch", help=__doc__)
@click.option("--curve", type=click.Path(path_type=Path), default="plots/grpo.csv", show_default=True)
@click.option("--completions", type=click.Path(path_type=Path), help="Show these answers alone.")
@click.option("--once", is_flag=True, help="Print one picture and stop.")
def command(curve: Path, completions: Path | None, once: bool) -> None:
    with exit_codes():
        view = View(curve, completions)
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            Console().print(view.picture(height=60))
            return
        interactive(view)


class View:
    """What is shown: the files as they are now, and the answer that was paged to."""

    def __init__(self, curve: Path, completions: Path | None) -> None:
        self.curve, self.completions = curve, completions
        self.at, self.filter = 0, 0

    def press(self, key: str) -> None:
        rows = self.answers()
        if key == "n":
            self.at += 1
        elif key == "p":
            self.at -= 1
        elif key == "f":
            self.filter, self.at = (self.filter + 1) % len(FILTERS), 0
        elif key == "t" and rows:
            at = self.at % len(rows)
            later = [i for i in range(at, len(rows)) if rows[i]["task_id"] != rows[at]["task_id"]]
            self.at = later[0] if later else 0

    def answers(self) -> list[dict]:
        """The logged answers, the last step's first, as the filter lets them through."""
        rows = [row for path in self.files() for row in whole(path)]
        rows.sort(key=lambda row: -row["step"])
        if self.filter:
            rows = [row for row in rows if (row.get("status") == "passed") == (self.filter == 1)]
        return rows

    def files(self) -> list[Path]:
        if self.completions:
            return [self.completions]
        return latest(ROOT / "grpo") or [LOGGED]

    def picture(self, height: int) -> Group:
        rows = steps(self.curve)
        parts = [curves(rows, self.curve)]
        room = max(4, height - 8 - (len(rows[-1]) if rows else 0))
        found = self.answers()
        if found:
            self.at %= len(found)
            parts.append(answer(found[self.at], self.at, len(found), FILTERS[self.filter], room))
        else:
            parts.append(Panel(Text(f"no answers logged yet ({FILTERS[self.filter]})"), title="answers"))
        return Group(*parts, Text("n next  p previous  t next task  f filter  q quit", style="dim"))


def latest(room: Path) -> list[Path]:
    """The files of answers of the run that has written last: another run's checkpoints may lie beside its own."""
    found: dict[Path, float] = {}
    for path in room.glob("*/completions-*.jsonl"):
        with contextlib.suppress(OSError):  # gone since
            found[path] = path.stat().st_mtime
    if not found:
        return []
    newest = max(found, key=found.__getitem__).parent
    return sorted(path for path in found if path.parent == newest)


def whole(path: Path) -> list[dict]:
    """The file's rows; none where it is not there, or goes away while it is read, as with a run's checkpoints.

    Errors: JobError naming file, line and key of what `grpo` does not write.
    """
    try:
        rows = numbered_jsonl(path)
    except (JobError, OSError):
        if path.exists():
            raise
        return []
    for line, row in rows:
        for key, kind in (("step", int), ("task_id", str), ("completion", str)):
            if not isinstance(row.get(key), kind):
                raise JobError(f"{path}: line {line} has no `{key}`, as `grpo` writes it")
    return [row for _, row in rows]


def steps(path: Path) -> list[dict[str, float | None]]:
    """The rows of a curve that have a step; none before the first one. Errors: JobError for a file that is no curve."""
    try:
        _, rows = read_curve(path)
    except JobError:
        if path.exists():
            raise
        return []
    return [row for row in rows if row.get("step") is not None]


def curves(rows: list[dict[str, float | None]], path: Path) -> Panel:
    """A line for each column: the last value, and the course of all of them."""
    if not rows:
        return Panel(Text("no step yet" if path.exists() else "not there yet"), title=Text(str(path)))
    table = Table.grid(padding=(0, 2))
    for column in rows[0]:
        values = [value for row in rows if (value := row[column]) is not None]
        if column != "step" and values:
            table.add_row(Text(column), Text(f"{values[-1]:.4g}", justify="right"), Text(sparkline(values)))
    return Panel(table, title=Text(f"{path}: step {rows[-1]['step']:.12g}"))


def sparkline(values: list[float]) -> str:
    """Means of at most WIDTH equal parts of the values, as bars between the least and the greatest of them; GAP for a
    part with NaN or infinity."""
    count = min(WIDTH, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def bar(mean: float) -> str:
        if not math.isfinite(mean):
            return GAP
        return BARS[round((mean / 2 - low / 2) / (high / 2 - low / 2) * (len(BARS) - 1)) if high > low else 0]

    return "".join(map(bar, means))


def answer(row: dict, at: int, count: int, chosen: str, height: int) -> Panel:
    facts = {k: v for k, v in row.items() if k not in ("completion", "step", "task_id", "status")}
    head = ", ".join(f"{name} {value:g}" for name, value in facts.items() if isinstance(value, int | float))
    lines = visible(str(row["completion"])).split("\n")
    if len(lines) > height:
        lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines"]
    title = f"answer {at + 1} of {count} ({chosen}): step {row['step']}, {visible(row['task_id'])}, {row.get('status')}"
    return Panel(Group(Text(head, style="dim"), Text("\n".join(lines))), title=Text(title))


def visible(text: str) -> str:
    """The text with every character that a terminal would act on as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def interactive(view: View) -> None:
    console = Console()
    with keys() as read, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view.picture(console.size.height), refresh=True)
            key = read(REFRESH)
            if key == "q":
                return
            view.press(key)


@contextlib.contextmanager
def keys() -> Iterator:
    """Yields what waits for a key, some seconds at most: the key, or ""."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read(seconds: float) -> str:
        deadline = time.monotonic() + seconds
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
