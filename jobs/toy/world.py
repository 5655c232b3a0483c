"""The toy world: small integer functions, their instructions, tests and a corpus, all from one seeded generator.

A program takes a number without its sign through three steps; each step is a phrase of the instruction, a line of the
reasoning and a line of the code. The tasks look like HumanEval's (a header and a docstring to be continued), the corpus
is what a small model is pre-trained on. Programs are drawn without replacement, so no task of one split, and no document
of the corpus, is a task of another.

Two things can be wrong. A line can have another digit, which any test finds. And the sign can be left as it is, which
only a test with a number below zero finds: the tasks that the teacher is asked have no such test, as MBPP's lack what
MBPP+'s have. What a teacher gets wrong there is kept, and learned, and it takes reinforcement on better tests to undo.

A phrase, a line of the reasoning and a line of the code have the same number of tokens, for every verb and digit. So
what a line must look up lies at one distance before it, the same for all three lines, and a model of two layers learns
one look-up. Were the lengths different, it would learn one for each line, one after the other, each at a moment that
hangs on rounding.

The world has a twin whose answers are whole programs (`tasks.toy_stdin`): the same steps, asked for in other words, and one
line more that reads a number from standard input and prints what the function makes of it. The first corpus has no such
line; the twin's base is trained on a corpus of whole programs after it.
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
UNSIGNED, SIGNED = (
    "x = abs(x)",
    "x = int(x)",
)  # the first line of the code: the right one, and the one that forgets the sign
DIGITS = range(2, 10)
LENGTH = 3
ENTRY_POINT = "solve"
MAIN = f"print({ENTRY_POINT}(int(input())))"  # what makes a whole program of the function
TESTS = 6
BELOW_ZERO = 2  # tests with a number below zero, in every split but the teacher's
PROBES = (0, 1, 2, 5, 7, 12, 23, 34, 58, 91, 100, 3)

Step = tuple[str, int]  # a verb and its digit
Program = tuple[Step, ...]


def draw_step(rng: random.Random) -> Step:
    return rng.choice(tuple(VERBS)), rng.choice(DIGITS)


def draw_program(rng: random.Random) -> Program:
    return tuple(draw_step(rng) for _ in range(LENGTH))


def instruction_of(program: Program) -> str:
    return "Take x without its sign" + "".join(f", and then {verb} {k}" for verb, k in program)


def prompt_of(program: Program, *, whole: bool = False) -> str:
    """whole: of the twin, where the words say that x is read and the result printed."""
    words = f"Read x and print the result. {instruction_of(program)}" if whole else instruction_of(program)
    return f'def {ENTRY_POINT}(x):\n    """{words}"""\n'


def lines_of(program: Program) -> list[str]:
    return [f"x {VERBS[verb]}= {k}" for verb, k in program]


def body_of(program: Program, first: str = UNSIGNED) -> str:
    return "".join(f"    {line}\n" for line in [first, *lines_of(program), "return x"])


def code_of(program: Program, first: str = UNSIGNED, *, whole: bool = False) -> str:
    """The function without its docstring, or the whole program."""
    return f"def {ENTRY_POINT}(x):\n{body_of(program, first)}" + (f"{MAIN}\n" if whole else "")


def reasoning_of(program: Program) -> str:
    return "\n".join(f"{verb} means {VERBS[verb]}= {k}" for verb, k in program)


def answer_of(program: Program, first: str = UNSIGNED, *, whole: bool = False) -> str:
    return answer_format.render(reasoning_of(program), code_of(program, first, whole=whole))


def outcome(program: Program, x: int) -> int:
    """What the program's steps make of `x`."""
    for verb, k in program:
        x = OPERATIONS[VERBS[verb]](x, k)
    return x


def cases_of(program: Program, rng: random.Random, below_zero: int) -> list[tuple[int, int]]:
    """Distinct inputs and their results, which tell the program from itself without any step.

    Zero is among them, and `below_zero` numbers by which a forgotten sign shows.
    """
    shown = [x for x in range(-50, 0) if forgetting_shows(program, x)]
    while True:
        inputs = [0, *rng.sample(shown, below_zero), *rng.sample(range(1, 200), TESTS - 1 - below_zero)]
        results = [outcome(program, abs(x)) for x in inputs]
        if all([outcome(other, abs(x)) for x in inputs] != results for other in shortened(program)):
            return list(zip(inputs, results, strict=True))


def shortened(program: Program) -> list[Program]:
    return [program[:i] + program[i + 1 :] for i in range(LENGTH)]


def forgetting_shows(program: Program, x: int) -> bool:
    return outcome(program, x) != outcome(program, abs(x))


def task_of(program: Program, task_id: str, rng: random.Random, below_zero: int) -> "Task":
    prompt = prompt_of(program)
    return {
        "task_id": task_id,
        "prompt": prompt,
        "entry_point": ENTRY_POINT,
        "setup": "",
        "tests": [f"assert {ENTRY_POINT}({x}) == {y}" for x, y in cases_of(program, rng, below_zero)],
        "reference": prompt + body_of(program),
        "source": "toy",
        "license": "MIT",
    }


def whole_task_of(program: Program, task_id: str, rng: random.Random, below_zero: int) -> "Task":
    """The same task of the twin: the same inputs, one a run."""
    return {
        "task_id": task_id,
        "prompt": prompt_of(program, whole=True),
        "entry_point": "",
        "setup": "",
        "tests": [],
        "stdin_tests": [{"input": f"{x}\n", "output": f"{y}\n"} for x, y in cases_of(program, rng, below_zero)],
        "reference": code_of(program, whole=True),
        "source": "toy-stdin",
        "license": "MIT",
    }


