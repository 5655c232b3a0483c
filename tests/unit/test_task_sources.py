"""Published data sets as sources of tasks: rows in their own formats, odd ones among them, to tasks, reasons and splits."""

import base64
import hashlib
import json
import pickle
import zlib
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ValidationError

from jobs.common.errors import JobError, UsageError
from jobs.common.task import fault
from jobs.plumbing.params import TaskSource, load
from jobs.sandbox import Sandbox
from jobs.tasks import formats, outside

ROOT = Path(__file__).parents[2]
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"


def taco(question="Add two numbers.", inputs=("1 2\n", "3 4\n"), outputs=("3\n", "7\n"), solutions=(SUM,), **more):
    tests = {"inputs": list(inputs), "outputs": list(outputs)} | more.pop("tests", {})
    row = {"question": question, "solutions": json.dumps(list(solutions)), "starter_code": "", "difficulty": "EASY"}
    return row | {"input_output": json.dumps(tests), "date": "2019-12-31 00:00:00"} | more


TWICE = {"fn_name": "twice", "inputs": [[1], [4]], "outputs": [[2], [8]]}
TACO = [
    (taco(), ""),
    (taco(inputs=[["1 2"], ["3 4"]], outputs=[["3"], ["7"]]), ""),
    (taco("Add.\r\nNow."), ""),
    (taco(input_output=json.dumps(TWICE), solutions=["def twice(x):\n    return 2 * x\n"]), ""),
    (taco(input_output=json.dumps(TWICE), starter_code="class Solution:\n    def twice(self, x):\n",
          solutions=["class Solution:\n    def twice(self, x):\n        return 2 * x\n"]), ""),
    (taco("Print with an absolute or relative error of at most 10^{-6}.", outputs=["3.0000001", "7"]), ""),
    (taco("If there are multiple answers, print any of them."), "needs a checker"),
    (taco("Print the numbers in any order."), "needs a checker"),
    (taco("An absolute error is fine."), "allows an error"),
    (taco(input_output="{"), "its input_output is no JSON"),
    (taco(input_output="{}"), "has no tests"),
    (taco(outputs=["3"]), "has not as many outputs"),
    (taco(outputs=["", "\n"]), "has no test that expects"),
    (taco(inputs=[3, 4]), "has an input or output"),
    (taco(question=" "), "has no question"),
    (taco(solutions=[1]), "its solutions are not a list of texts"),
]  # fmt: skip


def leetcode(lines, starter="class Solution:\n    def f(self, x: int, y: int) -> int:\n        ", **more):
    lines = "\n".join(f"    assert {line}" for line in lines)
    return {
        "problem_description": "Do it.",
        "starter_code": starter,
        "prompt": "import random\nfrom typing import *\n\ninf = float('inf')\n\nclass ListNode:\n    pass\n",
        "completion": "class Solution:\n    def f(self, x, y):\n        return x - y\n",
        "entry_point": "Solution().f",
        "test": f"def check(candidate):\n{lines}\n",
        "difficulty": "Easy",
        "estimated_date": "2020-01-31",
    } | more


ONE = "class Solution:\n    def f(self, head: Optional[ListNode]) -> Optional[ListNode]:\n        "
TAIL = "class Solution:\n    def f(self, head):\n        return head.next if head else None\n"
LEETCODE = [
    (leetcode(["candidate(x = 5, y = 3) == 2", "candidate(y = 1,x = 2) == 1"]), ""),
    (leetcode(["candidate(5, -3) == 8"]), ""),
    (leetcode(["is_same_list(candidate(head = list_node([1, 2, 3])), list_node([2, 3]))",
               "candidate(head = None) == None"], ONE, completion=TAIL), ""),
    (leetcode(["is_same_tree(candidate(head = tree_node([1, None, 2])), tree_node([1, None, 2]))"], ONE,
              completion="class Solution:\n    def f(self, root):\n        return root\n"), ""),
    (leetcode(["candidate(x = 1, y = inf) == -inf", "candidate(x = 2, y = 1) == 1"]), ""),
    (leetcode(["candidate(x = 1, y = ten) == 2"]), "has a value that is not plain"),
    (leetcode(["candidate(x = 1) == 2"]), "has a test with other arguments"),
    (leetcode(["sorted(candidate(x = 1, y = 2)) == 2"]), "has a test of another kind"),
    (leetcode(["candidate(x = 1, y = 2)"]), "has a test of another kind"),
    (leetcode([], test="def check(candidate):\n    for x in y:\n        assert x\n"), "its test is no check function"),
    (leetcode([], test="def check("), "its test is no Python"),
    (leetcode(["candidate(x = 1, y = 0) == 1"], entry_point="LRUCache"), "its entry_point"),
    (leetcode(["candidate(x = 1, y = 0) == 1"], starter_code="class Solution:\n    def g(self): "), "its starter"),
    (leetcode(["candidate(x = 1, y = 0) == 1"], problem_description="Return the answer in any order."), "needs a checker"),
]  # fmt: skip


