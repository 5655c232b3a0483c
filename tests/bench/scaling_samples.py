"""The cases `samples` and `shards` of tests/bench/scaling.py: samplings side by side, and one by two processes."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.gpu_jobs import REPO
from tests.bench.limited import Case
from tests.bench.scaling_inputs import TOY_CACHE, flags, sha256_of, toy_inputs


def samples(case: Case, options: argparse.Namespace) -> dict:
    """The base model, and the base with the adapter: at once first, so that what is warm after it helps the other."""
    began = time.perf_counter()
    pair = [(name, sample(case, options, f"at-once-{name}", name == "sft")) for name in ("base", "sft")]
    cards = [card_of(case, process) for _, process in pair]
    for name, process in pair:
        case.wait(process, case.log(f"at-once-{name}"))
    at_once = time.perf_counter() - began
    began = time.perf_counter()
    for name in ("base", "sft"):
        case.wait(sample(case, options, f"alone-{name}", name == "sft"), case.log(f"alone-{name}"))
    one_by_one = time.perf_counter() - began
    files = {kind: [drawn_by(case, f"{kind}-{name}") for name in ("base", "sft")] for kind in ("at-once", "alone")}
    return {
        "cards": cards,
        "seconds": {"at_once": round(at_once, 1), "one_by_one": round(one_by_one, 1)},
        "samples": {kind: [sha256_of(file) for file in pair] for kind, pair in files.items()},
        "other_rows": [other_rows(*two) for two in zip(*files.values(), strict=True)],
        "left_at_end": case.settled(),
    }


def shards(case: Case, options: argparse.Namespace) -> dict:
    for count in (2, 1):
        case.wait(sample(case, options, f"by-{count}", True, SHARDS=str(count)), case.log(f"by-{count}"))
    pair = [drawn_by(case, f"by-{count}") for count in (1, 2)]
    found = [
        json.loads((case.folder / f"by-{count}/reports/provenance/sample-out.json").read_text()) for count in (1, 2)
    ]
    return {
        "samples": list(map(sha256_of, pair)),
        "other_rows": other_rows(*pair),
        "rows": len(pair[0].read_text().splitlines()),
        "seconds_by_phase": [facts["seconds_by_phase"] for facts in found],
    }


def sample(case: Case, options: argparse.Namespace, name: str, adapted: bool, **around: str) -> subprocess.Popen:
    """docker/run as a stage has it, in a folder of its own: it takes a card a process, by the case's own locks."""
    inputs = toy_inputs(options)
    folder = case.folder / name
    folder.mkdir()
    for link in ("docker", "jobs", "params.yaml"):
        (folder / link).symlink_to(REPO / link)
    words = ["docker/run", "train", "sample", "--params", inputs["params"], "--model", inputs["base"], "--mode", "cot"]
    words += ["--adapter", inputs["adapter"]] if adapted else []
    words += ["--benchmark", "toy", "--benchmarks-dir", inputs["benchmarks"], "--out", folder / "out"]
    words += flags([f"evaluate.kv_cache_gib={TOY_CACHE}", *options.set])
    return case.start(
        words, case.log(name), folder, RUNTIME="local", PYTHON=sys.executable, CARD_LOCKS=str(case.folder), **around
    )


def card_of(case: Case, process: subprocess.Popen) -> str | None:
    """The card that docker/run has given its job, once it has; None where there is none."""
    while process.poll() is None and case.left() > 1:
        entry = Path(f"/proc/{process.pid}")
        words = (entry / "cmdline").read_bytes().split(b"\0")
        if words[1:3] == [b"-m", b"jobs"]:  # the shell has become the job
            variables = dict(pair.partition(b"=")[::2] for pair in (entry / "environ").read_bytes().split(b"\0"))
            return variables.get(b"CUDA_VISIBLE_DEVICES", b"").decode() or None
        time.sleep(0.02)
    return None


def drawn_by(case: Case, name: str) -> Path:
    return case.folder / name / "out/samples-toy.jsonl"


def other_rows(first: Path, second: Path) -> int:
    pair = [file.read_text().splitlines() for file in (first, second)]
    return sum(one != other for one, other in zip(*pair, strict=True))
