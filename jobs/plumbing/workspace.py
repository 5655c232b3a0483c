"""A folder in which the whole pipeline runs with params of its own: the repository's files, its own git and DVC state.

`jobs smoke` and `jobs run` lay an overlay over params.yaml there and run the very dvc.yaml of the repository.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json
from jobs.plumbing import stages

MANIFEST = Path(".checkpoints/smoke.json")  # in the folder: the files that were laid out there
SOURCES = Path("data/sources")  # inputs that git does not know: linked into the folder, not copied
IDENTITY = ("-c", "user.name=jobs", "-c", "user.email=jobs@localhost", "-c", "commit.gpgsign=false")


def require_own(out: Path) -> None:
    """Errors: UsageError where `out` is or holds the working folder, or holds what was not laid out by a run."""
    here, place = Path.cwd(), out.resolve()
    if here.is_relative_to(place) or {".git", ".dvc"} & set(out.parts):
        raise UsageError(f"--out: {out} is or holds the working folder, or is git's or DVC's; name a new folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is a file; name a new folder")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"--out: {out} holds what no run laid out, and would be written over; name a new folder")


def lay_out(out: Path, overlays: Sequence[Path], assignments: Sequence[str] = ()) -> None:
    """Makes `out` hold the working tree's files (tracked, or new and not ignored), data/sources and the merged params.

    overlays: files of params, each laid over params.yaml and those before it; assignments: `section.key=value`, laid over
    all of them. Errors: UsageError naming file or assignment, key and value.
    """
    from jobs.plumbing.params import assign, read_merged, validate
    from jobs.plumbing.yaml12 import dump, parse

    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", capture=True)
    # dvc.lock and the folders' .gitignore files are DVC's, here as there.
    names = {
        name
        for name in listed.split("\0")
        if name and Path(name).is_file() and name != "dvc.lock" and not name.endswith("/.gitignore")
    } | {".dvc/.gitignore"}
    params = read_merged([Path("params.yaml"), *overlays])
    assigned = {assign(params, assignment): assignment for assignment in assignments}
    validate(params, f"params.yaml with {', '.join(map(str, overlays))}", assigned)
    manifest = out / MANIFEST
    if not manifest.exists():  # first of all, so that a run that is killed on the way can go on
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text("[]")
    before = set(json.loads(manifest.read_text()))
    for name in sorted(before - names):
        (out / name).unlink(missing_ok=True)
    for name in sorted(names):
        target = out / name
        if name != "params.yaml" and not same(Path(name), target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target)
    link_sources(out)
    text = dump(params)
    assert parse(text) == params
    if not (out / "params.yaml").exists() or (out / "params.yaml").read_text() != text:
        (out / "params.yaml").write_text(text)
    manifest.write_text(json.dumps(sorted(names)))
    if not (out / ".git").exists():
        run("git", "init", "-q", "-b", "main", cwd=out)


def link_sources(out: Path) -> None:
    """Hard links, or copies on another disk: a container sees the folder alone, and no link that leads out of it."""
    for source in sorted(path for path in SOURCES.rglob("*") if path.is_file() and path.name != ".gitignore"):
        target = out / source
        if target.exists() and (target.samefile(source) or same(source, target)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def inherit(first: Path, out: Path) -> None:
    """Gives `out` what was made in `first`, with the lock that says so: stages of equal params are then up to date."""
    # The cache as well: DVC takes no out for made whose content it has not stored.
    for folder in (".dvc/cache", "data", "models", "metrics", "plots"):
        shutil.copytree(first / folder, out / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("sources"))
    shutil.copy2(first / "dvc.lock", out / "dvc.lock")  # last: where it is, the rest is


def same(source: Path, target: Path) -> bool:
    return (
        target.is_file()
        and source.stat().st_mode == target.stat().st_mode
        and source.read_bytes() == target.read_bytes()
    )


def reproduce(out: Path, targets: tuple[str, ...], at_once: int = 1, **around: str) -> None:
    """`dvc repro` in `out`, with this process's environment and what `around` adds to it.

    at_once: above 1, so many stages run side by side where none depends on another.
    """
    environment = (
        os.environ
        | around
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
    )
    for unwanted in ("PYTHONPATH", "DVC_ROOT", "GIT_DIR", "GIT_WORK_TREE"):
        environment.pop(unwanted, None)
    if at_once > 1:
        stages.reproduce(out, targets, at_once, environment)
    run(sys.executable, "-m", "dvc", "repro", *targets, cwd=out, env=environment)


def commit(out: Path, message: str) -> None:
    """Records the run in the folder's own git, so that `dvc metrics diff` has two sides."""
    run("git", "add", "-A", cwd=out)
    if run("git", "status", "--porcelain", cwd=out, capture=True).strip():
        run("git", *IDENTITY, "commit", "-q", "-m", message, cwd=out)


def report(out: Path, began: float, name: str) -> None:
    """The metrics table, a time line of the stages that ran, and where the report is."""
    compared = out / "metrics" / "compare.json"
    for line in table(read_json(compared)) if compared.exists() else ():  # targets may stop before it
        click.echo(line)
    finished = sorted((out / "reports" / "provenance").glob("*.json"), key=lambda p: read_json(p)["finished"])
    click.echo("\nseconds by stage (its last run):")
    for path in finished:
        facts = read_json(path)
        click.echo(
            f"  {path.stem:<24}{facts['seconds']:8.1f} s   {facts['peak_memory_mib']:6d} MiB   {facts['finished']}"
        )
    click.echo(
        f"\n{name} done in {time.time() - began:.0f} s; the report: {(out / 'reports' / 'compare.html').resolve()}"
    )


def table(compared: dict) -> list[str]:
    """Pass rates by benchmark, mode and model with their intervals, and the paired differences."""
    lines = ["\nbenchmark   mode    model        greedy   pass@1   (95 % interval)   pass@10"]
    for benchmark, modes in compared.items():
        for mode, found in modes.items():
            for name, values in found.items():
                start = f"{benchmark:<12}{mode:<8}{name:<12}"
                if "pass@1" in values:
                    one, ten = values["pass@1"], values.get("pass@10", {}).get("mean", float("nan"))
                    lines.append(
                        f"{start}{values['greedy']['mean']:7.3f}  {one['mean']:7.3f}   "
                        f"({one['low']:.3f} to {one['high']:.3f}) {ten:9.3f}"
                    )
                else:
                    said = "established" if values["established"] else "not established"
                    lines.append(
                        f"{start}{'':9}{values['mean']:+7.3f}   ({values['low']:+.3f} to {values['high']:+.3f})  {said}"
                    )
    return lines


def run(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None, capture: bool = False) -> str:
    """Runs a command; a failure becomes a JobError naming it."""
    done = subprocess.run(words, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE if capture else None, check=False)
    if done.returncode:
        raise JobError(f"`{' '.join(words)}` ended with exit code {done.returncode}")
    return done.stdout or ""
