"""How often intervals over seeds and tasks hold the truth: the crossed analysis of `compare` beside bootstraps.

    python tests/bench/seeds.py [--studies 1000]

Differences by run and task are drawn from normal distributions with a standard deviation of 0.15 between tasks and 0.15
between answers of one run to one task, and with what the table's second column says between runs; the truth is 0.03, of
100 tasks. The hierarchical bootstrap resamples runs and tasks; the other one resamples tasks alone, as if the runs that
were seen were all there are. Prints a Markdown table of coverages at 95 %, with the median half width in points.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from jobs.compare.seeds import crossed

TASKS, TRUTH, RESAMPLES = 100, 0.03, 400


def study(rng: np.random.Generator, runs: int, between: float) -> np.ndarray:
    of_runs, of_tasks = rng.normal(0, between, (runs, 1)), rng.normal(0, 0.15, TASKS)
    return TRUTH + of_runs + of_tasks + rng.normal(0, 0.15, (runs, TASKS))


def bootstrapped(rng: np.random.Generator, rows: np.ndarray, hierarchical: bool) -> tuple[float, float]:
    """The percentile interval. Resampling a factor is weighting it by how often each of its values was drawn."""
    runs, tasks = rows.shape
    of_tasks = rng.multinomial(tasks, [1 / tasks] * tasks, size=RESAMPLES) / tasks
    of_runs = (
        rng.multinomial(runs, [1 / runs] * runs, size=RESAMPLES) / runs
        if hierarchical
        else np.full((RESAMPLES, runs), 1 / runs)
    )
    low, high = np.quantile(np.einsum("br,rt,bt->b", of_runs, rows, of_tasks, optimize=True), [0.025, 0.975])
    return float(low), float(high)


def analysed(rows: np.ndarray) -> tuple[float, float]:
    found = crossed([rows], confidence=0.95, bounds=(-1, 1), weight=1 / (1 + TASKS)).interval
    return found.low, found.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    print(
        "| seeds | sd between seeds | `compare` | hierarchical bootstrap | bootstrap over tasks |\n|---|---|---|---|---|"
    )
    for runs in (3, 5, 10):
        for between in (0.0, 0.02, 0.05, 0.1):
            ways: list[list[tuple[float, float]]] = [[], [], []]
            for _ in range(studies):
                rows = study(rng, runs, between)
                for way, found in zip(
                    ways, (analysed(rows), bootstrapped(rng, rows, True), bootstrapped(rng, rows, False)), strict=True
                ):
                    way.append(found)
            cells = []
            for way in ways:
                held = np.mean([low <= TRUTH <= high for low, high in way])
                half = np.median([(high - low) / 2 for low, high in way])
                cells.append(f"{100 * held:.1f} % (± {100 * half:.1f})")
            print(f"| {runs} | {100 * between:.0f} points | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
