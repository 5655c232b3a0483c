"""The toy world: small list-processing functions, their instructions, tests and a corpus, all from one seeded generator.

A program is two or three steps; each step is a phrase of the instruction and a line of the code. The tasks look like
HumanEval's (a header and a docstring to be continued), the corpus is what a small model is pre-trained on. Programs are
drawn without replacement, so no task of one split, and no document of the corpus, is a task of another split.

    python -m jobs.toy data/smoke/teacher.jsonl      # writes anew the recorded teacher answers of the smoke run
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from jobs import schema
from jobs.errors import UsageError

if TYPE_CHECKING:
    from jobs.params import Params

# phrase, code; {k} is a digit, {v} the list that the step before made. Every step maps integers to integers.
STEPS = (
    ("add {k} to each number", "[x + {k} for x in {v}]"),
    ("subtract {k} from each number", "[x - {k} for x in {v}]"),
    ("multiply each number by {k}", "[x * {k} for x in {v}]"),
    ("keep the numbers above {k}", "[x for x in {v} if x > {k}]"),
    ("keep the numbers below {k}", "[x for x in {v} if x < {k}]"),
    ("keep the first {k} numbers", "{v}[:{k}]"),
    ("drop the first {k} numbers", "{v}[{k}:]"),
    ("append {k}", "{v} + [{k}]"),
    ("keep the even numbers", "[x for x in {v} if x % 2 == 0]"),
    ("keep the odd numbers", "[x for x in {v} if x % 2 == 1]"),
    ("square each number", "[x * x for x in {v}]"),
    ("negate each number", "[-x for x in {v}]"),
    ("reverse the list", "{v}[::-1]"),
    ("sort the list", "sorted({v})"),
)
DIGITS = range(2, 6)
ORDER = ("first", "second", "third")
ENTRY_POINT = "solve"
TESTS = 6
PROBES = [random.Random(i).choices(range(-9, 16), k=8) for i in range(8)]

Step = tuple[str, str]
Program = tuple[Step, ...]


def draw_step(rng: random.Random) -> Step:
    phrase, code = rng.choice(STEPS)
    k = str(rng.choice(DIGITS))
    return phrase.replace("{k}", k), code.replace("{k}", k)


def draw_program(rng: random.Random, lengths: Sequence[int] = (2, 3)) -> Program:
    """As many steps as one of `lengths` says, no two of them the same."""
    wanted, steps = rng.choice(lengths), []
    while len(steps) < wanted:
        step = draw_step(rng)
        if step not in steps:
            steps.append(step)
    return tuple(steps)


def prompt_of(program: Program) -> str:
    """A header and a docstring with a step a line, each begun by a word of its own: a small model finds its place by it."""
    steps = "".join(f"    {word} {phrase}\n" for word, (phrase, _) in zip(ORDER, program))
    return f'def {ENTRY_POINT}(xs):\n    """\n{steps}    """\n'


def lines_of(program: Program) -> list[str]:
    """One assignment a step, each to a new name, from the name before it."""
    return [f"{name} = {code.replace('{v}', before)}" for (_, code), name, before in zip(program, "abc", ("xs", *"ab"))]


def body_of(program: Program) -> str:
    return "".join(f"    {line}\n" for line in lines_of(program)) + f"    return {'abc'[len(program) - 1]}\n"


def code_of(program: Program) -> str:
    """The whole function, without its docstring."""
    return f"def {ENTRY_POINT}(xs):\n{body_of(program)}"


def reasoning_of(program: Program) -> str:
    steps = zip(ORDER, program, lines_of(program))
    return "\n".join(f"{word} {phrase}: {line}" for word, (phrase, _), line in steps)


def answer_of(program: Program) -> str:
    return schema.render(reasoning_of(program), code_of(program))


def outcome(program: Program, xs: list[int]) -> list[int]:
    """What the program returns for `xs`; the lines are our own, so they are simply evaluated."""
    for _, code in program:
        xs = eval(code.replace("{v}", "xs"), {"__builtins__": {"sorted": sorted}}, {"xs": xs})
    return xs


def tests_of(program: Program, rng: random.Random) -> list[str]:
    """Assertions on distinct inputs, the empty list among them; the other results are not empty."""
    tests = [f"assert {ENTRY_POINT}([]) == {outcome(program, [])}"]
    while len(tests) < TESTS:
        xs = rng.choices(range(-9, 16), k=rng.randint(6, 9))
        result = outcome(program, xs)
        if result:
            tests.append(f"assert {ENTRY_POINT}({xs}) == {result}")
    return tests


def task_of(program: Program, task_id: str, rng: random.Random) -> dict:
    """The task's record, in the format that all tasks have."""
    prompt = prompt_of(program)
    return {"task_id": task_id, "prompt": prompt, "entry_point": ENTRY_POINT, "setup": "",
            "tests": tests_of(program, rng), "reference": prompt + body_of(program),
            "source": "toy", "license": "MIT"}