def deepcoder(tests, **more):
    return {"problem": "Add two numbers.", "solutions": [f"```python\n{SUM}```"], "tests": tests} | more


STDIN = [{"type": "stdin_stdout", "input": "1 2\n", "output": "3\n"}]
CALL = [{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": 3}]
ADD = "def add(a, b):\n    return a + b\n"
FUNCTIONAL = [{"testtype": "functional", "input": "1\n[2]", "output": "[2, 1]", "metadata": {"func_name": "add"}}]
DEEPCODER = [
    (deepcoder(STDIN), ""),
    (deepcoder(json.dumps(STDIN), solutions=json.dumps([SUM])), ""),
    (deepcoder(json.dumps({"inputs": ["1 2"], "outputs": ["3"]})), ""),
    (deepcoder(CALL, solutions=[ADD]), ""),
    (deepcoder(FUNCTIONAL, starter_code="class Solution:\n    def add(self, a, b):\n",
               solutions=["class Solution:\n    def add(self, a, b):\n        return [*b, a]\n"]), ""),
    ({"prompt": "Add two numbers.", "gold_standard_solution": f"So:\n```python\n{SUM}```",
      "verification_info": json.dumps({"language": "python", "test_cases": STDIN})}, ""),
    ({"prompt": "Add.", "verification_info": json.dumps({"language": "rust", "test_cases": STDIN})}, "is of the language"),
    (deepcoder([*STDIN, *CALL]), "has tests of the kinds"),
    (deepcoder([*CALL, {**CALL[0], "fn_name": "sub"}]), "has tests of several functions"),
    (deepcoder("[]"), "has no tests"),
    (deepcoder("["), "its tests is neither JSON nor plain Python"),
    (deepcoder("[print(1)]"), "its tests is neither JSON nor plain Python"),
    (deepcoder(repr(STDIN)), ""),
    (deepcoder([{"input": "1 2", "output": "3"}]), ""),
    ({"problem_statement": "Add two numbers.", "gold_standard_solution": ADD, "metadata": {"difficulty": "EASY"},
      "verification_info": {"language": "python", "test_cases": [CALL[0] | {"input": "[1, 2]", "output": "3"}]}}, ""),
    ({"prompt": "Add two numbers.", "gold_standard_solution": SUM, "metadata": "{'difficulty': 'HARD'}",
      "verification_info": repr({"language": "python", "test_cases": STDIN})}, ""),
    (deepcoder([{"testtype": "functional", "input": "x", "output": "1", "metadata": {"func_name": "f"}}]), "has a call"),
]  # fmt: skip


def kodcode(test, **more):
    info = [
        {"function_name": "add", "function_declaration": "def add(a, b):", "docstring": "", "parameter_list": "(a, b)"}
    ]
    return {"question": "Add.", "solution": ADD, "test": test, "test_info": info, "gpt_difficulty": "easy"} | more


HEAD = "from solution import add\n\n"
KODCODE = [
    (kodcode(HEAD + "def test_a():\n    assert add(1, 2) == 3\n\ndef test_b():\n    assert add(0, 0) == 0\n"), ""),
    (kodcode(HEAD + "import pytest\nMORE = 3\n\ndef test_a():\n    assert add(MORE, 2) == 5\n"), ""),
    (kodcode(None, test_code=HEAD + "def test_a():\n    assert add(1, 2) == 3\n"), ""),
    (kodcode(HEAD + "def test_a():\n    with pytest.raises(ValueError):\n        add(1)\n"), "its tests need pytest"),
    (kodcode(HEAD + "@pytest.mark.x\ndef test_a():\n    assert add(1, 2) == 3\n"), "its tests need pytest"),
    (kodcode(HEAD + "def test_a(tmp_path):\n    assert add(1, 2) == 3\n"), "its tests need pytest"),
    (kodcode("from solution import add, other\ndef test_a():\n    assert add(1, 2) == 3\n"), "its tests do not call one"),
    (kodcode("from solution import add as plus\ndef test_a():\n    assert plus(1, 2) == 3\n"), "its tests do not call one"),
    (kodcode("def test_a():\n    assert add(1, 2) == 3\n"), ""),
    (kodcode(f"{ADD}\ndef test_a():\n    assert add(1, 2) == 3\n"), "its tests do not call one"),
    (kodcode(HEAD + "def test_a():\n    assert add(1, 2) == 3\n", test_info=["add"]), "its test_info is no list"),
    (kodcode(HEAD + "def test_a():\n    assert add(1, 2) == 3\n\nif __name__ == '__main__':\n    test_a()\n"), ""),
    (kodcode(HEAD + "def test_a():\n    assert add(1, 2) == 3\n\ntest_a()\n", solution=f"def inner():\n    pass\n\n{ADD}",
             test_info=[{"function_name": "inner"}, {"function_name": "add"}]), ""),
    (kodcode(HEAD), "has no tests"),
    (kodcode(HEAD + "def test_a(:"), "its test is no Python"),
    (kodcode(HEAD + "def test_a():\n    assert add(1, 2) == 3\n", test_info=[]), ""),
    (kodcode(HEAD + "def test_a():\n    assert add(1, 2) == 3\n", solution=""), "has no solution"),
    (kodcode(HEAD + "def test_a():\n    print(add(1, 2))\n"), "its test 1 asserts nothing"),
]  # fmt: skip
CASES = [("taco", *case) for case in TACO] + [("leetcode", *case) for case in LEETCODE]
CASES += [("deepcoder", *case) for case in DEEPCODER] + [("kodcode", *case) for case in KODCODE]


@pytest.mark.parametrize(("format", "row", "wrong"), CASES)
def test_rows(format, row, wrong):
    """A row becomes a task without fault whose own solution is there to be tried, or says why not."""
    try:
        task, solutions = formats.module(format).convert(row)
    except ValueError as error:
        assert wrong
        assert str(error).startswith(wrong)
        return
    assert fault({"task_id": "t", **task}).startswith(wrong)
    assert bool(fault({"task_id": "t", **task})) == bool(wrong)
    assert len(solutions) == 1


def test_good_rows_solutions_pass_and_others_do_not():
    asked = [(formats.module(name).convert(row), row) for name, row, wrong in CASES if not wrong]
    with Sandbox(workers=1, timeout=10) as sandbox:
        right = sandbox.run([({"task_id": str(i), **task}, found[0]) for i, ((task, found), _) in enumerate(asked)])
        wrong = sandbox.run([({"task_id": str(i), **task}, "class Solution: pass\nprint(0)\ndef add(*a): pass\ntwice = add")
                             for i, ((task, _), _) in enumerate(asked)])  # fmt: skip
    assert [verdict.status for verdict in right] == ["passed"] * len(asked)
    assert not [verdict for verdict in wrong if verdict.passed]


def lcb(private=None, **more):
    cases = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    row = {"question_title": "A", "question_content": "Add.", "platform": "atcoder", "question_id": "abc1",
           "starter_code": "", "contest_date": "2024-08-31T00:00:00", "difficulty": "easy", "metadata": "{}"}  # fmt: skip
    return row | {"public_test_cases": json.dumps(cases), "private_test_cases": json.dumps(private or cases)} | more


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


def test_livecodebench_rows_in_their_own_packing():
    more = [{"input": "2 2\n", "output": "4\n", "testtype": "stdin"}]
    task, _ = formats.module("livecodebench").convert(lcb(private_test_cases=packed(more)))
    assert [test["output"] for test in task["stdin_tests"]] == ["3\n", "4\n"]
    assert (task["date"], task["difficulty"], task["comparison"]) == ("2024-08-31", "easy", "livecodebench")
    assert "### Question:\nAdd.\n\n### Format: Read the inputs from stdin" in task["prompt"]
    call = [{"input": "[1, 2]\n3", "output": "[3]", "testtype": "functional"}]
    row = lcb(
        call, public_test_cases="[]", metadata='{"func_name": "f"}', starter_code="class Solution:\n    def f(self):\n"
    )
    task, _ = formats.module("livecodebench").convert(row)
    assert task["calls"] == [{"arguments": [[1, 2], 3], "expected": [3]}]
    assert (task["entry_point"], task["method"]) == ("Solution", "f")


def test_a_pickle_of_anything_but_a_text_is_not_unpickled():
    class Evil:
        def __reduce__(self):
            return (print, ("never",))

    for value in (Evil(), ["a"], {"a": 1}, 3):
        row = lcb(private_test_cases=base64.b64encode(zlib.compress(pickle.dumps(value))).decode())
        with pytest.raises(ValueError, match="a pickle of more than a text"):
            formats.module("livecodebench").convert(row)
    with pytest.raises(ValueError, match="packed in an unknown way"):
        formats.module("livecodebench").convert(lcb(private_test_cases="no base64"))


COMPLETE = 'import random\n\ndef task_func(n):\n    """Doubles n."""\n'
DOUBLED = """import unittest
from unittest.mock import patch

class TestCases(unittest.TestCase):
    def test_double(self):
        self.assertEqual(task_func(4), 8)

    @patch("random.random", return_value=0.5)
    def test_draws_nothing(self, drawn):
        task_func(1)
        drawn.assert_not_called()
"""


def bigcode(**more):
    return {"task_id": "BigCodeBench/1", "complete_prompt": COMPLETE, "instruct_prompt": "Double n.",
            "canonical_solution": "    return 2 * n\n", "code_prompt": "import random\ndef task_func(n):\n",
            "test": DOUBLED, "entry_point": "task_func", "doc_struct": "{}", "libs": "['random']"} | more  # fmt: skip


def test_bigcodebench_rows():
    task, [solution] = formats.module("bigcodebench").convert(bigcode(libs="['pandas', 'os.path']"))
    assert task.pop("libraries") == ["pandas", "os"] and task.pop("name") == "1"
    assert not fault({"task_id": "t", **task})
    assert task["prompt"] == COMPLETE and task["prelude"] == "import random\ndef task_func(n):\n    pass\n"
    assert solution == COMPLETE + "    return 2 * n\n"
    for wrong, said in (
        ({"libs": "pandas"}, "its libs are not"), ({"libs": "[1]"}, "its libs are not"), ({"test": ""}, "has no test"),
        ({"entry_point": None}, "has no entry_point"), ({"complete_prompt": " "}, "has no complete_prompt"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            formats.module("bigcodebench").convert(bigcode(**wrong))
    for test, said in (("import unittest\n", "no class TestCases"), ("class TestCases(", "no Python"),
                       ("class TestCases:\n    def tests_nothing_of(self): pass\n    x = 1\n", "")):  # fmt: skip
        task, _ = formats.module("bigcodebench").convert(bigcode(test=test))
        assert said in fault({"task_id": "t", **task})
    assert "other tests beside" in fault({"task_id": "t", **task, "tests": ["assert task_func(1)"]})


def test_a_benchmark_that_skips_has_only_the_tasks_that_can_be_judged_here(tmp_path):
    rows = [
        bigcode(),
        bigcode(task_id="BigCodeBench/2", libs="['pandas']"),
        bigcode(task_id="BigCodeBench/3", canonical_solution="    open('/tmp/x', 'w').write('x')\n    return 2 * n\n"),
        bigcode(task_id="BigCodeBench/4", canonical_solution=""),
    ]
    splits, gone = collected(tmp_path, source(tmp_path / "a.jsonl", rows, format="bigcodebench", split="bigcodebench"))
    assert [task["task_id"] for task in splits["bigcodebench"]] == ["data/1"]
    assert splits["bigcodebench"][0]["reference"] == COMPLETE + "    return 2 * n\n"
    assert gone == [("data/2", "packages"), ("data/3", "unverified"), ("data/4", "unverified")]


def source(path, rows, **more):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return TaskSource(
        **{"name": "data", "format": "taco", "file": str(path), "sha256": digest, "split": "train"} | more
    )


def settings(*sources):
    return load(ROOT / "params.yaml").tasks.model_copy(update={"sources": list(sources)})


LIMITS = load(ROOT / "params.yaml").sandbox.model_copy(update={"workers": 1})


def collected(tmp_path, *sources):
    splits, gone = outside.collect(settings(*sources), tmp_path / "none", LIMITS)
    return splits, [(row["task_id"], row["reason"]) for row in gone]


def test_a_reference_is_the_first_solution_that_passes(tmp_path):
    rows = [taco(solutions=["print(0)", SUM + "# 2"]), taco("Add.", solutions=["print(0)"]), taco("Sum.", solutions=[])]
    splits, gone = collected(tmp_path, source(tmp_path / "a.jsonl", rows))
    assert [task["reference"] for task in splits["train"]] == [SUM + "# 2"]
    assert gone == [("data/1", "unverified"), ("data/2", "unverified")]
    assert splits["train"][0]["license"] == "Apache-2.0"
    assert not fault(splits["train"][0])


def test_limits(tmp_path):
    rows = [taco(), taco("Add " + "x" * 300), taco(difficulty="HARD"), taco(input_output="{")]
    splits, gone = collected(tmp_path, source(tmp_path / "a.jsonl", rows, statement=200, difficulty=["easy"]))
    assert [task["task_id"] for task in splits["train"]] == ["data/0"]
    assert gone == [("data/1", "too_long"), ("data/3", "unusable")]
    inputs = ["1 2\n", "100 200\n", "10 20\n", "7 8\n"]
    row = taco(inputs=inputs, outputs=["3", "300", "30", "15"])
    splits, _ = collected(tmp_path, source(tmp_path / "b.jsonl", [row], tests=3))
    assert [test["input"] for test in splits["train"][0]["stdin_tests"]] == ["1 2\n", "100 200\n", "10 20\n"]


def test_a_row_for_every_answer_to_a_problem_makes_one_task_to_train_on(tmp_path):
    rows = [
        taco(),
        taco(" Add  two numbers.\n"),
        taco("Subtract.", solutions=["print(0)"]),
        taco(solutions=["print(1)"]),
    ]
    splits, gone = collected(tmp_path, source(tmp_path / "a.jsonl", rows))
    assert [task["task_id"] for task in splits["train"]] == ["data/0"]
    assert gone == [("data/1", "repeated"), ("data/3", "repeated"), ("data/2", "unverified")]


def test_a_drawn_part_is_the_same_again_and_another_for_another_seed(tmp_path):
    rows = [taco(f"Add {i}.") for i in range(20)]
    one = source(tmp_path / "a.jsonl", rows, most=5)
    first, again = (outside.chosen(one, "d/", iter(rows), 1)[0] for _ in range(2))
    other = outside.chosen(one, "d/", iter(rows), 2)[0]
    assert len(first) == 5
    assert first == again
    assert first != other


def test_a_window_of_dates_makes_the_benchmark(tmp_path):
    rows = [lcb(question_id=f"q{month}", contest_date=f"2024-{month:02}-15T10:00:00") for month in (1, 6, 12)]
    entry = source(
        tmp_path / "a.jsonl", rows, format="livecodebench", split="lcb", since="2024-02-01", until="2024-11-30"
    )
    splits, gone = collected(tmp_path, entry)
    assert [task["task_id"] for task in splits["lcb"]] == ["data/q6"]
    assert gone == []


def test_parquet_gives_the_same_tasks(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [taco(), taco(input_output=json.dumps(TWICE), solutions=["def twice(x):\n    return 2 * x\n"])]
    entry = source(tmp_path / "a.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    digest = hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()
    other = entry.model_copy(update={"file": str(tmp_path / "a.parquet"), "sha256": digest})
    assert collected(tmp_path, entry) == collected(tmp_path, other)


def test_what_is_not_there_or_another_file_is_refused(tmp_path):
    entry = source(tmp_path / "a.jsonl", [taco()])
    with pytest.raises(JobError, match="has the sha256"):
        collected(tmp_path, entry.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(JobError, match="does not exist"):
        collected(tmp_path, entry.model_copy(update={"file": "nothing.jsonl"}))
    with pytest.raises(UsageError, match="give each a name"):
        collected(tmp_path, entry, entry)


@pytest.mark.parametrize(
    "change",
    [
        {"repo": "a/b"},
        {"split": "humaneval"},
        {"split": "lcb", "most": 3},
        {"format": "c4"},
        {"since": "May"},
        {"format": "bigcodebench"},
    ],
)
def test_params_that_cannot_be_meant(tmp_path, change):
    with pytest.raises(ValidationError):
        source(tmp_path / "a.jsonl", [taco()], **change)


def test_the_pages_example_of_a_format_makes_tasks(tmp_path, monkeypatch):
    """docs/tasks.md, "Another data set": as it is written there, in the place of a format, from rows to verified tasks."""
    page = (ROOT / "docs/tasks.md").read_text().partition("### Another data set")[2]
    example = page.partition("```python\n")[2].partition("```")[0]
    assert 10 < len(example.splitlines()) <= 30
    module = ModuleType("example")
    exec(compile(example, "docs/tasks.md", "exec"), vars(module))
    monkeypatch.setattr(formats, "module", lambda name: module)
    cases = [{"in": "1 2\n", "out": "3\n"}, {"in": "3 4\n", "out": "7\n"}]
    rows = [
        {"statement": "Add two numbers.", "cases": cases, "solution": SUM, "level": "easy"},
        {"statement": "Add two numbers.", "cases": [], "solution": SUM},
        {"statement": "Print them in any order.", "cases": cases, "solution": SUM},
        {"statement": "Add two numbers, now.", "cases": cases, "solution": "print(3)\n"},
    ]
    splits, gone = collected(tmp_path, source(tmp_path / "a.jsonl", rows))
    [task] = splits["train"]
    assert (task["reference"], task["difficulty"], task["license"]) == (SUM, "easy", "MIT")
    assert [reason for _, reason in gone] == ["unusable", "unusable", "unverified"]
