"""Unlike families through every stage, at toy size; `make families` makes the table of all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import families

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

PROGRAM = Path(__file__).with_name("families.py")
RESULTS = json.loads(families.RESULTS.read_text())
WORKS = dict.fromkeys(("base", "sft", "grpo", "merge", "sample", "gguf", "generate"), "works")


@pytest.mark.parametrize(
    ("family", "refused"),
    [("llama", {}), ("mistral, sliding window", {"gguf": "sees 64 tokens back (sliding_window)"})],
)
def test_every_stage_works_or_refuses_with_one_line(family, refused):
    done = subprocess.run(
        [sys.executable, PROGRAM, "--one", "--only", family], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == next(iter(RESULTS.values()))[0]["rows"][family], "docs/models.md is as this machine finds it"
    for stage, reason in refused.items():
        assert found.pop(stage).startswith(f"refused: {reason}")
    assert found == {stage: text for stage, text in WORKS.items() if stage not in refused}


def test_the_page_shows_every_family_and_is_made_from_the_results():
    first, *others = ([name for run in runs for name in run["rows"]] for runs in RESULTS.values())
    assert sorted(first) == sorted(families.FAMILIES)
    assert all(set(names) <= set(first) and len(names) == len(set(names)) for names in others)
    assert families.PAGE.read_text() == families.page(RESULTS)


def test_every_cell_works_or_is_refused_for_a_reason():
    rows = [item for runs in RESULTS.values() for run in runs for item in run["rows"].items()]
    for family, row in rows:
        for stage, cell in row.items():
            assert cell in ("works", "not reached") or cell.startswith("refused: "), (family, stage, cell)
            assert "/tmp" not in cell


def test_a_row_made_by_other_versions_stands_apart_from_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "RESULTS", tmp_path / "models.json")
    monkeypatch.setattr(families, "PAGE", tmp_path / "models.md")
    old, new, row = {"torch": "1"}, {"torch": "2"}, {"base": "works"}
    families.keep("Engine", old, {"qwen3": row, "qwen2": row})
    families.keep("Engine", new, {"qwen2": {"base": "refused: no"}})
    families.keep("Engine", new, {"llama": row})
    held = json.loads(families.RESULTS.read_text())["Engine"]
    assert [(run["with"], list(run["rows"])) for run in held] == [(old, ["qwen3"]), (new, ["qwen2", "llama"])]
    families.keep("Engine", new, {"qwen3": row})
    assert [list(run["rows"]) for run in json.loads(families.RESULTS.read_text())["Engine"]] == [
        ["qwen3", "qwen2", "llama"]
    ]
    assert families.PAGE.read_text().count("torch 2") == 1 and "torch 1" not in families.PAGE.read_text()
