"""Tables, intervals and the report of a small model's runs, from the files that tests/bench/small.py has kept.

    python tests/bench/small_results.py --runs FOLDER --tasks DIR --out docs/results [--earlier FILE ...]

Reads   --runs   results.json, base.tar.gz, sft-SEED.tar.gz and SETTING-SEED.tar.gz
        --tasks  data/tasks of the recipe, as the runs had them
        --earlier  small.json of rounds with another recipe, whose settings are listed too, each by its file's name
Writes  --out    small.json   {"runs": [...], "settings": [...]}: pass rates by seed, what GRPO gains over SFT and SFT
                              over the base, with the intervals of `jobs compare`; fractions, not per cent
                 small.md     the same as tables
                 small.html   `jobs compare`'s report of one of the recipe's seeds; small-curves/: the learning curves
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import mean

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO))
from jobs.common.files import read_json, write_json  # noqa: E402
from tests.bench.small import RECIPE, SETTINGS, UNSEEN, sft_of, write_params  # noqa: E402

VIEWS = ("mbpp", "mbpp+")
MODELS = ("base", "sft", "grpo")
PAIRS = (("sft", "base"), ("grpo", "sft"))


def rates(metrics: dict) -> dict:
    """{view: {pass@1, pass@10, greedy}} of what `evaluate` measured."""
    return {
        view: {
            "pass@1": metrics[view]["sampled"]["pass@1"],
            "pass@10": metrics[view]["sampled"]["pass@10"],
            "greedy": metrics[view]["greedy"]["pass@1"],
        }
        for view in VIEWS
    }


def compare(work: Path, tasks: Path, name: str, folders: list[Path], curves: list[Path]) -> dict:
    """`jobs compare` over runs' folders of evaluations; its metrics. The report is work/NAME.html."""
    words: list[object] = ["--params", work / "params.yaml", "--benchmarks-dir", tasks, "--out", work / f"{name}.html"]
    words += ["--metrics", work / f"{name}.json", "--plot", work / f"{name}.csv"]
    words += [word for folder in folders for word in ("--evaluations", folder.relative_to(work))]
    words += [word for curve in curves for word in ("--curve", curve.relative_to(work))]
    command = [sys.executable, "-m", "jobs", "compare", *map(str, words)]
    subprocess.run(command, cwd=work, check=True, env={"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"})
    return read_json(work / f"{name}.json")


def gathered(runs: Path, work: Path) -> tuple[list[int], list[tuple[str, int]]]:
    """Unpacks all archives below `work`. Returns the recipe's seeds, and all (setting, seed) that were evaluated."""
    for archive in sorted(runs.glob("*.tar.gz")):
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
    found = sorted(
        (setting, int(path.parent.name.removeprefix(f"{setting}-")))
        for setting in SETTINGS
        for path in work.glob(f"{setting}-*/metrics-grpo.json")
        if path.parent.name.removeprefix(f"{setting}-").isdigit()
    )
    return [seed for setting, seed in found if setting == next(iter(SETTINGS))], found


def laid_out(work: Path, setting: str, seed: int) -> Path:
    """A folder of evaluations base-cot, sft-cot and grpo-cot, as a run of the pipeline has it."""
    folder = work / "evaluations" / f"{setting}-{seed}"
    folder.mkdir(parents=True)
    for name, of in (("base", "base"), ("sft", sft_of(setting, seed)), ("grpo", f"{setting}-{seed}")):
        shutil.copytree(
            work / of / f"evaluations/{name}-cot", folder / f"{name}-cot"
        )  # each run has its own, as a pipeline's
    return folder


def difference(compared: dict, pair: tuple[str, str], view: str, samples: int, tasks: int) -> dict:
    entry = compared[view]["cot"]["-".join(pair)]
    return {key: entry[key] for key in ("mean", "low", "high", "p")} | {"tasks": tasks, "samples": samples}


