import random

from jobs import schema, toy

COUNTS = {"distill": 130, "train": 200, "heldout": 100}


def test_splits_are_disjoint_by_instruction_and_by_program():
    records = toy.tasks(7, COUNTS)
    instructions = [r["prompt"] for split in records.values() for r in split]
    programs = [toy.code_of(p) for split in toy.splits(7, COUNTS).values() for p in split]
    assert len(set(instructions)) == len(instructions) == sum(COUNTS.values())
    assert len(set(programs)) == len(programs)


def test_corpus_holds_no_task_right_or_wrong():
    reserved = {p for split in toy.splits(7, COUNTS).values() for p in split}
    instructions = {toy.prompt_of(p) for p in reserved}
    bodies = {toy.body_of(p) for p in reserved}
    documents = list(toy.corpus(7, 3000, 0.5, reserved))
    assert len(documents) == 3000
    for document in documents:
        assert not any(instruction in document for instruction in instructions)
        assert not any(body in document for body in bodies)


def test_every_task_is_right_and_every_step_matters():
    records = toy.tasks(3, COUNTS)
    for split, programs in toy.splits(3, COUNTS).items():
        for record, program in zip(records[split], programs, strict=True):
            namespace: dict = {}
            exec(record["reference"], namespace)
            for test in record["tests"]:
                exec(test, namespace)
            for i in range(len(program)):
                exec(toy.code_of(program[:i] + program[i + 1 :]), namespace)
                assert not all(passes(test, namespace) for test in record["tests"]), (program, i)


def passes(test, namespace):
    try:
        exec(test, namespace)
    except AssertionError:
        return False
    return True


def test_answers_obey_the_tag_format():
    for program in toy.splits(1, {"any": 20})["any"]:
        answer = schema.parse(toy.answer_of(program))
        assert answer is not None
        assert schema.defines(answer.code, toy.ENTRY_POINT)


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert toy.tasks(5, COUNTS) == toy.tasks(5, COUNTS)
    assert toy.tasks(5, COUNTS) != toy.tasks(6, COUNTS)
    assert list(toy.corpus(5, 50, 0.5, set())) == list(toy.corpus(5, 50, 0.5, set()))


def test_as_many_lines_are_wrong_as_asked():
    documents = [d for d in toy.corpus(5, 2000, 0.4, set()) if d.startswith("def")]
    right = sum(is_right(document) for document in documents) / len(documents)
    assert abs(right - (1 - 0.4) ** toy.LENGTH) < 0.04


def is_right(document):
    instruction = document.split('"""')[1]
    program = tuple((verb, int(k)) for verb, k in (step.split() for step in instruction.split(", then ")))
    return document.endswith(toy.body_of(program))


def test_recorded_answers_are_what_the_smoke_run_asks_for():
    """data/smoke/teacher.jsonl is made by `python -m jobs.toy`; it must fit the params it is replayed with."""
    from pathlib import Path

    from jobs.files import read_jsonl
    from jobs.params import check, merged, read_yaml

    root = Path(__file__).parents[2]
    params = check(merged(read_yaml(root / "params.yaml"), read_yaml(root / "data/smoke/params.yaml")), "params")
    assert list(toy.recorded(params)) == read_jsonl(root / "data/smoke/teacher.jsonl")


def test_a_random_program_has_the_full_length():
    rng = random.Random(0)
    assert {len(toy.draw_program(rng)) for _ in range(50)} == {toy.LENGTH}
