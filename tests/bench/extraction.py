"""What extraction makes of models' stored answers, beside evalplus's sanitize and lm-eval's filters.

    python tests/bench/extraction.py --tasks ../shared/data/HumanEval.jsonl.gz --samples FILE... [--limit N]

A sample is a line of JSON with task_id and `text`, `completion` or `solution`: what the model wrote, before anything
was cut out of it. Every program is judged in the sandbox by the task's tests. The table has a row a file: the pass rate
of ours, of evalplus and of lm-eval, each of these two at its best reading of the file:

evalplus  sanitize(answer), as for chat models, or sanitize(prompt + answer), as for base models
lm-eval   HumanEval's filter: the prompt and what stands before the first ``` of the answer; the same after its stop
          strings; MBPP's: the first block between ``` marks, where an opening mark stands in the generation's prefix or
          in the answer; else the whole text

Exit code 1 if on any file ours is below the better of the two. --show N prints the first N samples that a peer passes
and ours does not. --cache keeps what sanitize made, which is slow: it compiles every run of lines.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.files import numbered_jsonl
from jobs.extraction.worker import Extractor
from jobs.sandbox import Sandbox
from jobs.score import load_tasks

FENCED = re.compile(r"```(?:\w+)?\n?(.*?)\n?```", re.DOTALL)
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


def read(path: Path, tasks: dict[str, dict], limit: int) -> list[tuple[dict, str]]:
    rows = [(row["task_id"], row.get("text") or row.get("completion") or row.get("solution") or "")
            for _, row in numbered_jsonl(path)]  # fmt: skip
    return [(tasks[task_id], text) for task_id, text in rows if task_id in tasks][: limit or None]


def lm_eval(task: dict, text: str) -> dict[str, str]:
    stopped = text[: min([len(text), *(at for stop in STOPS if (at := text.find(stop)) >= 0)])]
    opened = FENCED.findall("```" + text) if not text.lstrip().startswith("```") else []
    block = (opened or FENCED.findall(text) or [text])[0]
    return {
        "lm-eval before the fence": task["prompt"] + text.partition("```")[0],
        "lm-eval to a stop string": task["prompt"] + stopped.partition("```")[0],
        "lm-eval first block": block,
    }


def sanitize(pair: tuple[str, str]) -> str:
    """evalplus's, on at most 400 lines: its time grows with the cube of their number."""
    from evalplus.sanitize import sanitize as theirs

    text, entry_point = pair
    try:
        return theirs("\n".join(text.split("\n")[:400]), entry_point)
    except Exception:
        return text


def sanitized(pairs: list[tuple[str, str]], cache: Path | None) -> dict[tuple[str, str], str]:
    def key(pair: tuple[str, str]) -> str:
        return hashlib.sha256(json.dumps(pair).encode()).hexdigest()

    kept = cache.read_text().splitlines() if cache and cache.exists() else []
    known = dict(json.loads(line) for line in kept)
    todo = [pair for pair in dict.fromkeys(pairs) if key(pair) not in known]
    with ProcessPoolExecutor(2) as pool:
        made = dict(zip(map(key, todo), pool.map(sanitize, todo, chunksize=8), strict=True))
    if cache:
        with open(cache, "a") as file:
            file.writelines(json.dumps(item) + "\n" for item in made.items())
    known |= made
    return {pair: known[key(pair)] for pair in pairs}


def programs(samples: list[tuple[dict, str]], mode: str, cache: Path | None) -> dict[str, list[str]]:
    """Each way's program for every sample."""
    with Extractor() as extractor:
        found = extractor.extract_all([(text, t["prompt"], t["entry_point"], mode, True) for t, text in samples])
    ways: dict[str, list[str]] = {"ours": [extraction.solution for extraction in found]}
    readings: dict[str, Callable[[dict, str], str]] = {
        "evalplus answer": lambda task, text: text,
        "evalplus prompt and answer": lambda task, text: task["prompt"] + "\n" + text,
    }
    for name, reading in readings.items():
        pairs = [(reading(task, text), task["entry_point"]) for task, text in samples]
        made = sanitized(pairs, cache)
        ways[name] = [made[pair] for pair in pairs]
    for task, text in samples:
        for name, program in lm_eval(task, text).items():
            ways.setdefault(name, []).append(program)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--samples", type=Path, nargs="+", required=True)
    parser.add_argument("--mode", choices=["plain", "cot"], default="plain")
    parser.add_argument("--limit", type=int, default=0, help="samples of each file; 0: all")
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    tasks, worse = load_tasks(asked.tasks), []
    print(f"{'file':60} {'samples':>7} {'ours':>7} {'evalplus':>8} {'lm-eval':>8}")
    with Sandbox(asked.workers, benchmark=True) as sandbox:
        for path in asked.samples:
            samples = read(path, tasks, asked.limit)
            ways = programs(samples, asked.mode, asked.cache)
            asks = dict.fromkeys(
                (t["task_id"], p) for made in ways.values() for (t, _), p in zip(samples, made, strict=True)
            )
            futures = {pair: sandbox.submit(tasks[pair[0]], pair[1]) for pair in asks}
            passed = {name: [futures[t["task_id"], p].result().passed for (t, _), p in zip(samples, made, strict=True)]
                      for name, made in ways.items()}  # fmt: skip
            best = {peer: max((n for n in passed if n.startswith(peer)), key=lambda n: sum(passed[n]))
                    for peer in ("evalplus", "lm-eval")}  # fmt: skip
            rates = {name: 100 * sum(passed[name]) / len(samples) for name in ("ours", *best.values())}
            mark = "" if rates["ours"] >= max(rates.values()) else "  worse"
            print(f"{path.name[:60]:60} {len(samples):7} {rates['ours']:6.1f}% {rates[best['evalplus']]:7.1f}% "
                  f"{rates[best['lm-eval']]:7.1f}%{mark}", flush=True)  # fmt: skip
            if mark:
                worse.append(path)
            show(samples, ways, passed, list(best.values()), asked.show)
    sys.exit(1 if worse else 0)


def show(samples: list, ways: dict, passed: dict, peers: list[str], most: int) -> None:
    lost = [(i, peer) for i in range(len(samples)) for peer in peers if passed[peer][i] and not passed["ours"][i]]
    for i, peer in lost[:most]:
        task, text = samples[i]
        print(
            f"--- {task['task_id']}: {peer} passes\n{text}\n... ours\n{ways['ours'][i]}\n... theirs\n{ways[peer][i]}\n"
        )


if __name__ == "__main__":
    main()
