import ast
import random
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.common import answer_format
from jobs.common.files import read_jsonl
from jobs.common.task import fault
from jobs.extraction import source
from jobs.plumbing.params import merged, read_yaml, validate
from jobs.toy import record as recorder
from jobs.toy import world

ROOT = Path(__file__).parents[2]
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
    bodies = {"".join(f"    {line}\n" for line in world.lines_of(p)) for p in reserved}
    documents = [document for batch in world.corpus(7, 100, 20, 0.3, 0.5, 0.5, reserved) for document in batch]
    assert len(documents) == 50 * 20 + 50 * 40
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
        assert source.binds(ast.parse(answer.code), world.ENTRY_POINT)


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert world.tasks(5, COUNTS) == world.tasks(5, COUNTS)
    assert world.tasks(5, COUNTS) != world.tasks(6, COUNTS)
    assert list(world.corpus(5, 4, 5, 0.5, 0.4, 0.2, set())) == list(world.corpus(5, 4, 5, 0.5, 0.4, 0.2, set()))
    assert list(world.corpus(5, 4, 5, 0.5, 0.4, 0.2, set())) != list(world.corpus(6, 4, 5, 0.5, 0.4, 0.2, set()))


def test_as_many_lines_are_wrong_in_every_batch_as_asked_and_none_before():
    for step, batch in enumerate(world.corpus(5, 40, 10, 0.25, 0.4, 0.3, set())):
        wrong = [line for document in batch for line in wrong_lines(document)]
        assert len(wrong) == (0 if step < 10 else 12 if step % 2 else 24), step
        forgetful = sum(f"    {world.SIGNED}\n" in document for document in batch)
        assert forgetful == (0 if step < 10 else 3 if step % 2 else 6), step
        assert forgetful + sum(f"    {world.UNSIGNED}\n" in document for document in batch) == len(batch)


def wrong_lines(document):
    """The lines of the code that differ from the instruction; those of the reasoning must not."""
    instruction = document.split('"""')[1]
    program = [step.split() for step in instruction.split(", and then ")[1:]]
    right = [f"x {world.VERBS[verb]}= {k}" for verb, k in program]
    lines = [line.strip() for line in document.splitlines() if line.startswith("    x ")][1:]
    if "<START_WORKING_OUT>\n" in document.partition('"""')[2]:
        assert [f"x {line.partition(' means ')[2]}" for line in document.splitlines() if " means " in line] == right
    assert len(lines) == len(right) == world.LENGTH
    assert [line[:-1] for line in lines] == [line[:-1] for line in right], "only digits are wrong"
    return [line for line, wanted in zip(lines, right, strict=True) if line != wanted]


def test_a_forgotten_sign_passes_the_teachers_tests_and_no_others():
    records = world.tasks(11, COUNTS)
    for split, programs in world.splits(11, COUNTS).items():
        for record, program in zip(records[split], programs, strict=True):
            namespace: dict = {}
            exec(world.code_of(program, world.SIGNED), namespace)
            missed = [test for test in record["tests"] if not passes(test, namespace)]
            assert len(missed) == (0 if split == "distill" else world.BELOW_ZERO), (split, program)
            assert all("solve(-" in test for test in missed)


def test_what_a_model_that_learned_the_corpus_would_pass():
    assert world.expected_pass(0.0, 0.0, 0.8, 0.95) == 1
    assert abs(world.expected_pass(0.4, 0.25, 1.0, 1.0) - 0.6**3 * 0.75) < 1e-9
    sharper = [world.expected_pass(0.4, 0.25, *sampling) for sampling in ((1.0, 1.0), (0.8, 1.0), (0.8, 0.95))]
    assert sharper == sorted(set(sharper))
    assert world.expected_pass(0.4, 0.25, 0.8, 0.01) == 1  # the likeliest line alone is the right one
    assert abs(world.expected_pass(0.0, 0.25, 1.0, 1.0) - 0.75) < 1e-9


