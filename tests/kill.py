"""Kills every stage of the pipeline at random moments, runs it again, and looks whether anything differs or is left.

    python tests/kill.py [--kills 5] [--out FOLDER] [--seed N] [STAGE ...]

Lays the smoke run out in a temporary folder with params that make it smaller still, runs it undisturbed, then, for
every stage and every kill: starts the stage anew, sends its job SIGKILL, SIGTERM or SIGINT by turns at a random moment
(the last one to the whole group of processes, as Ctrl-C does), and runs `dvc repro` again. Each time it asks that

- the outs are those of the undisturbed run, by the hashes in dvc.lock,
- nothing half-written is left: no `.NAME.partial`, no checkpoint but the whole ones,
- no process of the run is left, no entry in /dev/shm, no lock that stops DVC,
- fake secrets in the environment are in none of the files.

Prints a line a kill, and one with the seed on top; exit code 1 if anything was wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from jobs.plumbing.yaml12 import dump, read_yaml

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECRETS = {"HF_TOKEN": "hf_" + "fAkEsEcReT" * 3, "DEEPSEEK_API_KEY": "sk-" + "fAkEsEcReT" * 3}
SMALL = {
    "base": {"toy": {"hidden_size": 256, "steps": 30}},
    "tasks": {"toy": {"distill": 130, "train": 20, "heldout": 8}},
    "sft": {"epochs": 1},
    "grade": {"samples": 2, "validation": 4},
    # So small a model solves nothing: every task is taken, and what it learns from is how long its answers are.
    "grpo": {"steps": 6, "batch_size": 16, "generations": 4, "max_completion_length": 24, "difficulty": None,
             "validate_every": 3, "rewards": {"overlong": 1.0, "overlong_tokens": 20}},
    "merge": {"dtype": "float32"},
    "evaluate": {"max_tokens": 24, "batch_size": 16, "sampled": {"n": 2}},
    "gguf": {"types": ["F16"], "tasks": 4, "max_tokens": 16,
             "limits": {"F16": {"kl": 1.0, "top1": 0.5, "drop": 1.0}}},
    "checkpoints": {"every": 2},
    "sandbox": {"workers": 1},
}  # fmt: skip


class Pipeline:
    """The smoke run in `folder`, with the processes that it starts marked by an environment variable."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, f"KILLED_RUN={os.getpid()}-{time.time_ns()}"
        name, value = self.mark.split("=")
        self.environment = os.environ | SECRETS | {
            name: value, "RUNTIME": "local", "TRAIN_IMAGE": "cpu", "GGUF_IMAGE": "cpu", "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
        for unwanted in ("PYTHONPATH", "GIT_DIR", "GIT_WORK_TREE"):
            self.environment.pop(unwanted, None)

    def lay_out(self, small: dict) -> None:
        from jobs.plumbing.params import merged, validate

        smoke = [sys.executable, "-m", "jobs", "smoke", "--out", str(self.folder), "--prepare"]
        subprocess.run(smoke, cwd=ROOT, check=True)
        path = self.folder / "params.yaml"
        params = merged(read_yaml(path), small)
        validate(params, "the small params")
        path.write_text(dump(params))

    def start(self, *words: str) -> subprocess.Popen:
        with open(self.folder / ".checkpoints" / "kill.log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", *words],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def repro(self, *words: str) -> tuple[int, str]:
        log = self.folder / ".checkpoints" / "kill.log"
        before = log.stat().st_size if log.exists() else 0
        code = self.start(*words).wait()
        return code, log.read_text(errors="replace")[before:]

    def stages(self) -> list[str]:
        """All stages, matrices resolved, in the order of dvc.yaml, which is one in which they can run."""
        listed = subprocess.run(
            [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return listed.stdout.split()

    def job(self, stage: str) -> str:
        entry = yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"][stage.partition("@")[0]]
        return entry["cmd"].split()[2]

    def hashes(self, stage: str) -> dict[str, str]:
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]
        return {out["path"]: out["md5"] for out in lock[stage]["outs"]}

    def forget(self, stage: str) -> None:
        """Takes the stage out of dvc.lock and removes its outs: DVC would check them out of its cache."""
        path = self.folder / "dvc.lock"
        lock = yaml.safe_load(path.read_text())
        for out in lock["stages"].pop(stage, {"outs": []})["outs"]:
            file = self.folder / out["path"]
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        path.write_text(yaml.safe_dump(lock, sort_keys=False))

    def processes(self) -> dict[int, list[str]]:
        """Those marked, and those of the sandbox, which have an empty environment but name the folder."""
        found, callers = {}, ancestors(os.getpid())
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                marked = self.mark.encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            here = marked or any(str(self.folder) in word for word in words)
            if here and words != [""] and int(entry.name) not in callers:
                found[int(entry.name)] = words
        return found

    def running(self, stage: str) -> int | None:
        """The process of the stage's job, once its interpreter runs."""
        for pid, words in self.processes().items():
            if words[1:4] == ["-m", "jobs", self.job(stage)]:
                return pid
        return None

    def left_over(self) -> list[str]:
        deadline = time.monotonic() + 15  # orphans are killed by the kernel, and take a moment
        while (running := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        found = [f"process {pid}: {' '.join(words)[:150]}" for pid, words in running.items()]
        found += [str(p) for p in self.folder.rglob("*.partial") if ".venv" not in p.parts]
        found += [f"unsealed: {p}" for p in self.folder.glob(".checkpoints/*/*/checkpoint-*")
                  if not (p / "MANIFEST.json").exists()]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--quiet"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if "lock" in done.stderr.lower():
            found.append(f"dvc: {done.stderr.strip()}")
        return found

    def secrets(self) -> list[str]:
        values = [value.encode() for value in SECRETS.values()]
        return [str(p) for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink()
                and any(value in p.read_bytes() for value in values)]  # fmt: skip


def ancestors(pid: int) -> set[int]:
    """The process and those that started it."""
    found = set()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def shared_memory() -> set[str]:
    return {p.name for p in Path("/dev/shm").glob("*") if p.name.startswith(("jobs", "psm_", "sem.", "torch_", "vllm"))}


def killed_once(run: Pipeline, stage: str, number: signal.Signals, moment: float) -> tuple[bool, float]:
    """Starts `stage` anew and signals its job after `moment` seconds; returns whether it was hit, and when."""
    run.forget(stage)
    process = run.start("--single-item", "--no-run-cache", stage)
    deadline = time.monotonic() + 120
    while (pid := run.running(stage)) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < moment:
        time.sleep(0.002)
    hit = pid is not None and process.poll() is None and pid in run.processes()
    if hit and number == signal.SIGINT:
        os.killpg(process.pid, number)
    elif hit and pid is not None:
        os.kill(pid, number)
    process.wait(timeout=120)
    return hit, time.monotonic() - began


def attacked(run: Pipeline, stage: str, kills: int, rng: random.Random) -> list[str]:
    """Kills `stage` `kills` times, each followed by a run to the end; returns what was wrong."""
    expected, wrong, hits = run.hashes(stage), [], 0
    provenance = sorted(run.folder.glob(f"reports/provenance/{stage.replace('@', '-')}*.json"))
    length = json.loads(provenance[0].read_text())["seconds"]
    for kill in range(kills):
        for checkpoints in (run.folder / ".checkpoints").glob(f"{run.job(stage)}*"):
            shutil.rmtree(checkpoints)
        memory, number = shared_memory(), SIGNALS[kill % len(SIGNALS)]
        for _ in range(3):  # a moment drawn after the job's end is drawn again
            hit, moment = killed_once(run, stage, number, rng.uniform(0, length))
            if hit:
                break
        hits += hit
        found = [f"process {pid}" for pid in run.processes()] if number == signal.SIGINT else []
        began = time.monotonic()
        code, log = run.repro("--single-item", "--no-run-cache", stage)
        resumed = [line.partition("resuming from ")[2] for line in log.splitlines() if "resuming from" in line]
        if code:
            found.append(f"dvc repro ended with {code}: {log[-500:]}")
        elif (again := run.hashes(stage)) != expected:
            found += [f"{path} differs" for path in expected if again.get(path) != expected[path]]
        found += run.left_over() + sorted(shared_memory() - memory)
        start = f"from {Path(resumed[-1]).name}" if resumed else "from the start"
        took = time.monotonic() - began
        print(
            f"{stage:24}{number.name if hit else 'over':9}{moment:6.1f} s, again in {took:5.1f} s  {start:24}"
            f"{'; '.join(found) or 'equal'}",
            flush=True,
        )
        wrong += [f"{stage}, kill {kill + 1} by {number.name}: {text}" for text in found]
    if not hits:
        wrong.append(f"{stage}: the job was never hit")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="as in dvc.yaml, or NAME@ITEM; default: all")
    parser.add_argument("--kills", type=int, default=5, help="for each stage (5)")
    parser.add_argument("--out", type=Path, help="where to run, and to keep; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the moments")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    folder = options.out or Path(tempfile.mkdtemp(prefix="kill-"))
    run = Pipeline(folder.resolve())
    print(f"in {folder}, moments by seed {options.seed}", flush=True)
    run.lay_out(SMALL)
    began = time.monotonic()
    code, log = run.repro()
    if code:
        sys.exit(f"the undisturbed run ended with {code}:\n{log[-3000:]}")
    print(f"an undisturbed run took {time.monotonic() - began:.0f} s", flush=True)
    rng, wrong = random.Random(options.seed), []
    for stage in options.stages or run.stages():
        wrong += attacked(run, stage, options.kills, rng)
    wrong += [f"a secret is in {path}" for path in run.secrets()]
    if not options.out:
        shutil.rmtree(folder)
    print(f"{len(wrong)} faults" + "".join(f"\n  {text}" for text in wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
