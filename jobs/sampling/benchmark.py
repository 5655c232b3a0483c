"""One greedy answer and n drawn ones of a model to every task of the benchmarks, call by call, each kept on disk.

A killed run goes on where it stopped: finished calls wait in .checkpoints/sample-NAME until `Drawn.forget`.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.files import sha256, write_json, write_jsonl
from jobs.common.programs import is_program
from jobs.plumbing import checkpoint
from jobs.plumbing.cli import log, progress
from jobs.sampling.shards import Answers, drawn_by, number_of_shards
from jobs.weights.identity import adapter_identity, model_identity

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.inference import Prompt, Sampling
    from jobs.plumbing.params import Evaluate, Params

# A function is continued until something else begins at the left margin (Chen et al. 2021, section 2.1); a program
# begins there, and ends with what usually follows a function (evalplus's strings for MBPP).
STOP_BODY = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
STOP_PROGRAM = ('\n"""', "\nassert", "\nif __name__", "\nprint(", "\n# Test")
STOP_WHOLE = ("###",)  # LiveCodeBench's: its prompts have headings, and the next one begins another question
# BigCodeBench's for direct completion: provider/utility.py, EOS and extra_eos_for_direct_completion.
STOP_BIGCODE = ("\nif __name__", "\ndef main(", "\nprint(", "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
SPEED = {
    "batch_size",
    "gpu_memory",
    "kv_cache_gib",
}  # settings that change how fast samples come, and not what they mean


@dataclass(frozen=True)
class Drawn:
    """The samples of one model and mode, and how they came about.

    samples: rows by benchmark, in the order of its tasks: task_id, sample (0: greedy; 1 to n: drawn), text, tokens,
    finish. settings: what settings.json says: mode, engine, seed, sampling, and the hashes of model and benchmarks.
    seconds: of loading the model and of generating. checkpoint: the folder of finished calls.
    """

    samples: dict[str, list[dict]]
    settings: dict
    seconds: dict[str, float]
    checkpoint: Path

    @property
    def tokens(self) -> int:
        return sum(row["tokens"] for rows in self.samples.values() for row in rows)

    def write(self, folder: Path) -> None:
        """samples-NAME.jsonl for every benchmark, and settings.json."""
        for name, rows in self.samples.items():
            write_jsonl(folder / f"samples-{name}.jsonl", rows)
        write_json(folder / "settings.json", self.settings)

    def forget(self) -> None:
        """Removes the finished calls, once what was made of them is in place."""
        checkpoint.clear(self.checkpoint)


def draw(
    params: "Params",
    model: Path,
    adapter: Path | None,
    mode: str,
    benchmarks: "dict[str, list[Task]]",
    folder: Path,
    name: str,
    *,
    greedy: bool = True,
) -> Drawn:
    """All samples of `model` in `mode` ("plain" or "cot") on `benchmarks`: tasks by name, read from `folder`.

    name: of the run, for its checkpoints and its messages. greedy: False leaves the greedy samples out.
    As many processes draw them as SHARDS in the environment says (`shards.number_of_shards`), which changes no sample.
    """
    recorded = settings_of(params, model, adapter, mode, list(benchmarks), folder)
    shards = number_of_shards(recorded["engine"], params.evaluate.batch_invariant)
    todo = {
        bench: list(calls(params.evaluate, tasks, mode, per_call(recorded, params), shards, greedy=greedy))
        for bench, tasks in benchmarks.items()
    }
    found = answered(params, model, adapter, todo, recorded, name)
    numbers = range(0 if greedy else 1, 1 + params.evaluate.sampled.n)
    samples = {
        bench: [found.samples[bench][task["task_id"], i] for task in tasks for i in numbers]
        for bench, tasks in benchmarks.items()
    }
    return Drawn(samples, recorded, found.seconds, found.checkpoint)


def settings_of(
    params: "Params", model: Path, adapter: Path | None, mode: str, benchmarks: list[str], folder: Path
) -> dict:
    """What settings.json says of samples: what was asked, of which model, on which files."""
    settings = params.evaluate
    return {
        "mode": mode,
        "engine": "llama_cpp" if model.suffix == ".gguf" else settings.engine,
        **settings.model_dump(exclude={"engine", "benchmarks", *SPEED}),
        "benchmarks": {bench: sha256(folder / f"{bench}.jsonl") for bench in benchmarks},
        "model": {"weights": model_identity(model), "adapter": adapter_identity(adapter) if adapter else None},
    }


def per_call(recorded: dict, params: "Params") -> int | None:
    """How many sequences a call of the engine is to have; None for all at once, which vLLM schedules by itself."""
    return None if recorded["engine"] == "vllm" else params.evaluate.batch_size


@dataclass(frozen=True)
class Answered:
    """Rows by benchmark, then by task and number. seconds, checkpoint: as `Drawn` has them."""

    samples: dict[str, dict[tuple[str, int], dict]]
    seconds: dict[str, float]
    checkpoint: Path


def answered(
    params: "Params", model: Path, adapter: Path | None, todo: "dict[str, list[Call]]", recorded: dict, name: str
) -> Answered:
    """Makes all calls, by benchmark, but for those that a run with the same `recorded` settings has made before."""
    settings, engine = params.evaluate, recorded["engine"]
    shards = number_of_shards(engine, settings.batch_invariant)
    if engine == "vllm" and shards == 1:
        from jobs.inference import vllm

        vllm.begin_import(settings.batch_invariant)
    inputs = [path for path in (model, adapter) if path]
    # The finished calls are of batch_size sequences each, or of a shard each, so other sizes do not go on with them.
    divided = {"batch_size": settings.batch_size} | ({"shards": shards} if engine == "vllm" and shards > 1 else {})
    kept = checkpoint.folder("sample", recorded | divided, *inputs, run=f"sample-{name}")
    began = time.perf_counter()
    with drawn_by(shards, settings, model, adapter) as drawer:
        samples = {
            bench: run_calls(of_bench, drawer.answers, kept / f"{bench}.jsonl") for bench, of_bench in todo.items()
        }
    generating = time.perf_counter() - began - drawer.load_seconds  # the model is loaded within the first call
    return Answered(samples, {"load": drawer.load_seconds, "generate": generating}, kept)


def stop_strings(tasks: "list[Task]", mode: str) -> tuple[str, ...]:
    if mode == "cot":
        return ()
    if any(is_program(task) for task in tasks):
        return STOP_WHOLE
    if any(task.get("unittests") for task in tasks):
        return STOP_BIGCODE
    return (
        STOP_BODY
        if all(answer_format.left_margin(task["prompt"], task["entry_point"]) for task in tasks)
        else STOP_PROGRAM
    )


@dataclass(frozen=True)
class Call:
    """One call of the engine: prompts, and for each the task and number of every one of its completions."""

    prompts: "list[Prompt]"
    rows: list[list[tuple[str, int]]]
    sampling: "Sampling"


def calls(
    settings: "Evaluate",
    tasks: "list[Task]",
    mode: str,
    per_call: int | None,
    shards: int = 1,
    *,
    greedy: bool = True,
) -> Iterator[Call]:
    """Every call of the engine, of `per_call` sequences.

    per_call None: as many calls as there are shards, tasks of about the same lengths in each. greedy: False leaves the
    greedy samples out.
    """
    from jobs.inference import Sampling

    stop = stop_strings(tasks, mode)
    drawn = settings.sampled
    ordered = sorted(tasks, key=lambda task: len(task["prompt"]))
    wanted = [(0, Sampling(max_tokens=settings.max_tokens, stop=stop))] if greedy else []
    if drawn.n:
        wanted.append((1, Sampling(drawn.n, drawn.temperature, drawn.top_p, settings.max_tokens, stop, settings.seed)))
    for first, sampling in wanted:
        if per_call is None:
            parts = [ordered[shard::shards] for shard in range(shards)]
        else:
            size = max(1, per_call // sampling.n)
            parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        for part in filter(None, parts):
            yield Call(
                [answer_format.chat_prompt(t["prompt"]) if mode == "cot" else t["prompt"] for t in part],
                [[(task["task_id"], first + i) for i in range(sampling.n)] for task in part],
                sampling,
            )


def run_calls(todo: list[Call], answers: Answers, checkpoint: Path) -> dict[tuple[str, int], dict]:
    """The rows of all calls by task and number. Finished calls are kept in the file `checkpoint`, a line each."""
    finished = whole_lines(checkpoint)
    samples = {(row["task_id"], row["sample"]): row for rows in finished for row in rows}
    if finished:
        log.info("%s: %d of %d calls were made before", checkpoint.stem, len(finished), len(todo))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    todo = todo[len(finished) :]
    answered = answers([(call.prompts, call.sampling) for call in todo])
    with open(checkpoint, "a", encoding="utf-8") as file:
        for call, completed in zip(progress(todo, label=f"sample: {checkpoint.stem}"), answered, strict=True):
            rows = [
                {"task_id": task_id, "sample": number, **asdict(completion)}
                for keys, completions in zip(call.rows, completed, strict=True)
                for (task_id, number), completion in zip(keys, completions, strict=True)
            ]
            file.write(json.dumps(rows) + "\n")
            file.flush()
            os.fsync(file.fileno())
            samples.update({(row["task_id"], row["sample"]): row for row in rows})
    return samples


def whole_lines(path: Path) -> list[list[dict]]:
    """The finished calls; a line cut short by a kill is removed from the file."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
