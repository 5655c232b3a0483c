"""The layout of jobs/: no circle of imports, no job that imports another, functions and files short enough to read."""

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from jobs.__main__ import ELSEWHERE, JOBS
from jobs.plumbing import closure

ROOT = Path(__file__).parents[2]
FILES_OF_JOBS = sorted((ROOT / "jobs").rglob("*.py"))
LONGEST = 60  # lines of a function, its docstring included
LONGER: set[str] = set()


def place(file: Path) -> str:
    """What a file lies in: the folder or the file right below jobs/."""
    return Path(file.relative_to(ROOT / "jobs").parts[0]).stem


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found():
    assert circle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert set(circle({"a": ["b"], "b": ["c"], "c": ["a"]})) == {"a", "b", "c"}


def test_no_file_and_no_room_is_in_a_circle_of_imports():
    """Imports inside functions count; those for type checking alone do not. A folder's files all import its __init__.py."""
    files = {
        str(file): [str(other) for other in closure.imported(file) - {file, file.with_name("__init__.py")}]
        for file in FILES_OF_JOBS
    }
    assert circle(files) == []
    rooms = defaultdict(set)
    for file, others in files.items():
        rooms[place(Path(file))] |= {place(Path(other)) for other in others if other != file} - {place(Path(file))}
    rooms.pop("__main__")
    assert circle(rooms) == []
    assert rooms["evaluate"] >= {"scoring", "common"}


def jobs_of_files() -> dict[str, set[str]]:
    """The commands of each file or folder below jobs/ that is no room."""
    found = defaultdict(set)
    for name in JOBS:
        found[ELSEWHERE.get(name, name).partition(".")[0]].add(name)
    return found


@pytest.mark.parametrize("job", sorted(jobs_of_files()))
def test_no_job_imports_another_job(job):
    own = [file for file in FILES_OF_JOBS if place(file) == job]
    assert own
    reached = {place(other) for file in own for other in closure.imported(file)} - {job}
    assert reached & set(jobs_of_files()) == set()


def test_functions_are_short():
    long = []
    for file in FILES_OF_JOBS:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and f"{file.stem}.{node.name}" not in LONGER:
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST:
                    long.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert long == []


def test_no_link_is_tracked():
    """A link to an environment, say, would take the place of the environment of whoever pulls."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []
