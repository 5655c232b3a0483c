"""Unlike families through every stage, at toy size; `make families` makes the table of all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

PROGRAM = Path(__file__).with_name("families.py")
WORKS = dict.fromkeys(("base", "sft", "grpo", "merge", "sample", "gguf", "generate"), "works")


@pytest.mark.parametrize(
    ("family", "refused"),
    [("llama", {}), ("mistral, sliding window", {"gguf": "sees 64 tokens back (sliding_window)"})],
)
def test_every_stage_works_or_refuses_with_one_line(family, refused):
    done = subprocess.run([sys.executable, PROGRAM, "--one", family], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for stage, reason in refused.items():
        assert found.pop(stage).startswith(f"refused: {reason}")
    assert found == {stage: text for stage, text in WORKS.items() if stage not in refused}
