"""HumanEval+ from a model folder to metrics by this pipeline and by evalplus 0.3.1, each as a process of its own, warm.

    python tests/bench/evaluation_peers.py MODEL HumanEvalPlus.jsonl.gz --evalplus FOLDER --out DIR [--max-tokens 768]

Reads   MODEL       a model folder, which both load in bfloat16
        --evalplus  a folder of packages (`pip install --target FOLDER evalplus==0.3.1`), last on the path
Writes  --out       results.json, added to by later calls, and each process's log and files
Prints  one line of JSON: by system the seconds from the process's start to its end (`wall`) and to its metrics
        (`to_metrics`), by phase, the tokens and the samples; and `ratio`, evalplus's seconds to metrics over ours

Base models' mode: the prompt is continued, ten samples a problem at temperature 0.8 and top_p 0.95. `ours` is `python -m
jobs evaluate --model`, which draws one greedy sample more: 1,804 samples against evalplus's 1,640. A model with random
weights writes to the end, so that each sample has --max-tokens; another stops where the system's own stop strings say.

evalplus is run as its own command `evalplus.evaluate --model MODEL --dataset humaneval --backend vllm
--force_base_prompt --n_samples 10 --temperature 0.8` runs it, with its defaults: all of a problem's samples at once, the
problems one after the other, then half as many workers as there are cores. Its VllmDecoder passes nothing that vLLM 0.25
does not take. What is changed: its 768 tokens become --max-tokens, and clocks stand around its parts. It ends up to 20 s
after its metrics, as a thread of it sleeps.

Warm: before each timed run the system is run once for two tokens (evalplus on one problem), which fills the compile
caches, and evalplus computes the references' outputs, which it keeps. Nothing is downloaded.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from tests.bench.gpu_jobs import Memory  # noqa: E402
from tests.bench.limited import Case, Failed  # noqa: E402

SAMPLES, TEMPERATURE, DTYPE = 10, 0.8, "bfloat16"
SYSTEMS = ("ours", "evalplus")
WARM = 2  # tokens of a warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="evalplus's HumanEvalPlus.jsonl or .jsonl.gz")
    parser.add_argument("--evalplus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=768)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for `ours`")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a process may take")
    parser.add_argument("--peer", choices=("warm", "timed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("model", "data", "evalplus", "out"):
        setattr(options, name, getattr(options, name).resolve())
    if options.peer:
        return peer(options)
    options.out.mkdir(parents=True, exist_ok=True)
    write_tasks(options.data, options.out / "tasks")
    kept = options.out / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    found = results.setdefault(f"{options.model.name}, {options.max_tokens} tokens", {})
    for system in options.systems:
        found[system] = RUN[system](options)
        if all("to_metrics" in found.get(name, {}) for name in SYSTEMS):
            found["ratio"] = round(found["evalplus"]["to_metrics"] / found["ours"]["to_metrics"], 2)
        kept.write_text(json.dumps(results, indent=1))
    print(json.dumps({"model": options.model.name, "max_tokens": options.max_tokens, **found}))
    return None


def write_tasks(data: Path, folder: Path) -> None:
    """The benchmark's tasks as `jobs tasks` lays them out, of the file that evalplus reads."""
    from jobs.common.files import write_jsonl
    from jobs.common.official import task_of
    from jobs.common.task import read_tasks

    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "humaneval.jsonl", read_tasks(data, task_of))


def process(words: list, case: Case, **more: str) -> dict:
    """A Python process in the case's folder: its seconds from start to end and the first card's peak memory, or why it
    failed. Whatever it has started is ended, as its workers and vLLM's engine where its time was over."""
    memory, failed = Memory(), {}
    memory.start()
    began = time.perf_counter()
    try:
        case.run([sys.executable, *words], case.log(), HF_HUB_OFFLINE="1", **more)
    except Failed as error:
        failed = {"failed": str(error)}
    wall = round(time.perf_counter() - began, 1)
    case.end()
    memory.stopped.set()
    return {"wall": wall, "peak_gib": memory.peak[0] if memory.peak else None, **failed}


