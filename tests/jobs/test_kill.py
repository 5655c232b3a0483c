"""tests/kill.py on the cheapest stage that has a sandbox and stored requests; run the script for all of them."""

import random

from tests.kill import SMALL, Pipeline, attacked

CHEAP = {"tasks": {"toy": {"distill": 8, "train": 4, "heldout": 4}}, "distill": {"examples": 4}}


def test_a_killed_stage_ends_as_an_undisturbed_one_and_leaves_nothing(tmp_path):
    run = Pipeline(tmp_path / "run")
    run.lay_out({"sandbox": SMALL["sandbox"]} | CHEAP)
    code, log = run.repro("distill")
    assert code == 0, log
    assert not attacked(run, "distill", 2, random.Random(7))
    assert not run.secrets()
