"""What the runs of tests/bench/smoke_spread.py say: tables, what is not as it should be, and the pages that have them."""

from pathlib import Path
from statistics import median

from jobs.common.files import write_json
from tests.bench.smoke_spread_run import KERNELS, MODELS, ROOT, STEPS

WIDEST, LEAST_GRPO = 0.08, 0.9
RESULTS = ROOT / "docs/results/smoke_spread.json"
BEGIN, END = "<!-- by tests/bench/smoke_spread.py --docs -->\n", "<!-- to here -->"


def by_run(runs: list[dict]) -> list[str]:
    """The lines of a table with a row a run."""
    lines = [f"| kernels | seed | {' | '.join([*MODELS.values(), *STEPS.values()])} |", "|---|---|---|---|---|---|---|"]
    for one in runs:
        rates = [f"{one['pass@1'][model]:.3f}" for model in MODELS]
        measured = [one["steps"][pair] for pair in STEPS]
        steps = [f"{s['mean']:+.3f} ({s['low']:+.3f} to {s['high']:+.3f})" for s in measured]
        lines.append(f"| {one['kernels']} | {one['seed']} | {' | '.join(rates + steps)} |")
    return lines


def by_model(runs: list[dict]) -> list[str]:
    """The lines of a table with a column a model."""
    rates = [[one["pass@1"][model] for one in runs] for model in MODELS]
    return [
        f"| mean pass@1 of {len(runs)} runs | {' | '.join(MODELS.values())} |",
        "|---|---|---|---|",
        f"| median | {' | '.join(f'{median(of):.2f}' for of in rates)} |",
        f"| range | {' | '.join(f'{min(of):.3f} to {max(of):.3f}' for of in rates)} |",
    ]


def faults(runs: list[dict]) -> list[str]:
    """What is not as it should be."""
    wrong = [
        f"{one['kernels']}, seed {one['seed']}: {STEPS[pair]} is not established"
        for one in runs
        for pair, step in one["steps"].items()
        if not step["established"] or step["low"] <= 0
    ]
    for model, name in MODELS.items():
        rates = [one["pass@1"][model] for one in runs]
        if max(rates) - min(rates) > WIDEST:
            wrong.append(f"{name}: the widest difference is {max(rates) - min(rates):.3f}, more than {WIDEST}")
    return wrong + [
        f"{one['kernels']}, seed {one['seed']}: GRPO is below {LEAST_GRPO}"
        for one in runs
        if one["pass@1"]["grpo"] < LEAST_GRPO
    ]


def said(runs: list[dict]) -> str:
    """How many runs they are, on what and when."""
    seeds = {one["seed"] for one in runs}
    kernels = ", ".join(name for name in KERNELS if name in {one["kernels"] for one in runs})
    where = "; ".join(sorted({one["machine"] for one in runs}))
    when = " and ".join(sorted({one["date"] for one in runs}))
    return f"{len(runs)} runs, of {len(seeds)} seeds, by kernels {kernels}; {where}; {when}"


def pages(runs: list[dict]) -> dict[Path, str]:
    """What stands between the marks of each page."""
    wrong = faults(runs) or [
        f"In every run both steps are established and GRPO is at least {LEAST_GRPO}; the runs of a model are at most "
        f"{WIDEST} apart."
    ]
    short, listed = by_model(runs), [f"- {line}" for line in wrong]
    full = [f"{said(runs)}.", "", *short, "", *listed, "", *by_run(runs)]
    return {ROOT / "docs/toy.md": "\n".join(full) + "\n", ROOT / "README.md": "\n".join(short) + "\n"}


def marked(text: str, between: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with what stands between its marks replaced. Errors: ValueError where there are none."""
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"a page has not the marks {begin.strip()} and {end}")
    return f"{before}{begin}{between}{end}{after}"


def write_docs(runs: list[dict]) -> None:
    write_json(RESULTS, {"runs": runs})
    for page, text in pages(runs).items():
        page.write_text(marked(page.read_text(), text))