def ours(options: argparse.Namespace) -> dict:
    result: dict = {}
    for name, tokens in (("warm", WARM), ("timed", options.max_tokens)):
        case = fresh(f"ours-{name}", options)
        settings = [f"evaluate.max_tokens={tokens}", f"evaluate.dtype={DTYPE}", f"evaluate.sampled.n={SAMPLES}",
                    f"evaluate.sampled.temperature={TEMPERATURE}", "evaluate.sampled.top_p=0.95", *options.set]  # fmt: skip
        words = ["evaluate", "--model", options.model, "--mode", "plain", "--benchmark", "humaneval",
                 "--benchmarks-dir", options.out / "tasks", "--params", REPO / "params.yaml", "--out", "evaluation",
                 "--metrics", "metrics.json", *(word for setting in settings for word in ("--set", setting))]  # fmt: skip
        result = process(["-m", "jobs", *words], case)
        if "failed" in result:
            return result
    facts = json.loads((case.folder / "reports/provenance/evaluate-evaluation.json").read_text())
    phases = facts["seconds_by_phase"]
    rows = (case.folder / "evaluation/samples-humaneval.jsonl").read_bytes().count(b"\n")
    start = round(result["wall"] - sum(phases.values()), 1)  # imports, hashes of the model, and the end
    return result | {
        "to_metrics": result["wall"], "phases": {"start": start, **phases}, "tokens": facts["tokens"], "samples": rows,
    }  # fmt: skip


def evalplus(options: argparse.Namespace) -> dict:
    result: dict = {}
    for name in ("warm", "timed"):
        case = fresh(f"evalplus-{name}", options)
        result = process([__file__, options.model, options.data, "--evalplus", options.evalplus, "--out", options.out,
                          "--max-tokens", options.max_tokens, "--peer", name], case,
                         HUMANEVAL_OVERRIDE_PATH=str(options.data), STARTED=str(time.time()))  # fmt: skip
        if "failed" in result:
            return result
    return result | parsed(case.log().read_text(errors="replace"))


def parsed(log: str) -> dict:
    """What a timed process of evalplus said of itself."""
    said = [line.split("PEER ", 1)[1] for line in log.splitlines() if "PEER {" in line]
    return json.loads(said[-1]) if said else {"failed": "it said no seconds"}


def fresh(name: str, options: argparse.Namespace) -> Case:
    """A case with an empty folder and --limit seconds."""
    shutil.rmtree(options.out / name, ignore_errors=True)
    return Case(name, options.out, options.limit)


RUN = {"ours": ours, "evalplus": evalplus}


class Clock:
    """Seconds by part, and the tokens and samples of vLLM's generate."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.tokens = self.samples = 0

    def around(self, part: str, function):
        def timed(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

        return timed

    def counting(self, function):
        def counted(*arguments, **options):
            outputs = function(*arguments, **options)
            self.samples += len(outputs)
            self.tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            return outputs

        return counted


def peer(options: argparse.Namespace) -> None:
    """evalplus, in this process."""
    sys.path.append(str(options.evalplus))
    import vllm
    from evalplus import codegen, evaluate

    clock, make_model = Clock(), codegen.make_model
    warm = options.peer == "warm"

    def shortened(**settings):
        model = make_model(**settings)
        model.max_new_tokens = WARM if warm else options.max_tokens
        return model

    codegen.make_model = clock.around("load", shortened)
    codegen.sanitize = clock.around("sanitize", codegen.sanitize)
    vllm.LLM.generate = clock.counting(clock.around("generate", vllm.LLM.generate))
    settings = {"model": str(options.model), "backend": "vllm", "n_samples": SAMPLES, "temperature": TEMPERATURE,
                "dtype": DTYPE, "force_base_prompt": True}  # fmt: skip
    if warm:
        codegen.run_codegen(dataset="humaneval", id_range=[0, 1], **settings)
        problems = evaluate.get_human_eval_plus()
        evaluate.get_groundtruth(problems, evaluate.get_human_eval_plus_hash(), [])
        return
    evaluate.run_codegen = clock.around("codegen", evaluate.run_codegen)
    clock.around("all", evaluate.evaluate)(dataset="humaneval", **settings)
    spent = clock.seconds
    to_metrics = time.time() - float(os.environ["STARTED"])
    phases = {
        "start": to_metrics - spent["all"],
        **{part: spent[part] for part in ("load", "generate", "sanitize")},
        "score": spent["all"] - spent["codegen"],
    }
    said = {
        "to_metrics": round(to_metrics, 1), "phases": {part: round(seconds, 2) for part, seconds in phases.items()},
        "tokens": clock.tokens, "samples": clock.samples,
    }  # fmt: skip
    print("\nPEER", json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
