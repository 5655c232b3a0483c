import random

from jobs.common import answer_format
from jobs.toy import world

COUNTS = {"distill": 130, "train": 200, "heldout": 100}


def test_splits_are_disjoint_by_instruction_and_by_program():
    records = world.tasks(7, COUNTS)
    instructions = [r["prompt"] for split in records.values() for r in split]
    programs = [world.code_of(p) for split in world.splits(7, COUNTS).values() for p in split]
    assert len(set(instructions)) == len(instructions) == sum(COUNTS.values())
    assert len(set(programs)) == len(programs)


def test_corpus_holds_no_task_right_or_wrong():
    reserved = {p for split in world.splits(7, COUNTS).values() for p in split}
    instructions = {world.prompt_of(p) for p in reserved}
    bodies = {world.body_of(p) for p in reserved}
    documents = list(world.corpus(7, 3000, 0.5, reserved))
    assert len(documents) == 3000
    for document in documents:
        assert not any(instruction in document for instruction in instructions)
        assert not any(body in document for body in bodies)


def test_every_task_is_right_and_every_step_matters():
    records = world.tasks(3, COUNTS)
    for split, programs in world.splits(3, COUNTS).items():
        for record, program in zip(records[split], programs, strict=True):
            namespace: dict = {}
            exec(record["reference"], namespace)
            for test in record["tests"]:
                exec(test, namespace)
            for i in range(len(program)):
                exec(world.code_of(program[:i] + program[i + 1 :]), namespace)
                assert not all(passes(test, namespace) for test in record["tests"]), (program, i)


def passes(test, namespace):
    try:
        exec(test, namespace)
    except AssertionError:
        return False
    return True


def test_answers_obey_the_tag_format():
    for program in world.splits(1, {"any": 20})["any"]:
        answer = answer_format.parse(world.answer_of(program))
        assert answer is not None
        assert answer_format.defines(answer.code, world.ENTRY_POINT)


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert world.tasks(5, COUNTS) == world.tasks(5, COUNTS)
    assert world.tasks(5, COUNTS) != world.tasks(6, COUNTS)
    assert list(world.corpus(5, 50, 0.5, set())) == list(world.corpus(5, 50, 0.5, set()))


def test_as_many_lines_are_wrong_as_asked():
    documents = [d for d in world.corpus(5, 2000, 0.4, set()) if d.startswith("def")]
    right = sum(is_right(document) for document in documents) / len(documents)
    assert abs(right - (1 - 0.4) ** world.LENGTH) < 0.04


def is_right(document):
    instruction = document.split('"""')[1]
    program = tuple((verb, int(k)) for verb, k in (step.split() for step in instruction.split(", then ")))
    return document.endswith(world.body_of(program))


def test_recorded_answers_are_what_the_smoke_run_asks_for():
    """data/smoke/teacher.jsonl is made by `python -m jobs.toy`; it must fit the params it is replayed with."""
    from pathlib import Path

    from jobs.common.files import read_jsonl
    from jobs.plumbing.params import check, merged, read_yaml

    root = Path(__file__).parents[2]
    params = check(merged(read_yaml(root / "params.yaml"), read_yaml(root / "data/smoke/params.yaml")), "params")
    assert list(world.recorded(params)) == read_jsonl(root / "data/smoke/teacher.jsonl")


def test_a_random_program_has_the_full_length():
    rng = random.Random(0)
    assert {len(world.draw_program(rng)) for _ in range(50)} == {world.LENGTH}
