"""Which files of the project a job's results hang on: the closure of its imports.

Three readers: the resume key of a job's checkpoints (checkpoint.py), the test that holds dvc.yaml's dependencies true, and
the list of packages that a run records (provenance.py).
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What carries values and messages but decides none of them: a new flag or message need not rerun a GPU's work.
PLUMBING = ("jobs/__init__.py", "jobs/__main__.py", "jobs/common/errors.py", "jobs/plumbing/")


def job_file(job: str) -> Path:
    """The file that holds the job's command: jobs/JOB.py, or jobs/JOB/job.py."""
    return next(path for path in (ROOT / f"jobs/{job}.py", ROOT / f"jobs/{job}/job.py") if path.is_file())


@cache
def code(job: str) -> tuple[Path, ...]:
    """The files below jobs/ that decide what `job` makes, sorted: all that it imports, but for plumbing.

    Imports inside functions count, those for type checking alone do not. The pages (*.html, *.css and *.js) that lie beside
    an imported file and are named in it count too. Jobs that it delegates to do not: what they write is a file that it
    reads.
    """
    seen: set[Path] = set()
    todo = [job_file(job)]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        todo += imported(file)
        if file.parent.name == "sandbox":  # its servers are started by name, in processes of their own
            todo += file.parent.glob("*.py")
    beside = {page for file in seen for kind in ("html", "css", "js") for page in file.parent.glob(f"*.{kind}")}
    pages = {
        page for page in beside if any(page.name in file.read_text() for file in seen if file.parent == page.parent)
    }
    return tuple(sorted(file for file in seen | pages if file.stat().st_size and not is_plumbing(file)))


def delegated(job: str) -> set[str]:
    """The jobs that `job` can run first by their names (delegate.py): none of their code is in `code(job)`."""
    calls = [node for file in code(job) if file.suffix == ".py" for node in ast.walk(ast.parse(file.read_text()))]
    return {
        ast.literal_eval(node.args[0])
        for node in calls
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "delegate"
    }


def is_plumbing(file: Path) -> bool:
    return file.relative_to(ROOT).as_posix().startswith(PLUMBING)


def imported(file: Path) -> set[Path]:
    """The files below jobs/ that `file` imports, at its top or inside a function, and the packages they lie in."""
    names = imports(file)
    parents = {name.rpartition(".")[0] for name in names}
    return {found for name in names | parents if name.partition(".")[0] == "jobs" and (found := module_file(name))}


def third_party(job: str) -> set[str]:
    """The outermost modules of others that the job's code imports: neither jobs nor the standard library's."""
    files = [file for file in code(job) if file.suffix == ".py"]
    outermost = {name.partition(".")[0] for file in files for name in imports(file)}
    return outermost - {"jobs"} - set(sys.stdlib_module_names)


def imports(file: Path) -> set[str]:
    """The names that a file's imports say, those for type checking alone left out."""
    tree = ast.parse(file.read_text())
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in set(ast.walk(tree)) - typing:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def module_file(name: str) -> Path | None:
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