def telling(program: Program) -> bool:
    """Whether tests can tell the program: most results are not empty, and leaving any step out changes one."""
    results = [outcome(program, xs) for xs in PROBES]
    return sum(map(bool, results)) > len(PROBES) // 2 and all(
        [outcome(program[:i] + program[i + 1:], xs) for xs in PROBES] != results for i in range(len(program)))


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
    return {split: [task_of(program, f"Toy/{split}/{i}", rng) for i, program in enumerate(drawn)]
            for split, drawn in splits(seed, counts).items()}


def corpus(seed: int, documents: int, wrong: float, reserved: set[Program]) -> Iterator[str]:
    """Documents to pre-train on: plain functions and tagged answers by turns, `wrong` of them with a wrong line of code.

    reserved: programs that must not appear, right or wrong: those of every split. A wrong document is one whose
    code differs from its instruction, so the model that learns from them is mediocre when sampled, as the web makes it.
    """
    rng = random.Random(f"toy corpus {seed}")
    kept_out = {code_of(program) for program in reserved}
    made = 0
    while made < documents:
        program = written = draw_program(rng, (1, 2, 2, 3, 3))
        if rng.random() < wrong:
            line = rng.randrange(len(program))
            written = (*program[:line], (program[line][0], draw_step(rng)[1]), *program[line + 1:])
        if code_of(program) in kept_out or code_of(written) in kept_out:
            continue
        if made % 2:
            yield schema.chat_prompt(prompt_of(program)) + answer_of(written)
        else:
            yield prompt_of(program) + body_of(written)
        made += 1


def recorded(params: "Params") -> Iterator[dict]:
    """Teacher answers to the distillation tasks, one in five spoiled, as records of jobs/teacher.py's cache.

    A spoiled first answer is followed by a right second one.
    """
    from jobs import teacher

    if params.tasks.toy is None:
        raise UsageError("tasks.toy: recorded answers are made of toy tasks")
    rng = random.Random(f"toy teacher {params.seed}")
    for program in splits(params.seed, params.tasks.toy.model_dump())["distill"]:
        right = answer_of(program)
        spoilings = (
            right.replace("</SOLUTION>", ""),
            f"Sure! Here is the answer.\n{right}",
            right.replace("</END_WORKING_OUT>", "</START_WORKING_OUT>"),
            schema.render(reasoning_of(program), code_of(program).replace("return", "retrun")),
            schema.render(reasoning_of(program), code_of(program).replace(ENTRY_POINT, "solution")),
            schema.render(reasoning_of(program), code_of(program).replace("return ", "return xs or ")),
        )
        answers = [rng.choice(spoilings), right] if rng.random() < 0.2 else [right]
        for attempt, answer in enumerate(answers):
            asked = teacher.request(params.distill, prompt_of(program), attempt)
            yield teacher.record(asked, teacher.response(asked, answer))


def main() -> None:
    """Writes the smoke run's recorded teacher answers to the file named on the command line."""
    import sys
    from pathlib import Path

    from jobs.files import write_jsonl
    from jobs.params import check, merged, read_yaml

    params = check(merged(read_yaml(Path("params.yaml")), read_yaml(Path("data/smoke/params.yaml"))), "params")
    write_jsonl(Path(sys.argv[1]), recorded(params))


if __name__ == "__main__":
    main()
