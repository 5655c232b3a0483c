"""Whether the sandbox agrees with BigCodeBench's own scorer, sample by sample, on made records.

    python -m venv scorer && scorer/bin/pip install --no-deps bigcodebench==0.2.5
    scorer/bin/pip install numpy matplotlib
    python tests/bench/bigcodebench.py --python scorer/bin/python

The scorer runs in its own environment, as it wants packages of its own versions. Prints each sample on which they differ,
and the numbers; the exit code is 1 if one differs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.sandbox import Sandbox
from jobs.tasks.formats.bigcodebench import convert

COMPLETE = 'import random\nimport json\n\ndef task_func(text):\n    """The sum of the numbers in a JSON list."""\n'
CODE = "import random\nimport json\ndef task_func(text):\n"
TEST = """import unittest
from unittest.mock import patch

class TestCases(unittest.TestCase):
    def setUp(self):
        self.text = "[1, 2, 3]"

    def test_sum(self):
        self.assertEqual(task_func(self.text), 6)

    def test_empty(self):
        self.assertEqual(task_func("[]"), 0)

    def test_bad(self):
        with self.assertRaises(ValueError):
            task_func("{")

    @patch("json.loads", return_value=[5])
    def test_calls(self, loads):
        self.assertEqual(task_func("x"), 5)
        loads.assert_called_once_with("x")

    def test_each(self):
        for n in (1, 2):
            with self.subTest(n=n):
                self.assertEqual(task_func(f"[{n}]"), n)
"""


def body(text: str) -> str:
    return f"def task_func(text):\n{text}"


SAMPLES = {
    "right": body("    return sum(json.loads(text))\n"),
    "with its prompt": COMPLETE + "    return sum(json.loads(text))\n",
    "imports itself": "from json import loads\n" + body("    return sum(loads(text))\n"),
    "wrong": body("    return len(json.loads(text))\n"),
    "wrong for one": body("    return sum(json.loads(text)) or 1\n"),
    "another error": body(
        "    try:\n        return sum(json.loads(text))\n    except ValueError:\n        raise KeyError\n"
    ),
    "eval": body("    return sum(eval(text))\n"),
    "nothing": body("    pass\n"),
    "empty": "",
    "no such name": body("    return x\n"),
    "no Python": "def task_func(:\n",
    "raises at once": "raise ValueError('no')\n",
    "exits at once": "raise SystemExit\n",
    "exits in the call": body("    import sys\n    sys.exit(0)\n"),
    "exit()": body("    exit()\n"),
    "prints": "print('hello')\n" + body("    print(text)\n    return sum(json.loads(text))\n"),
    "reads": body("    return int(input())\n"),
    "under main": body("    return sum(json.loads(text))\n") + "if __name__ == '__main__':\n    raise ValueError\n",
    "a class of its own": "class TestCases:\n    pass\n" + body("    return sum(json.loads(text))\n"),
    "a lambda": "task_func = lambda text: sum(json.loads(text))\n",
}
OFFICIAL = """
import json, sys
from bigcodebench.eval import untrusted_check
if __name__ == "__main__":
    given = json.load(sys.stdin)
    found = {}
    for name, code in given["samples"].items():
        solution = given["code_prompt"] + "\\n    pass\\n" + code  # as evaluate.py calibrates
        found[name] = untrusted_check(solution, given["test"], "task_func", 30 * 1024, 30 * 1024, 10, 1, 5)
    print("found: " + json.dumps(found))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="The interpreter of the scorer's environment.")
    options = parser.parse_args()
    row = {
        "task_id": "BigCodeBench/1", "complete_prompt": COMPLETE, "instruct_prompt": "Sum.", "code_prompt": CODE,
        "canonical_solution": "    return sum(json.loads(text))\n", "test": TEST, "entry_point": "task_func",
        "doc_struct": "{}", "libs": "['random', 'json']",
    }  # fmt: skip
    given = json.dumps({"samples": SAMPLES, "code_prompt": CODE, "test": TEST})
    done = subprocess.run([options.python, "-c", OFFICIAL], input=given, capture_output=True, text=True, check=True)
    official = json.loads(done.stdout.partition("found: ")[2].splitlines()[0])
    fields, _ = convert(row)
    task = {"task_id": "made", **{k: v for k, v in fields.items() if k not in ("name", "libraries")}}
    with Sandbox(1, benchmark=True) as sandbox:
        ours = dict(zip(SAMPLES, sandbox.run([(task, code) for code in SAMPLES.values()]), strict=True))
    differ = [name for name in SAMPLES if ours[name].passed != (official[name][0] == "pass")]
    for name in differ:
        print(json.dumps({"sample": name, "official": official[name], "sandbox": str(ours[name])}))
    passed = sum(verdict.passed for verdict in ours.values())
    print(json.dumps({"samples": len(SAMPLES), "passed": passed, "differ": len(differ)}))
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