def test_phrases_and_lines_have_one_number_of_tokens():
    """What the world's look-ups rest on, with the tokenizer that its own corpus makes."""
    from jobs.toy.pretrain import train_tokenizer

    batches = list(world.corpus(5, 100, 10, 0.5, 0.4, 0.3, set()))
    tokenizer = train_tokenizer([document for batch in batches for document in batch], 512)
    program = (("add", 5), ("divide", 3), ("subtract", 9))
    for text in (
        ", and then add 5",
        ", and then divide 3",
        *(f"{line}\n" for line in world.reasoning_of(program).splitlines()),
        *(f"    {line}\n" for line in world.lines_of(program)),
    ):
        assert len(tokenizer(text).input_ids) == 6, text
    for kind in (0, 1):
        assert len({len(tokenizer(document).input_ids) for batch in batches[kind::2] for document in batch}) == 1


@pytest.mark.parametrize("layers", [1, 2])
def test_recorded_answers_are_what_the_smoke_run_asks_for(layers):
    """The files are made by `python -m jobs.toy.record`; they must fit the params that they are replayed with."""
    values = read_yaml(ROOT / "params.yaml")
    for overlay in recorder.OVERLAYS[:layers]:
        values = merged(values, read_yaml(ROOT / overlay))
    params = validate(values, "params")
    recorded = list(recorder.recorded(params))
    assert recorded == read_jsonl(ROOT / params.distill.recorded)
    last = {row["request"]["body"]["messages"][1]["content"]: row["response"]["choices"] for row in recorded}
    forgets = [world.SIGNED in choices[0]["message"]["content"] for choices in last.values()]
    for start in range(0, len(forgets) - recorder.FORGETS, recorder.FORGETS):
        assert sum(forgets[start : start + recorder.FORGETS]) == 1


def ran(program, text):
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, text=True)
    return done.stdout


def test_the_twin_asks_for_the_same_programs_whole():
    counts = {"distill": 3, "train": 3, "heldout": 2}
    functions, programs = world.tasks(5, counts), world.tasks(5, counts, whole=True)
    for split in counts:
        for function, whole in zip(functions[split], programs[split], strict=True):
            assert not fault(whole) and whole["source"] == "toy-stdin"
            calls = [f"assert solve({t['input'].strip()}) == {t['output'].strip()}" for t in whole["stdin_tests"]]
            assert calls == function["tests"]
            for test in whole["stdin_tests"]:
                assert ran(whole["reference"], test["input"]) == test["output"]
            assert whole["prompt"].endswith(function["prompt"].partition('"""')[2])
    prompts = {task["prompt"] for split in functions.values() for task in split}
    assert not prompts & {task["prompt"] for split in programs.values() for task in split}


def test_the_twins_corpus_is_whole_programs_alone_and_holds_no_task():
    reserved = {p for split in world.splits(5, COUNTS).values() for p in split}
    instructions = {world.instruction_of(p) for p in reserved}
    for batch in world.corpus(5, 6, 9, 0.0, 0.0, 1 / 3, reserved, whole=True):
        assert len(batch) == 9
        assert all(f"{world.MAIN}\n</SOLUTION>" in document for document in batch)
        assert sum(world.SIGNED in document for document in batch) == 3
        assert not any(f'{instruction}"""' in document for document in batch for instruction in instructions)
        assert not any(wrong_lines(document) for document in batch)


def test_a_forgotten_sign_fails_the_twins_tests_as_well():
    [program] = world.splits(5, {"train": 1})["train"]
    [task] = world.tasks(5, {"train": 1}, whole=True)["train"]
    forgetful = world.code_of(program, world.SIGNED, whole=True)
    wrong = [test for test in task["stdin_tests"] if ran(forgetful, test["input"]) != test["output"]]
    assert len(wrong) == world.BELOW_ZERO and all(test["input"].startswith("-") for test in wrong)


def test_a_random_program_has_the_full_length():
    rng = random.Random(0)
    assert {len(world.draw_program(rng)) for _ in range(50)} == {world.LENGTH}