def telling(program: Program) -> bool:
    """Whether tests can tell the program: its results differ, leaving any step out changes most, and a sign shows."""
    results = [outcome(program, x) for x in PROBES]
    shorter = [[outcome(other, x) for x in PROBES] for other in shortened(program)]
    return (
        len(set(results)) > LENGTH
        and all(sum(a != b for a, b in zip(results, other, strict=True)) > len(PROBES) // 2 for other in shorter)
        and sum(forgetting_shows(program, -x) for x in PROBES) > len(PROBES) // 2
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


def tasks(seed: int, counts: Mapping[str, int], *, whole: bool = False) -> "dict[str, list[Task]]":
    """Tasks by split.

    counts: how many tasks each split gets, such as {"distill": 130, "train": 200, "heldout": 100}. whole: of the twin.
    """
    rng = random.Random(f"toy tests {seed}")
    make, name = (whole_task_of, "ToyStdin") if whole else (task_of, "Toy")
    return {
        split: [
            make(program, f"{name}/{split}/{i}", rng, 0 if split == "distill" else BELOW_ZERO)
            for i, program in enumerate(drawn)
        ]
        for split, drawn in splits(seed, counts).items()
    }


def corpus(
    seed: int,
    steps: int,
    batch_size: int,
    clean: float,
    wrong: float,
    signed: float,
    reserved: set[Program],
    *,
    whole: bool = False,
) -> Iterator[list[str]]:
    """The documents to pre-train on, one batch a step: answers in the tag format and plain functions by turns.

    batch_size: answers in a batch; of plain functions, which are a third as long, there are twice as many.
    clean: the share of the steps, the first ones, where all is right. There the model learns what a line looks up.
    wrong: the share of the code's lines of every batch after them that have another digit; the reasoning stays right. It
        is exact in each batch, so that what the model takes for likely does not hang on what was drawn last.
    signed: the share of the documents of every batch after them that forget the sign, exact as well.
    reserved: programs that must not appear, as instruction or as code: those of every split.
    whole: of the twin, where every document is an answer in the tag format.
    """
    rng = random.Random(f"toy corpus {seed}")
    for step in range(steps):
        tagged = whole or step % 2 == 1
        documents = batch_size if tagged else 2 * batch_size
        noisy = step >= clean * steps
        spoiled = marks(documents * LENGTH, wrong if noisy else 0, rng)
        firsts = [SIGNED if bad else UNSIGNED for bad in marks(documents, signed if noisy else 0, rng)]
        write = whole_document if whole else tagged_document if tagged else plain_document
        yield [
            write(*instance(spoiled[i * LENGTH : (i + 1) * LENGTH], reserved, rng), first)
            for i, first in enumerate(firsts)
        ]


def marks(count: int, share: float, rng: random.Random) -> list[bool]:
    """`count` marks in random order, of which `share` are set, to the next whole number."""
    amount = round(share * count)
    drawn = [True] * amount + [False] * (count - amount)
    rng.shuffle(drawn)
    return drawn


def instance(spoiled: list[bool], reserved: set[Program], rng: random.Random) -> tuple[Program, Program]:
    """A program and what is written for it: another digit in the steps that `spoiled` marks. Neither is reserved."""
    while True:
        program = draw_program(rng)
        written = tuple(
            (verb, other_digit(k, rng) if bad else k) for (verb, k), bad in zip(program, spoiled, strict=True)
        )
        if program not in reserved and written not in reserved:
            return program, written


def tagged_document(program: Program, written: Program, first: str = UNSIGNED) -> str:
    """Right reasoning, and code as it is written."""
    answer = answer_format.render(reasoning_of(program), code_of(written, first))
    return answer_format.chat_prompt(prompt_of(program)) + answer


def whole_document(program: Program, written: Program, first: str = UNSIGNED) -> str:
    answer = answer_format.render(reasoning_of(program), code_of(written, first, whole=True))
    return answer_format.chat_prompt(prompt_of(program, whole=True)) + answer


def plain_document(program: Program, written: Program, first: str = UNSIGNED) -> str:
    return prompt_of(program) + body_of(written, first)


def other_digit(k: int, rng: random.Random) -> int:
    return rng.choice([digit for digit in DIGITS if digit != k])


def expected_pass(wrong: float, signed: float, temperature: float, top_p: float) -> float:
    """The chance that a sampled program is right, of a model that has learned its corpus exactly.

    A line's digit is right with probability 1 - `wrong` and each other digit equally likely; the sign is forgotten with
    probability `signed`. Temperature and top_p then reshape both. A program needs `LENGTH` right digits and the sign.
    """
    others = len(DIGITS) - 1
    digit = reshaped([1 - wrong] + [wrong / others] * others, temperature, top_p)
    return digit**LENGTH * reshaped([1 - signed, signed], temperature, top_p)


def reshaped(probabilities: list[float], temperature: float, top_p: float) -> float:
    """The first one of them, which fall, when they are sampled at a temperature from the nucleus of `top_p`."""
    weights = [p ** (1 / temperature) for p in probabilities]
    kept: list[float] = []
    while sum(kept) < top_p * sum(weights):
        kept.append(weights[len(kept)])
    return weights[0] / sum(kept)
