"""A second answer in the place of each that failed, for pass@1 after repair: told as GRPO tells it (grpo.turns: 2).

The first answers are those of an evaluation with reasoning. One that passed, or was cut, stays; after any other the model
reads what failed (jobs/common/feedback.py) and answers once more: the greedy one greedily, a drawn one drawn.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common import answer_format, feedback
from jobs.common.benchmarks import require_all
from jobs.common.errors import UsageError
from jobs.common.files import read_json, read_jsonl, sha256
from jobs.sampling.benchmark import Call, Drawn, answered, per_call, settings_of

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.inference import Prompt
    from jobs.plumbing.params import Evaluate, Params

MODE = "repair"
Key = tuple[str, int]  # a task and the number of a sample


def draw(
    params: "Params",
    model: Path,
    adapter: Path | None,
    first: Path,
    benchmarks: "dict[str, list[Task]]",
    folder: Path,
    name: str,
) -> Drawn:
    """Samples of the same tasks and numbers as those in `first`, a folder of `evaluate`, after repair.

    Errors: UsageError where `first` is of another mode, model, or files; JobError where it lacks a sample.
    """
    recorded = settings_of(params, model, adapter, MODE, list(benchmarks), folder)
    require_same(first, recorded)
    todo, rows = {}, {}
    for bench, tasks in benchmarks.items():
        samples, results = (read_jsonl(first / f"{part}-{bench}.jsonl") for part in ("samples", "results"))
        require_all(f"{first}/results-{bench}.jsonl", tasks, results)
        rows[bench] = [row | {"turn": 1} for row in samples]
        todo[bench] = calls(params.evaluate, prompts(tasks, samples, results), per_call(recorded, params))
    recorded["first"] = {bench: sha256(first / f"results-{bench}.jsonl") for bench in benchmarks}
    found = answered(params, model, adapter, todo, recorded, name)
    for bench, of_bench in rows.items():
        again = found.samples[bench]
        rows[bench] = [again.get((row["task_id"], row["sample"]), row) for row in of_bench]
        rows[bench] = [row if "turn" in row else row | {"turn": 2} for row in rows[bench]]
    return Drawn(rows, recorded, found.seconds, found.checkpoint)


def require_same(first: Path, recorded: dict) -> None:
    settings = read_json(first / "settings.json")
    if settings.get("mode") != "cot":
        raise UsageError(
            f"--repair: {first} is of the mode {settings.get('mode')!r}; only answers in tags are repaired"
        )
    for key in sorted(recorded.keys() - {"mode"}):
        if settings.get(key) != recorded[key]:
            raise UsageError(
                f"--repair: {first} was made with another `{key}`: {settings.get(key)}, not {recorded[key]}"
            )


def prompts(tasks: "list[Task]", samples: list[dict], results: list[dict]) -> "dict[Prompt, list[Key]]":
    """What is asked after each answer that failed, with the samples it is asked for: equal answers are asked alike."""
    by_id = {task["task_id"]: task for task in tasks}
    verdicts = {(row["task_id"], row["sample"]): row for row in results}
    asked: dict[Prompt, list[Key]] = defaultdict(list)
    for row in samples:
        key, task = (row["task_id"], row["sample"]), by_id[row["task_id"]]
        result = verdicts[key]
        if result["passed"] or row["finish"] == "length":
            continue
        told = feedback.turn(task, answered=result["format"], status=result["outcome"], error=result["error"])
        asked[answer_format.chat_prompt(task["prompt"]) + row["text"], told].append(key)
    return asked


def calls(settings: "Evaluate", asked: "dict[Prompt, list[Key]]", size: int | None) -> list[Call]:
    """The greedy ones, then the drawn ones by how many of them have one prompt; of `size` sequences or all."""
    from jobs.inference import Sampling

    drawn = settings.sampled
    groups: dict[int, list[tuple[Prompt, list[Key]]]] = defaultdict(list)  # 0: greedy
    for prompt, keys in asked.items():
        for greedy in (True, False):
            chosen = [key for key in keys if (key[1] == 0) == greedy]
            if chosen:
                groups[0 if greedy else len(chosen)].append((prompt, chosen))
    found = []
    for count, rows in sorted(groups.items()):
        sampling = (
            Sampling(count, drawn.temperature, drawn.top_p, settings.max_tokens, seed=settings.seed)
            if count
            else Sampling(max_tokens=settings.max_tokens)
        )
        step = max(1, size // sampling.n) if size else len(rows)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            found.append(Call([prompt for prompt, _ in part], [keys for _, keys in part], sampling))
    return found
