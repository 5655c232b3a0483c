"""The merge's bench: what it runs by turns, what it leaves out, and beside what it puts each time."""

import importlib.util
import sys
from pathlib import Path

from tests.bench import merge as bench

ROOT = Path(__file__).parents[2]


def ran(monkeypatch, tmp_path, *flags: str, installed: bool = True) -> list[str]:
    """The labels of the steps that the bench would time, each of which takes a second longer than the one before."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.safetensors").write_bytes(bytes(8))
    labels: list[str] = []

    def timed(label: str, *_) -> float:
        labels.append(label)
        return float(len(labels))

    monkeypatch.setattr(bench, "made", lambda *_: (tmp_path / "base", tmp_path / "adapter"))
    monkeypatch.setattr(bench, "timed", timed)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(sys, "argv", ["merge.py", "--no-peft", *flags])
    bench.main()
    return labels


def test_without_llama_cpp_the_converter_is_left_out_in_one_line(monkeypatch, tmp_path, capsys):
    labels = ran(monkeypatch, tmp_path, installed=False)
    assert not any("GGUF" in label for label in labels)
    told = [line for line in capsys.readouterr().out.splitlines() if "GGUF" in line]
    assert told == ["base + adapter to F16 GGUF: left out, since llama-cpp-python is not installed"]


def test_each_merge_by_each_limit_and_each_version_beside_both_copies(monkeypatch, tmp_path, capsys):
    labels = ran(monkeypatch, tmp_path, "--rounds", "3", "--processes", "8", "16", "--beside", str(tmp_path))
    once = labels[: len(labels) // 3]
    assert labels == once * 3
    assert len(set(once)) == len(once) == 2 + 3 * 2 * 2 + 1
    lines = capsys.readouterr().out.splitlines()[-len(once) :]
    assert all(line.startswith("median of 3: ") for line in lines)
    n = len(once)  # the medians are those of the second round: n + 1 of cp, n + 2 of cp and sync, 2 n of the last
    assert lines[-1].endswith(f"{2 * n / (n + 1):.2f} x cp, {2 * n / (n + 2):.2f} x cp and sync")


def test_another_version_is_run_by_its_own_code_and_params(tmp_path):
    steps = bench.merges(
        tmp_path / "base", tmp_path / "adapter", tmp_path, {", beside": tmp_path / "old", "": ROOT}, []
    )
    for label, command in steps.items():
        code = tmp_path / "old" if label.endswith(", beside") else ROOT
        assert command[:2] == ["env", f"PYTHONPATH={code}"]
        assert command[command.index("--params") + 1] == code / "params.yaml"
    assert len(steps) == 6
