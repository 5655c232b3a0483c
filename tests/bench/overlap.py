"""What each rule for overlap between training tasks and benchmarks drops, on the real tasks with the committed params.

    python tests/bench/overlap.py --sources data/sources

Prints a Markdown table. `real`: of 23 training tasks that a reader found to be the same as a benchmark's or a variant,
among the 156 that share any 8 words with one. `solves`: of the tasks whose own reference passes all tests of a benchmark
task.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.contamination import ngrams, overlaps
from jobs.plumbing.params import load
from jobs.tasks import job, overlap, pairs, sources
from tests.unit.test_overlap import REAL

ROOT = Path(__file__).resolve().parents[2]
EVERY = 10**9  # no run is too common to count


def shared(
    training: list[dict], benchmark: list[dict], n: int, fields: tuple[str, ...], common: int = EVERY
) -> set[str]:
    """Training tasks that share a run of n words with a benchmark task, in these fields."""
    own, other = ({task["task_id"]: [task[f] for f in fields] for task in rows} for rows in (training, benchmark))
    return {found.text for found in overlaps(own, other, n, common)}


def half_covered(training: list[dict], benchmark: list[dict], n: int) -> set[str]:
    """Training tasks whose prompt's runs of n words cover over half of the words of a benchmark's prompt (Tulu 3)."""
    found = set()
    targets = [ngrams(task["prompt"], n) for task in benchmark]
    for task in training:
        own = set(ngrams(task["prompt"], n))
        for runs in targets:
            covered = {i + j for i, run in enumerate(runs) if run in own for j in range(len(run))}
            if runs and len(covered) > (len(runs) + len(runs[0]) - 1) / 2:
                found.add(task["task_id"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=Path("data/sources"))
    params = load(ROOT / "params.yaml", ["tasks.toy=null"]).tasks
    pools = sources.pools(params, parser.parse_args().sources)
    splits, _ = job.drop(job.collect(params, pools), params)
    training = [task for name in sources.TRAINING for task in splits[name]]
    benchmark = [task for name in splits if job.is_benchmark(name) for task in splits[name]]
    known = pairs.of(ROOT / "data/overlap/pairs.jsonl", *sources.roles(params, pools))
    rows = overlap.find(training, benchmark, known, params.overlap)
    by_rule = {rule: {row["task_id"] for row in rows if row["rule"] == rule} for rule in overlap.RULES}
    both, prompt = ("prompt", "reference"), ("prompt",)
    table = {
        "any 8 words, prompt and solution": shared(training, benchmark, 8, both, common=10),
        "any 8 words, prompts (open-r1)": shared(training, benchmark, 8, prompt),
        "any 10 words, prompt and solution (Qwen2.5-Coder)": shared(training, benchmark, 10, both),
        "13 words, prompt and solution, none common (GPT-3)": shared(training, benchmark, 13, both, common=10),
        "half of a benchmark's prompt in 8-word runs (Tulu 3)": half_covered(training, benchmark, 8),
        "here: solves": by_rule["solves"],
        f"here: statement, from {params.overlap.likeness:g} on": by_rule["statement"],
        f"here: {params.overlap.words} words of the prompts": by_rule["words"],
        "here: any of the three": set().union(*by_rule.values()),
    }
    print(f"{len(training)} training tasks, {len(benchmark)} benchmark tasks\n")
    print(f"| rule | dropped | real, of {len(REAL)} | solve, of {len(by_rule['solves'])} |\n|---|---|---|---|")
    for name, found in table.items():
        print(f"| {name} | {len(found)} | {len(found & REAL)} | {len(found & by_rule['solves'])} |")


if __name__ == "__main__":
    main()
