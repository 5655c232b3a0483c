"""Recipes say where their numbers come from, are listed, and what is said of their memory is what the script computes."""

import functools
import math
import re
from pathlib import Path

import pytest

from jobs.plumbing.params import merged, read_yaml, validate
from tests.bench import memory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recipes.md").read_text()
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def loaded(*names: str):
    """The params with these recipes laid over them, each over those before it."""
    recipes = (read_yaml(ROOT / f"recipes/{name}.yaml") for name in names)
    return validate(functools.reduce(merged, recipes, read_yaml(ROOT / "params.yaml")), names[-1])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_has_a_header_and_a_line_in_the_docs(recipe):
    assert recipe.read_text().startswith("# ")
    assert f"`{recipe.name}`" in PAGE


@pytest.mark.parametrize("name", sorted(recipe.stem for recipe in RECIPES if recipe.stem != "check"))
def test_a_check_of_a_recipe_is_small_and_sets_aside_fewer_tasks_than_it_has(name):
    params = loaded(name, "check")
    left = params.tasks.toy.train - params.grade.validation
    assert 0 < params.grade.validation < params.tasks.toy.train
    assert params.grpo.share[0] * params.grpo.share[1] // params.grpo.generations <= left
    assert params.grpo.validate_every <= params.grpo.steps == 2
    samples = params.grpo.steps * math.prod(params.grpo.share)
    measured = 2 * params.grade.validation * (1 + params.grpo.validate_samples)
    assert samples + measured + params.grade.samples * left <= 32
    assert params.grpo.difficulty is params.grpo.mix is None, "neither is of use where nothing is solved and all is toy"


@pytest.mark.parametrize("name", memory.SHAPES)
def test_a_recipe_that_was_not_run_says_so_and_pins_its_base(name):
    header = (ROOT / f"recipes/{name}.yaml").read_text().partition("\nbase:")[0]
    assert "NOT RUN HERE" in header
    params = loaded(name)
    assert params.base.repo.lower().partition("/")[2].startswith(name)
    assert re.fullmatch("[0-9a-f]{40}", params.base.revision)
    assert params.base.revision != read_yaml(ROOT / "params.yaml")["base"]["revision"]
    peak = re.search(r"(\d+) GiB at the peak", header)
    assert f"| {peak[1]} |" in memory.line(name, memory.SHAPES[name])
    assert int(peak[1]) < 0.9 * memory.CARD


def test_the_page_shows_what_the_script_computes():
    assert memory.table() in PAGE
    assert f"is {memory.PLAIN:.1f} GiB for each of 16 rows" in PAGE
    assert f"is {memory.CHECKPOINTED:.1f} GiB for each of 8 rows" in PAGE


@pytest.mark.parametrize("name", memory.SHAPES)
def test_memory_is_estimated_for_what_the_recipe_samples(name):
    grpo = loaded(name).grpo
    assert grpo.max_prompt_length + grpo.max_completion_length == memory.TOKENS
    assert not grpo.gradient_checkpointing


def test_the_estimate_is_what_was_measured_on_the_model_that_was_measured():
    assert memory.a_row(memory.MEASURED) == pytest.approx(memory.PLAIN)
