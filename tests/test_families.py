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
    assert found == next(iter(RESULTS.values()))["rows"][family], "docs/models.md is as this machine finds it"
    for stage, reason in refused.items():
        assert found.pop(stage).startswith(f"refused: {reason}")
    assert found == {stage: text for stage, text in WORKS.items() if stage not in refused}


def test_the_page_shows_every_family_and_is_made_from_the_results():
    first, *others = (set(found["rows"]) for found in RESULTS.values())
    assert first == set(families.FAMILIES)
    assert all(names <= first for names in others)
    assert families.PAGE.read_text() == families.page(RESULTS)


def test_every_cell_works_or_is_refused_for_a_reason():
    for found in RESULTS.values():
        for family, row in found["rows"].items():
            for stage, cell in row.items():
                assert cell in ("works", "not reached") or cell.startswith("refused: "), (family, stage, cell)
                assert "/tmp" not in cell
