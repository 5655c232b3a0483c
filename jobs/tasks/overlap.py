"""Which training tasks overlap with a benchmark's, by three rules; docs/tasks.md has what each finds and misses.

solves      the task's own reference passes all of a benchmark task's tests (pairs.py)
statement   the statements, without their examples, are alike: TF-IDF cosine of at least tasks.overlap.likeness
words       the prompts share a run of tasks.overlap.words words
"""

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.common.contamination import overlaps

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Overlap

RULES = "solves", "statement", "words"
WORD = re.compile(r"\b\w\w+\b")  # scikit-learn's: one letter alone is no word
# How MBPP begins nearly every statement: it tells nothing of the task.
OPENING = re.compile(r"^write a (?:python )?function (?:to |that |which )?", re.IGNORECASE)
EXAMPLE = re.compile(r"^\W*(?:for )?examples?\b", re.IGNORECASE)

Weights = dict[str, float]


def statement(task: "Task") -> str:
    """What the prompt asks for: its docstring or its text, without examples, assertions and the opening phrase."""
    call = re.compile(rf"\W*{re.escape(task['entry_point'])}\s*\(")
    lines = []
    output = False  # of a doctest: the line after its call
    for line in map(str.strip, told(task["prompt"], task["entry_point"]).splitlines()):
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


def weights(texts: Iterable[str]) -> list[Weights]:
    """The TF-IDF weights of each text's words, of length 1: (1 + ln tf) x (1 + ln((1 + n) / (1 + df))).

    These are scikit-learn's `TfidfVectorizer(sublinear_tf=True)`; tests/bench/overlap.py compares. They are summed here
    word by word with `math.fsum`, so that a likeness has the same bits on every CPU.
    """
    counts = [Counter(WORD.findall(text.lower())) for text in texts]
    spread = Counter(word for count in counts for word in count)
    rarity = {word: 1 + math.log((1 + len(counts)) / (1 + texts_with)) for word, texts_with in spread.items()}
    found = []
    for count in counts:
        weight = {word: (1 + math.log(n)) * rarity[word] for word, n in count.items()}
        length = math.sqrt(math.fsum(value * value for value in weight.values())) or 1.0
        found.append({word: value / length for word, value in weight.items()})
    return found


def cosine(one: Weights, other: Weights) -> float:
    return math.fsum(value * other[word] for word, value in one.items() if word in other)


def likeness(tasks: "list[Task]", benchmarks: "list[Task]") -> list[tuple[float, str]]:
    """Of each task, the cosine of its statement with the likest benchmark task's, and that task's id."""
    both = weights(statement(task) for task in [*tasks, *benchmarks])
    targets = list(zip(both[len(tasks) :], (task["task_id"] for task in benchmarks), strict=True))
    return [
        max(((round(cosine(own, other), 6), name) for other, name in targets), default=(0.0, ""))
        for own in both[: len(tasks)]
    ]


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