def ended_early(kept: dict) -> list[dict]:
    """Of what small.py has kept: the runs whose GRPO ended with an error, and its last line."""
    rows = []
    for name, value in kept.items():
        run, _, job = name.partition("/")
        setting, _, seed = run.rpartition("-")
        if job == "grpo" and "failed" in value and setting in SETTINGS:
            said = [line for line in value["failed"].splitlines() if line.startswith("error: ")]
            rows.append(
                {
                    "setting": setting,
                    "changes": SETTINGS[setting],
                    "seed": int(seed),
                    "ended": said[-1][7:] if said else "?",
                }
            )
    return rows


def results(work: Path, tasks: Path, seeds: list[int], found: list[tuple[str, int]], kept: dict) -> dict:
    out: dict = {"runs": [], "settings": []}
    for setting, seed in found:
        evaluations = laid_out(work, setting, seed)
        curves = [work / f"{sft_of(setting, seed)}/sft.csv", work / f"{setting}-{seed}/grpo.csv"]
        compared = compare(work, tasks, f"{setting}-{seed}", [evaluations], curves)
        asked = read_json(evaluations / "grpo-cot/settings.json")["sampled"]["n"]
        measured = {
            name: read_json(work / of / f"metrics-{name}.json")
            for name, of in (("base", "base"), ("sft", sft_of(setting, seed)), ("grpo", f"{setting}-{seed}"))
        }
        count = measured["grpo"]["mbpp"]["tasks"]
        training = read_json(work / f"{setting}-{seed}/grpo.json")
        gains = {
            "-".join(pair): {view: difference(compared, pair, view, asked, count) for view in VIEWS} for pair in PAIRS
        }
        if setting == next(iter(SETTINGS)):
            models = {name: rates(metrics) for name, metrics in measured.items()}
            out["runs"].append({"seed": seed, "models": models, **gains})
        out["settings"].append(
            {
                "setting": setting,
                "changes": SETTINGS[setting],
                "seed": seed,
                "steps": training["steps"],
                "sft": rates(measured["sft"]),
                "grpo": rates(measured["grpo"]),
                "grpo-sft": gains["grpo-sft"],
            }
        )
    out["settings"] += ended_early(kept)
    out["base without tags"] = rates(read_json(work / "base/metrics-base-plain.json"))
    out["sft on unseen training tasks"] = {
        name.partition("/")[0]: {key: value[key] for key in ("pass_rate", "tasks", "never")}
        for name, value in kept.items()
        if name.endswith("/unseen") and "pass_rate" in value
    }
    whole = compare(
        work,
        tasks,
        "small",
        [work / f"evaluations/{next(iter(SETTINGS))}-{seed}" for seed in seeds],
        [work / f"{next(iter(SETTINGS))}-{seed}/grpo.csv" for seed in seeds],
    )
    names = ["-".join(pair) for pair in PAIRS]
    keys = ("mean", "low", "high", "p")
    out["over seeds"] = {n: {v: {k: whole[v]["cot"][n][k] for k in keys} for v in VIEWS} for n in names}
    return out


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def interval(gain: dict) -> str:
    return f"{100 * gain['mean']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def without_tags(base: dict) -> str:
    """A sentence on what the base passes where no tags are asked of it."""
    said = [
        f"{percent(found['pass@1'])} % of {view}'s samples (pass@10 {percent(found['pass@10'])}, "
        f"greedy {percent(found['greedy'])})"
        for view, found in base.items()
    ]
    return f"Asked without tags (`--mode plain`) the base passes {' and '.join(said)}."


def changed(row: dict) -> str:
    return ", ".join(f"{key.partition('.')[2]} {value}" for key, value in row["changes"].items())


