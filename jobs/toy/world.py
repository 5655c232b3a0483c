"""The toy world: small integer functions, their instructions, tests and a corpus, all from one seeded generator.

A program is three steps; each step is a phrase of the instruction and a line of the code. The tasks look like HumanEval's
(a header and a docstring to be continued), the corpus is what a small model is pre-trained on. Programs are drawn without
replacement, so no task of one split, and no document of the corpus, is a task of another split.

All phrases have the same number of tokens, and so have all lines: what a line must look up is then at a fixed distance,
which a model of two layers learns in hundreds of steps. With phrases of any length it takes thousands.

    python -m jobs.toy.world data/smoke/teacher.jsonl      # writes anew the recorded teacher answers of the smoke run
"""

import operator
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.errors import UsageError

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

VERBS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "//", "reduce": "%", "flip": "^"}
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "^": operator.xor,
}
DIGITS = range(2, 10)
LENGTH = 3
ENTRY_POINT = "solve"
TESTS = 6
PROBES = (0, 1, 2, 5, 7, 12, 23, 34, 58, 91, 100, -3)

Step = tuple[str, int]  # a verb and its digit
Program = tuple[Step, ...]


def draw_step(rng: random.Random) -> Step:
    return rng.choice(tuple(VERBS)), rng.choice(DIGITS)


def draw_program(rng: random.Random) -> Program:
    return tuple(draw_step(rng) for _ in range(LENGTH))


def prompt_of(program: Program) -> str:
    instruction = ", then ".join(f"{verb} {k}" for verb, k in program)
    return f'def {ENTRY_POINT}(x):\n    """{instruction}"""\n'


def lines_of(program: Program) -> list[str]:
    return [f"x = x {VERBS[verb]} {k}" for verb, k in program]


def body_of(program: Program) -> str:
    return "".join(f"    {line}\n" for line in lines_of(program)) + "    return x\n"


def code_of(program: Program) -> str:
    """The whole function, without its docstring."""
    return f"def {ENTRY_POINT}(x):\n{body_of(program)}"


def reasoning_of(program: Program) -> str:
    steps = zip(program, lines_of(program), strict=True)
    return "\n".join(f"{verb} {k}: {line}" for (verb, k), line in steps)


def answer_of(program: Program) -> str:
    return answer_format.render(reasoning_of(program), code_of(program))


def outcome(program: Program, x: int) -> int:
    """What the program returns for `x`."""
    for verb, k in program:
        x = OPERATIONS[VERBS[verb]](x, k)
    return x


def tests_of(program: Program, rng: random.Random) -> list[str]:
    """Assertions on distinct inputs, zero and a negative one among them."""
    inputs = [0, -rng.randint(1, 50), *rng.sample(range(1, 200), TESTS - 2)]
    return [f"assert {ENTRY_POINT}({x}) == {outcome(program, x)}" for x in inputs]


def task_of(program: Program, task_id: str, rng: random.Random) -> dict:
    """The task's record, in the format that all tasks have."""
    prompt = prompt_of(program)
    return {
        "task_id": task_id,
        "prompt": prompt,
        "entry_point": ENTRY_POINT,
        "setup": "",
        "tests": tests_of(program, rng),
        "reference": prompt + body_of(program),
        "source": "toy",
        "license": "MIT",
    }


def telling(program: Program) -> bool:
    """Whether tests can tell the program: its results differ, and leaving any step out changes most of them."""
    results = [outcome(program, x) for x in PROBES]
    shorter = [[outcome(program[:i] + program[i + 1 :], x) for x in PROBES] for i in range(LENGTH)]
    return len(set(results)) > LENGTH and all(
        sum(a != b for a, b in zip(results, other, strict=True)) > len(PROBES) // 2 for other in shorter
    )


def programs(seed: int) -> Iterator[Program]:
    """An endless stream of telling programs, none twice."""
    rng, seen = random.Random(f"toy programs {seed}"), set()
    while True:
        program = draw_program(rng)
        if program not in seen and telling(program):
            seen.add(program)
            yield program


def splits(seed: int, counts: Mapping[str, int]) -> dict[str, list[Program]]:
    """The programs of each split, in the order of `counts`; disjoint, and independent of the splits that follow."""
    stream = programs(seed)
    return {split: [next(stream) for _ in range(count)] for split, count in counts.items()}


def tasks(seed: int, counts: Mapping[str, int]) -> dict[str, list[dict]]:
    """Task records by split.

    counts: how many tasks each split gets, such as {"distill": 130, "train": 200, "heldout": 100}.
    """
    rng = random.Random(f"toy tests {seed}")
    return {
        split: [task_of(program, f"Toy/{split}/{i}", rng) for i, program in enumerate(drawn)]
        for split, drawn in splits(seed, counts).items()
    }


def corpus(seed: int, documents: int, wrong: float, reserved: set[Program]) -> Iterator[str]:
    """Documents to pre-train on: plain functions and tagged answers by turns, a share `wrong` of their lines off by one.

    reserved: programs that must not appear, as instruction or as code: those of every split. What is off is the digit, in
    the reasoning and in the code alike, so the model that learns from it knows the task and is mediocre when sampled.
    """
    rng = random.Random(f"toy corpus {seed}")
    made = 0
    while made < documents:
        program = draw_program(rng)
        written = tuple((verb, off_by_one(k, rng) if rng.random() < wrong else k) for verb, k in program)
        if program in reserved or written in reserved:
            continue
        if made % 2:
            yield answer_format.chat_prompt(prompt_of(program)) + answer_of(written)
        else:
            yield prompt_of(program) + body_of(written)
        made += 1


def off_by_one(k: int, rng: random.Random) -> int:
    return rng.choice([near for near in (k - 1, k + 1) if near in DIGITS])


def recorded(params: "Params") -> Iterator[dict]:
    """Teacher answers to the distillation tasks, one in five spoiled, as records of jobs/distill/cache.py's cache.

    A spoiled first answer is followed by a right second one.
    """
    from jobs.distill import cache

    if params.tasks.toy is None:
        raise UsageError("tasks.toy: recorded answers are made of toy tasks")
    rng = random.Random(f"toy teacher {params.tasks.seed}")
    for program in splits(params.tasks.seed, params.tasks.toy.model_dump())["distill"]:
        right = answer_of(program)
        spoilings = (
            right.replace("</SOLUTION>", ""),
            f"Sure! Here is the answer.\n{right}",
            right.replace("</END_WORKING_OUT>", "</START_WORKING_OUT>"),
            answer_format.render(reasoning_of(program), code_of(program).replace("return", "retrun")),
            answer_format.render(reasoning_of(program), code_of(program).replace(ENTRY_POINT, "solution")),
            answer_format.render(reasoning_of(program), code_of(program).replace("return ", "return x or ")),
        )
        answers = [rng.choice(spoilings), right] if rng.random() < 0.2 else [right]
        for attempt, answer in enumerate(answers):
            asked = cache.request(params.distill, prompt_of(program), attempt)
            yield cache.record(asked, cache.response(asked, answer))


def main() -> None:
    """Writes the smoke run's recorded teacher answers to the file named on the command line."""
    import sys
    from pathlib import Path

    from jobs.common.files import write_jsonl
    from jobs.plumbing.params import check, merged, read_yaml

    params = check(merged(read_yaml(Path("params.yaml")), read_yaml(Path("data/smoke/params.yaml"))), "params")
    write_jsonl(Path(sys.argv[1]), recorded(params))


if __name__ == "__main__":
    main()
