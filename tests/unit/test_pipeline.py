"""dvc.yaml says what every stage depends on: its code's imports, its image, its params; nothing more, nothing less."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from jobs.params import Params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What carries values and messages but decides none of them: a new flag or message need not rerun a GPU's work.
PLUMBING = {"__init__", "__main__", "cli", "errors", "params", "checkpoint"}


def module_file(name: str) -> Path | None:
    path = ROOT / name.replace(".", "/")
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imported(path: Path) -> set[Path]:
    """Files under jobs/ that `path` imports, at its top or inside a function; not those for type checking alone."""
    found = set()
    tree = ast.parse(path.read_text())
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(n) for block in blocks for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jobs":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "jobs"]
        else:
            continue
        found |= {file for name in names if (file := module_file(name)) is not None}
    return found


def closure(path: Path) -> set[str]:
    seen, todo = set(), [path]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += imported(file)
            if file.parent.name == "sandbox":  # its servers are started by name, in processes of their own
                todo += file.parent.glob("*.py")
    pages = {page for page in ROOT.glob("jobs/*.html") if any(page.name in file.read_text() for file in seen)}
    return {p.relative_to(ROOT).as_posix() for p in seen | pages if p.parent.name != "jobs" or p.stem not in PLUMBING}


def images(image: str) -> set[str]:
    """What an image is built from; llama.cmake says how llama.cpp is compiled where a stage's files come from it."""
    return {f"docker/{image}.Dockerfile", f"docker/{image}.lock", "docker/build.lock"} | (
        {"docker/llama.cmake"} if image == "gguf" else set()
    )


def definition(name: str) -> dict:
    return STAGES[name].get("do", STAGES[name])


def command(name: str) -> str:
    cmd = definition(name)["cmd"]
    return " ".join(cmd.split())


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_imports(stage):
    image, job = re.match(r"docker/run (\w+) (\w+)", command(stage)).groups()
    listed = {d for d in definition(stage)["deps"] if str(d).startswith(("jobs/", "docker/"))}
    expected = closure(ROOT / "jobs" / f"{job}.py") | images(image)
    assert listed == expected, f"missing {sorted(expected - listed)}, needless {sorted(listed - expected)}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_params_key_exists(stage):
    fields = Params.model_fields
    for key in definition(stage).get("params", []):
        assert key.split(".")[0] in fields, key


@pytest.mark.parametrize("stage", STAGES)
def test_paths_in_the_command_are_dependencies_or_outputs(stage):
    """A path that a command names but DVC does not know would change unseen."""
    parts = definition(stage)
    known = [
        next(iter(p)) if isinstance(p, dict) else p
        for kind in ("deps", "outs", "metrics", "plots")
        for p in parts.get(kind, [])
    ]
    for word in command(stage).split():
        if "/" in word and not word.startswith(("docker/", "--")):
            assert any(word == k or k.startswith(word + "/") or word.startswith(k + "/") for k in known), word


def test_metrics_live_in_git():
    for stage in STAGES:
        for metric in definition(stage).get("metrics", []):
            assert next(iter(metric.values())) == {"cache": False}, stage


def print_dependencies() -> None:
    """python -m tests.unit.test_pipeline prints each stage's code dependencies, to paste into dvc.yaml."""
    for stage in STAGES:
        job = re.match(r"docker/run \w+ (\w+)", command(stage))[1]
        print(stage, *sorted(closure(ROOT / "jobs" / f"{job}.py")), sep="\n      - ")


if __name__ == "__main__":
    print_dependencies()
