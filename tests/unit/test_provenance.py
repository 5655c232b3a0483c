"""Which packages a run records, and a resume key hangs on: those that the job's code uses, by its imports."""

import json
from importlib import metadata
from pathlib import Path

from jobs.plumbing import checkpoint
from jobs.plumbing.params import load
from jobs.plumbing.provenance import provenance, versions
from jobs.training.loop import packages

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_a_jobs_packages_are_what_its_code_imports_and_what_that_requires():
    sft, compare = versions("sft"), versions("compare")
    assert {"torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "numpy"} <= sft.keys()
    assert {name: metadata.version(name) for name in sft} == sft
    assert "numpy" in compare
    assert not {"torch", "transformers"} & compare.keys()
    assert not {"dvc", "pytest", "ruff"} & (sft.keys() | compare.keys())


def test_a_package_that_a_param_names_counts_though_nothing_imports_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packages(load(PARAMS, ["grpo.optimizer=adamw_8bit"]).grpo) == ("bitsandbytes",)
    assert packages(load(PARAMS, ["grpo.optimizer=adamw_torch"]).grpo) == ()
    assert "pytest" in versions("compare", "pytest")
    assert checkpoint.key("compare", {}) != checkpoint.key("compare", {}, packages=("pytest",))


def test_provenance_is_of_the_job_whose_stage_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    provenance("merge-grpo", base="models/base")
    facts = json.loads(Path("reports/provenance/merge-grpo.json").read_text())
    assert facts["packages"] == versions("merge")
    assert facts["base"] == "models/base"


def test_what_ran_first_in_the_same_process_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    provenance("evaluate-m-cot", delegated=("sample",))
    facts = json.loads(Path("reports/provenance/evaluate-m-cot.json").read_text())
    assert facts["packages"].keys() == versions("evaluate").keys() | versions("sample").keys()
    assert "torch" in facts["packages"].keys() - versions("evaluate").keys()