def settings_table(rows: list[dict]) -> list[str]:
    """The lines of a table of what was run, this round before the earlier ones; then what ended early."""
    lines = [
        "| round | setting | seed | steps | MBPP+ pass@1 | pass@10 | greedy | SFT's pass@10 | greedy | GRPO - SFT |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ended: list[str] = []
    order = [*SETTINGS, *(row["setting"] for row in rows)]  # an earlier round's setting may have gone
    for row in sorted(rows, key=lambda row: (row.get("round", ""), order.index(row["setting"]))):
        of, title = row.get("round", "this"), row["setting"] + (f": {changed(row)}" if row["changes"] else "")
        if "ended" in row:
            ended += ["", f"{title}, seed {row['seed']}, round {of}, ended early: {row['ended'].partition('. ')[0]}."]
            continue
        cells = [percent(row["grpo"]["mbpp+"][key]) for key in ("pass@1", "pass@10", "greedy")]
        cells += [percent(row["sft"]["mbpp+"][key]) for key in ("pass@10", "greedy")]
        gain = interval(row["grpo-sft"]["mbpp+"])
        lines.append(f"| {of} | {title} | {row['seed']} | {row['steps']} | {' | '.join(cells)} | {gain} |")
    return lines + ended


def page(out: dict) -> str:
    """The tables as Markdown."""
    lines = ["| seed | model | MBPP pass@1 | pass@10 | greedy | MBPP+ pass@1 | pass@10 | greedy | gain on MBPP+, pass@1 |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for run in out["runs"]:
        for name in MODELS:
            views = run["models"][name]
            gain = {"sft": "sft-base", "grpo": "grpo-sft"}.get(name)
            cells = [percent(views[view][key]) for view in VIEWS for key in ("pass@1", "pass@10", "greedy")]
            last = interval(run[gain]["mbpp+"]) if gain else ""
            lines.append(f"| {run['seed']} | {name} | {' | '.join(cells)} | {last} |")
    for name in MODELS:
        found = [run["models"][name] for run in out["runs"]]
        cells = [
            percent(mean(views[v][key] for views in found)) for v in VIEWS for key in ("pass@1", "pass@10", "greedy")
        ]
        lines.append(f"| mean | {name} | {' | '.join(cells)} | |")
    over = out["over seeds"]
    seeds = len(out["runs"])
    lines += ["", f"Over {seeds} seeds and the tasks, on MBPP+: SFT - base {interval(over['sft-base']['mbpp+'])}, "
              f"GRPO - SFT {interval(over['grpo-sft']['mbpp+'])}.", "",
              without_tags(out["base without tags"]), "", *settings_table(out["settings"])]  # fmt: skip
    if chosen := out["sft on unseen training tasks"]:
        lines += ["", f"SFT models on training tasks of which they saw no example, {UNSEEN} samples each, temperature 1:",
                  "", "| SFT | samples that pass | tasks solved at least once |", "|---|---|---|"]  # fmt: skip
        for name, row in chosen.items():
            lines.append(
                f"| {name} | {percent(row['pass_rate'])} % | {row['tasks'] - row['never']} of {row['tasks']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("runs", "tasks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--earlier", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_params(work / "params.yaml")
        seeds, found = gathered(options.runs.resolve(), work)
        if not seeds:
            sys.exit(
                f"{options.runs}: holds no evaluated run of {RECIPE.name} itself, {next(iter(SETTINGS))}-SEED.tar.gz"
            )
        out = results(work, options.tasks.resolve(), seeds, found, read_json(options.runs / "results.json"))
        for file in options.earlier:
            out["settings"] += [{"round": file.stem} | row for row in read_json(file)["settings"]]
        curves = options.out / "small-curves"
        curves.mkdir(parents=True, exist_ok=True)
        for path in sorted(work.glob("*-*/*.csv")):
            if path.stem in ("sft", "grpo"):
                (curves / f"{path.parent.name}.csv").write_bytes(path.read_bytes())
        write_json(options.out / "small.json", out)
        (options.out / "small.md").write_text(page(out))
        report = work / f"{next(iter(SETTINGS))}-{seeds[-1]}.html"
        (options.out / "small.html").write_bytes(report.read_bytes())
        print(json.dumps(out["over seeds"], indent=1))


if __name__ == "__main__":
    main()
