"""BigCodeBench (bigcode/bigcodebench, Apache-2.0): functions that call many packages, with a class of unit tests each.

task_id, complete_prompt, instruct_prompt, canonical_solution, code_prompt, test (class TestCases), entry_point, doc_struct,
libs (a list of packages, written as Python). A task is that of BigCodeBench-Complete, and its answer is calibrated as the
official scorer's: `code_prompt` and a `pass` stand before it. Instruct is left out: its prompts are for chat models.
"""

import ast

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import text

LICENSE = "Apache-2.0"
SECONDS = 120.0  # of all tests of an answer; the official scorer gives 240, of which no reference here takes a tenth
SKIPS = (
    True  # a task whose own solution does not pass in the sandbox, as one that writes files, is none of the benchmark
)


def convert(row: dict) -> Converted:
    prompt, name = text(row, "complete_prompt"), text(row, "entry_point")
    fields = {
        "name": text(row, "task_id").rpartition("/")[2],
        "prompt": prompt,
        "entry_point": name,
        "unittests": text(row, "test"),
        "prelude": f"{text(row, 'code_prompt').rstrip()}\n    pass\n",
        "time_limit": SECONDS,
        "libraries": libraries(row.get("libs") or "[]"),
    }
    solution = row.get("canonical_solution")
    return fields, [f"{prompt.rstrip()}\n{solution}"] if solution else []


def libraries(value: object) -> list[str]:
    """The packages' names. Errors: ValueError unless it is a list of texts, as Python or as it is."""
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError("its libs are not a list of texts")
    return [item.partition(".")[0] for item in found]
