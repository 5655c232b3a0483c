"""Which training tasks overlap with a benchmark's, by three rules; docs/tasks.md has what each finds and misses.

solves      the task's own reference passes all of a benchmark task's tests (pairs.py)
statement   the statements, without their examples, are alike: TF-IDF cosine of at least tasks.overlap.likeness
words       the prompts share a run of tasks.overlap.words words
"""

import ast
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.common.contamination import overlaps
from jobs.common.programs import is_program

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Overlap

RULES = "solves", "statement", "words"
WORD = re.compile(r"\b\w\w+\b")  # one letter alone is no word
DIGITS = 6  # of a likeness
# How MBPP begins nearly every statement: it tells nothing of the task.
OPENING = re.compile(r"^write a (?:python )?function (?:to |that |which )?", re.IGNORECASE)
EXAMPLE = re.compile(r"^\W*(?:for )?examples?\b", re.IGNORECASE)
# Where the statement of a program ends: what follows are inputs and outputs.
SAMPLES = re.compile(r"^\W*(?:sample|examples?)\b.*$", re.IGNORECASE | re.MULTILINE)


def statement(task: "Task") -> str:
    """What the prompt asks for: its docstring or its text, without examples, assertions and the opening phrase."""
    call = re.compile(rf"\W*{re.escape(task['entry_point'] or task['task_id'])}\s*\(")
    lines = []
    output = False  # of a doctest: the line after its call
    text = task["prompt"] if is_program(task) else told(task["prompt"], task["entry_point"])
    for line in map(
        str.strip, SAMPLES.split(text, maxsplit=1)[0].splitlines() if is_program(task) else text.splitlines()
    ):
        shown = line.startswith((">>>", "assert ")) or call.match(line) or EXAMPLE.match(line)
        if line and not shown and not output:
            lines.append(line)
        output = line.startswith(">>>")
    return OPENING.sub("", "\n".join(lines))


def told(prompt: str, entry_point: str) -> str:
    """The docstring of the prompt's function, or of the prompt; a prompt that is no program is told as it is."""
    for program in (prompt, prompt + "\n    pass\n"):
        try:
            tree = ast.parse(program)
        except (SyntaxError, ValueError):
            continue
        own = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry_point]
        return (own and ast.get_docstring(own[-1])) or ast.get_docstring(tree) or prompt
    return prompt


def likeness(tasks: "list[Task]", benchmarks: "list[Task]") -> list[tuple[float, str]]:
    """Of each task, the cosine of its statement with the likest benchmark task's, and that task's id.

    The weights are scikit-learn's TF-IDF, with 1 + ln tf in the place of tf. A likeness is rounded, so that the last bits
    of a CPU decide nothing.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [statement(task) for task in [*tasks, *benchmarks]]
    if not any(map(WORD.search, texts)) or not benchmarks:
        return [(0.0, "")] * len(tasks)
    weights = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD.pattern).fit_transform(texts)
    cosines = (weights[: len(tasks)] @ weights[len(tasks) :].T).toarray().round(DIGITS)
    names = [task["task_id"] for task in benchmarks]
    return [max(zip(row.tolist(), names, strict=True)) for row in cosines]


def find(
    tasks: "list[Task]", benchmarks: "list[Task]", pairs: Iterable[tuple[str, str]], settings: "Overlap"
) -> list[dict]:
    """A row for each task, rule and benchmark task that overlap, by rule: task_id, rule, benchmark, detail.

    pairs: ids of (training task, benchmark task) as pairs.py finds them; those of other tasks do not count.
    Of the rule `statement` there is one row a task, for the likest benchmark task.
    """
    own, targets = ({task["task_id"] for task in rows} for rows in (tasks, benchmarks))
    rows = [(one, "solves", other, "") for one, other in sorted(pairs) if one in own and other in targets]
    if settings.likeness < 1:
        rows += [
            (task["task_id"], "statement", other, f"{value:.3f}")
            for task, (value, other) in zip(tasks, likeness(tasks, benchmarks), strict=True)
            if value >= settings.likeness
        ]
    rows += [
        (found.text, "words", found.benchmark, found.ngram)
        for found in overlaps(
            {task["task_id"]: [task["prompt"]] for task in tasks},
            {task["task_id"]: [task["prompt"]] for task in benchmarks},
            settings.words,
        )
    ]
    return [dict(zip(("task_id", "rule", "benchmark", "detail"), row, strict=True)) for row in rows]
