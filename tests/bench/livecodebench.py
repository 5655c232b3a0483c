"""Whether the sandbox agrees with LiveCodeBench's own scorer, sample by sample, on made records of both kinds of test.

    python tests/bench/livecodebench.py --runner FOLDER

FOLDER holds LiveCodeBench's own package, as for programs.py. Prints each sample on which they differ, and the numbers;
the exit code is 1 if one differs that is not listed in KNOWN.
"""

import argparse
import json
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.sandbox import Sandbox
from jobs.tasks.formats.livecodebench import convert, prompt

STDIN = [("3\n1 2 3\n", "6\n"), ("1\n5\n", "5\n"), ("2\n0.5 0.25\n", "0.75\n")]
PROGRAMS = {
    "right": "input()\nprint(sum(map(float, input().split())))",
    "integers as floats": "input()\nprint('%.3f' % sum(map(float, input().split())))",
    "blank lines": "input()\nprint()\nprint(' ', sum(map(float, input().split())), ' \\n\\n')",
    "a word more": "input()\nprint(sum(map(float, input().split())), 'x')",
    "two lines": "input()\nprint(sum(map(float, input().split())))\nprint(1)",
    "wrong": "print(6)",
    "nothing": "pass",
    "raises": "print(6)\nraise ValueError",
    "no such name": "print(x)",
    "no Python": "print(",
    "exits with 1": "import sys\ninput()\nprint(sum(map(float, input().split())))\nsys.exit(1)",
    "exits early": "import sys\nsys.exit(0)\nprint(6)",
    "main": "def main():\n    input()\n    print(sum(map(float, input().split())))\nif __name__ == '__main__':\n    main()",
    "sys.stdin": "import sys\nn, *rest = sys.stdin.read().split()\nprint(sum(map(float, rest)))",
    "readline": "import sys\ninput = sys.stdin.readline\ninput()\nprint(sum(map(float, input().split())))",
    "names of the prelude": "input()\nprint(fsum(map(float, input().split())))",
    "buffer": "import sys\nn, *rest = sys.stdin.buffer.read().split()\nprint(sum(map(float, rest)))",
    "global": "n = 0\ndef f(x):\n    global n\n    n += x\ninput()\nfor x in input().split(): f(float(x))\nprint(n)",
}
CALLS = [("[1, 2]\n3", "[1, 2, 3]"), ("[]\n0", "[0]"), ("[5]\n5", "[5, 5]")]
STARTER = "class Solution:\n    def put(self, a: List[int], b: int) -> List[int]:\n        "


def of_class(body: str) -> str:
    return f"class Solution:\n    def put(self, a: List[int], b: int) -> List[int]:\n        {body}\n"


METHODS = {
    "right": of_class("return a + [b]"),
    "a tuple": of_class("return (*a, b)"),
    "a tuple within": of_class("return [tuple(a)]"),
    "in place": of_class("a.append(b)\n        return a"),
    "floats": of_class("return [float(x) for x in a + [b]]"),
    "booleans": of_class("return [x if x != 1 else True for x in a + [b]]"),
    "nothing": of_class("pass"),
    "raises": of_class("return a[0]"),
    "a function": "def put(a, b):\n    return a + [b]\n",
    "no method": "class Solution:\n    pass\n",
    "no Python": "class Solution",
    "state of the instance": of_class(
        "self.n = getattr(self, 'n', 0) + 1\n        return a + [b] if self.n < 3 else []"
    ),
    "an iterator": of_class("return iter(a + [b])"),
    "names of the prelude": of_class("return list(chain(a, [b]))"),
}
# Where they differ by intent: the official runner has no descriptor behind sys.stdin, and wraps a program in a function.
KNOWN = {"buffer", "global"}


def record(tests: list, starter: str, name: str) -> dict:
    kind = "functional" if name else "stdin"
    cases = [{"input": given, "output": expected, "testtype": kind} for given, expected in tests]
    return {
        "question_title": "t", "question_content": "Add.", "platform": "leetcode", "question_id": "1", "contest_id": "1",
        "contest_date": "2024-09-01T00:00:00", "starter_code": starter, "difficulty": "easy",
        "public_test_cases": json.dumps(cases[:1]), "private_test_cases": json.dumps(cases[1:]),
        "metadata": json.dumps({"func_name": name} if name else {}),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runner", type=Path, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(options.runner))
    unused = types.ModuleType("anthropic")  # its prompts import two names that later releases of it do not have
    unused.HUMAN_PROMPT = unused.AI_PROMPT = ""  # type: ignore[attr-defined]
    sys.modules["anthropic"] = unused
    from livecodebench.benchmarks.code_generation import CodeGenerationProblem
    from livecodebench.evaluation.compute_code_generation_metrics import check_correctness
    from livecodebench.prompts.code_generation import get_generic_question_template_answer

    differ = []
    with Sandbox(1, benchmark=True) as sandbox:
        for kind, samples, row in (
            ("stdin", PROGRAMS, record(STDIN, "", "")),
            ("functional", METHODS, record(CALLS, STARTER, "put")),
        ):
            problem = CodeGenerationProblem(**row)
            assert prompt(row["question_content"], row["starter_code"]) == get_generic_question_template_answer(problem)
            task = {"task_id": kind, **convert(row)[0]}
            task.pop("name")
            for name, code in samples.items():
                official = check_correctness(problem.get_evaluation_sample(), code, timeout=6, debug=False)[0]
                theirs = all(result is True for result in official)
                ours = sandbox.run([(task, code)])[0]
                if ours.passed != theirs:
                    differ.append(name)
                    print(json.dumps({"kind": kind, "sample": name, "official": theirs, "sandbox": str(ours)}))
    print(json.dumps({"samples": len(PROGRAMS) + len(METHODS), "differ": len(differ), "known": sorted(KNOWN)}))
    return bool(set(differ) - KNOWN)


if __name__ == "__main__":
    sys.exit(main())
