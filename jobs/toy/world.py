"""The toy world: small integer functions, their instructions, tests and a corpus, all from one seeded generator.

A program is three steps; each step is a phrase of the instruction, a line of the reasoning and a line of the code. The
tasks look like HumanEval's (a header and a docstring to be continued), the corpus is what a small model is pre-trained
on. Programs are drawn without replacement, so no task of one split, and no document of the corpus, is a task of another.

A phrase, a line of the reasoning and a line of the code have the same number of tokens, for every verb and digit. So
what a line must look up lies at one distance before it, the same for all three lines, and a model of two layers learns
one look-up. Were the lengths different, it would learn one for each line, one after the other, each at a moment that
hangs on rounding.
"""

import operator
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jobs.common import answer_format

if TYPE_CHECKING:
    from jobs.common.task import Task

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
    instruction = "Take x" + "".join(f", and then {verb} {k}" for verb, k in program)
    return f'def {ENTRY_POINT}(x):\n    """{instruction}"""\n'


def lines_of(program: Program) -> list[str]:
    return [f"x {VERBS[verb]}= {k}" for verb, k in program]


def body_of(program: Program) -> str:
    return "".join(f"    {line}\n" for line in lines_of(program)) + "    return x\n"


def code_of(program: Program) -> str:
    """The whole function, without its docstring."""
    return f"def {ENTRY_POINT}(x):\n{body_of(program)}"


def reasoning_of(program: Program) -> str:
    return "\n".join(f"{verb} means {VERBS[verb]}= {k}" for verb, k in program)


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


def task_of(program: Program, task_id: str, rng: random.Random) -> "Task":
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


def tasks(seed: int, counts: Mapping[str, int]) -> "dict[str, list[Task]]":
    """Tasks by split.

    counts: how many tasks each split gets, such as {"distill": 130, "train": 200, "heldout": 100}.
    """
    rng = random.Random(f"toy tests {seed}")
    return {
        split: [task_of(program, f"Toy/{split}/{i}", rng) for i, program in enumerate(drawn)]
        for split, drawn in splits(seed, counts).items()
    }


def corpus(
    seed: int, steps: int, batch_size: int, clean: float, wrong: float, reserved: set[Program]
) -> Iterator[list[str]]:
    """The documents to pre-train on, one batch a step: answers in the tag format and plain functions by turns.

    batch_size: answers in a batch; of plain functions, which are a third as long, there are twice as many.
    clean: the share of the steps, the first ones, whose lines are all right. There the model learns what a line looks up.
    wrong: the share of the lines of every batch after them that have another digit, in the reasoning and in the code
        alike. It is exact in each batch, so that what the model takes for likely does not hang on what was drawn last.
    reserved: programs that must not appear, as instruction or as code: those of every split.
    """
    rng = random.Random(f"toy corpus {seed}")
    for step in range(steps):
        tagged = step % 2 == 1
        lines = (batch_size if tagged else 2 * batch_size) * LENGTH
        amount = 0 if step < clean * steps else round(wrong * lines)
        spoiled = [True] * amount + [False] * (lines - amount)
        rng.shuffle(spoiled)
        write = tagged_document if tagged else plain_document
        yield [write(*instance(spoiled[i : i + LENGTH], reserved, rng)) for i in range(0, lines, LENGTH)]


def instance(spoiled: list[bool], reserved: set[Program], rng: random.Random) -> tuple[Program, Program]:
    """A program and what is written for it: another digit in the steps that `spoiled` marks. Neither is reserved."""
    while True:
        program = draw_program(rng)
        written = tuple(
            (verb, other_digit(k, rng) if bad else k) for (verb, k), bad in zip(program, spoiled, strict=True)
        )
        if program not in reserved and written not in reserved:
            return program, written


def tagged_document(program: Program, written: Program) -> str:
    return answer_format.chat_prompt(prompt_of(program)) + answer_of(written)


def plain_document(program: Program, written: Program) -> str:
    return prompt_of(program) + body_of(written)


def other_digit(k: int, rng: random.Random) -> int:
    return rng.choice([digit for digit in DIGITS if digit != k])


def expected_pass(wrong: float, temperature: float, top_p: float) -> float:
    """The chance that a sampled program is right, of a model that has learned the corpus exactly.

    A line's digit is right with probability 1 - `wrong` and each other digit equally likely; temperature and top_p then
    reshape that, and a program needs `LENGTH` right digits.
    """
    others = len(DIGITS) - 1
    weights = [(1 - wrong) ** (1 / temperature)] + [(wrong / others) ** (1 / temperature)] * others
    kept: list[float] = []
    while sum(kept) < top_p * sum(weights):
        kept.append(weights[len(kept)])
    return (weights[0] / sum(kept)) ** LENGTH
