"""The pages are true where a machine can tell: links lead somewhere, paths and jobs exist, the README stays short."""

import re
from pathlib import Path

import pytest

from jobs.__main__ import JOBS
from jobs.plumbing.params import Params

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OUTPUTS = ("data/", "models/", "metrics/", "plots/", "reports/")  # made by a run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, heading = target.partition("#")
        assert (page.parent / path).exists(), target
        if heading and (page.parent / path).suffix != ".html":
            assert heading in anchors(page.parent / path if path else page), target


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page):
    for path in re.findall(r"`((?:jobs|tests|docker|recipes)/[\w./-]*)`", page.read_text()):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_jobs_that_are_called_exist(page):
    for job in re.findall(r"python -m jobs ([a-z][\w-]*)", page.read_text()):
        assert job in JOBS, job


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_params_that_are_named_exist(page):
    sections = "|".join(Params.model_fields)
    for key in re.findall(rf"`((?:{sections})(?:\.\w+)+)[:`]", page.read_text()):
        model = Params
        for name in key.split("."):
            fields = getattr(model, "model_fields", None)
            if fields is None:  # inside a free mapping
                break
            assert name in fields, f"{page.name}: {key}"
            kinds = [fields[name].annotation, *getattr(fields[name].annotation, "__args__", ())]
            model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)


def test_the_readme_is_for_its_first_reader():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert "samyakshrestha/grpo-verified-reasoner" in "\n".join(lines[:12])
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", "\n".join(lines)))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")}, "every page is found from the README"


def test_the_tree_in_the_readme_is_the_tree():
    tree = (ROOT / "README.md").read_text().partition("## The house")[2].partition("```")[2].partition("```")[0]
    rooms = {path.name for path in (ROOT / "jobs").iterdir() if (path / "__init__.py").is_file()}
    jobs = {name for name in rooms if (ROOT / "jobs" / name / "job.py").is_file()}
    named = set(re.findall(r"^  ([\w/]+)/ ", tree, re.MULTILINE))
    assert named == rooms - jobs
