"""The recorder of the smoke run's fixtures: what a teacher might answer to the toy's distillation tasks, and its twin's.

python -m jobs.toy.record      # to be run again whenever the toy's tasks change: writes the files that the params name
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.errors import UsageError
from jobs.common.files import write_jsonl
from jobs.distill import cache
from jobs.toy.world import ENTRY_POINT, SIGNED, UNSIGNED, answer_of, code_of, marks, prompt_of, reasoning_of, splits

if TYPE_CHECKING:
    from jobs.plumbing.params import Params

FORGETS = 3
OVERLAYS = Path("data/smoke/params.yaml"), Path("data/smoke/stdin.yaml")  # each laid over those before it


def recorded(params: "Params") -> Iterator[dict]:
    """Teacher answers to the distillation tasks, one in five spoiled, as records of jobs/distill/cache.py's cache.

    A spoiled first answer is followed by a second one that is kept. One in `FORGETS` of those that are kept forgets the
    sign, which the teacher's tests do not show: one of every three in a row, so that the examples have that share
    wherever distillation stops.
    """
    if params.tasks.toy is None:
        raise UsageError("tasks.toy: recorded answers are made of toy tasks")
    whole = params.tasks.toy_stdin
    rng = random.Random(f"toy teacher {params.tasks.seed}")
    firsts = [mark for _ in range(0, params.tasks.toy.distill, FORGETS) for mark in marks(FORGETS, 1 / FORGETS, rng)]
    for forgets, program in zip(
        firsts, splits(params.tasks.seed, params.tasks.toy.model_dump())["distill"], strict=False
    ):
        kept = answer_of(program, SIGNED if forgets else UNSIGNED, whole=whole)
        code = code_of(program, whole=whole)
        spoilings = (
            kept.replace("</SOLUTION>", ""),
            f"Sure! Here is the answer.\n{kept}",
            kept.replace("</END_WORKING_OUT>", "</START_WORKING_OUT>"),
            answer_format.render(reasoning_of(program), code.replace("return", "retrun")),
            answer_format.render(reasoning_of(program), code.replace(f"def {ENTRY_POINT}", "def solution")),
            answer_format.render(reasoning_of(program), code.replace("return x", "return x + 1")),
        )
        answers = [rng.choice(spoilings), kept] if rng.random() < 0.2 else [kept]
        for attempt, answer in enumerate(answers):
            request = cache.request(params.distill, prompt_of(program, whole=whole), attempt)
            yield cache.record(request, cache.response(request, answer))


def main() -> None:
    from jobs.plumbing.params import merged, read_yaml, validate

    layers: dict = read_yaml(Path("params.yaml"))
    for overlay in OVERLAYS:
        layers = merged(layers, read_yaml(overlay))
        params = validate(layers, str(overlay))
        write_jsonl(Path(str(params.distill.recorded)), recorded(params))


if __name__ == "__main__":
    main()
