"""LiveCodeBench's code generation (livecodebench/code_generation_lite): the benchmark, with its own prompts and rules.

question_title, question_content, platform, question_id, contest_date, starter_code, difficulty, public_test_cases (JSON),
private_test_cases (JSON, or the official packing: base64 of zlib of a pickled JSON text), metadata (JSON: func_name).
"""

import base64
import json
import zlib
from typing import Any

from jobs.tasks.formats import Converted
from jobs.tasks.formats.common import parsed, text
from jobs.tasks.formats.deepcoder import functional

LICENSE = "CC (LiveCodeBench); the statements are LeetCode's, AtCoder's and Codeforces' own"
SECONDS = 6.0  # what the official runner gives a test
MOST = 1 << 28  # bytes of a row's unpacked tests
# lcb_runner/evaluation/testing_util.py runs these before every answer, and lcb_runner/prompts/code_generation.py asks so.
NAMES = ("string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
         "builtins typing")  # fmt: skip
MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
PRELUDE = (
    "".join([*(f"from {name} import *\n" for name in NAMES.split()), *(f"import {name}\n" for name in MODULES.split())])
    + "sys.setrecursionlimit(50000)\n"
)
WITH_STARTER = ("You will use the following starter code to write the solution to the problem and enclose your code within "
                "delimiters.")  # fmt: skip
WITHOUT = ("Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the "
           "sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it "
           "reads the inputs, runs the algorithm and writes output to STDOUT.")  # fmt: skip
ANSWER = "### Answer: (use the provided format with backticks)\n\n"


def convert(row: dict) -> Converted:
    starter = row.get("starter_code") or ""
    tests = [*cases(row, "public_test_cases"), *cases(row, "private_test_cases")]
    if not tests:
        raise ValueError("has no tests")
    name = (parsed(row.get("metadata") or {}, "metadata") or {}).get("func_name")
    fields: dict[str, Any] = {"prompt": prompt(text(row, "question_content"), starter), "comparison": "livecodebench"}
    if name:
        made = [functional(test) for test in tests]
        fields |= {"entry_point": "Solution", "method": name}
        fields["calls"] = [{"arguments": arguments, "expected": expected} for arguments, expected in made]
    else:
        fields |= {
            "entry_point": "",
            "stdin_tests": [{"input": test["input"], "output": test["output"]} for test in tests],
        }
    fields |= {"prelude": PRELUDE, "time_limit": SECONDS, "date": text(row, "contest_date")[:10]}
    return fields | {"difficulty": row.get("difficulty") or "", "name": text(row, "question_id")}, []


def prompt(question: str, starter: str) -> str:
    """The official prompt of instructed models, without its system message."""
    begin = f"### Question:\n{question}\n\n### Format: {WITH_STARTER if starter else WITHOUT}\n"
    return f"{begin}```python\n{starter or '# YOUR CODE HERE'}\n```\n\n{ANSWER}"


def cases(row: dict, name: str) -> list[dict]:
    value = row.get(name) or "[]"
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = json.loads(unpacked(value, name))
    if not isinstance(found, list) or not all(
        isinstance(test, dict) and isinstance(test.get("input"), str) for test in found
    ):
        raise ValueError(f"its {name} are no list of tests")
    return found


def unpacked(value: str, name: str) -> str:
    """The text that a pickle holds, without unpickling anything. Errors: ValueError for a pickle of anything else."""
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(value, validate=True), MOST)
    except (ValueError, zlib.error):
        raise ValueError(f"its {name} are packed in an unknown way") from None
    if stream.unconsumed_tail:
        raise ValueError(f"its {name} are over {MOST} bytes")
    return text_of_pickle(data, name)


def text_of_pickle(data: bytes, name: str) -> str:
    """The one text in a pickle of protocols 0 to 5: read by its instructions, which build nothing."""
    import pickletools

    allowed = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}
    texts = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    found: list[str] = []
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name in texts:
                found.append(str(argument))
            elif instruction.name not in allowed:
                raise ValueError(instruction.name)
    except Exception:
        raise ValueError(f"its {name} are a pickle of more than a text") from None
    if len(found) != 1:
        raise ValueError(f"its {name} are a pickle of more than a text")
    return found[0]
