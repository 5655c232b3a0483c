"""Tasks: what is refused, that the message says where, and what official rows become."""

import inspect
import json
import re
from pathlib import Path

import pytest

from jobs.common import official
from jobs.common.errors import JobError
from jobs.common.prompts import require_short, too_long
from jobs.common.task import KINDS, WORDS, Task, fault, is_of, read_tasks

GOOD = {"task_id": "own/1", "prompt": "Add one.", "entry_point": "f", "tests": ["assert f(1) == 2"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_id": None}, "has no task_id"),
        ({"task_id": 3}, "task_id is not a text"),
        ({"task_id": " "}, "task_id is empty"),
        ({"prompt": None}, "has no prompt"),
        ({"prompt": ["Add"]}, "prompt is not a text"),
        ({"entry_point": None}, "has no entry_point"),
        ({"entry_point": "f(x)"}, "no name of a function"),
        ({"entry_point": "lambda"}, "no name of a function"),
        ({"reference": 3}, "reference is not a text"),
        ({"contract": ["x"]}, "contract is not a text"),
        ({"atol": "1e-6"}, "atol is not a number"),
        ({"atol": True}, "atol is not a number"),
        ({"pass_rate": "half"}, "pass_rate is not a number"),
        ({"pass_rate": 1.5}, "pass_rate 1.5 is not a number between 0 and 1"),
        ({"timeout": "0.5"}, "timeout is not a number"),
        ({"timeout": 0}, "timeout 0 is no number of seconds above 0"),
        ({"timeout": float("inf")}, "timeout"),
        ({"stdin_tests": [{"input": "", "output": ""}], "tests": [], "timeout": -1.0}, "timeout -1.0 is no number"),
        ({"graded": 2.5}, "graded is not a whole number"),
        ({"tests": []}, "has no tests"),
        ({"tests": "assert f(1) == 2"}, "not a list of texts"),
        ({"tests": [None]}, "not a list of texts"),
        ({"tests": ["assert f(1) == 2", "assert f(1) =="]}, "test 2 is no Python"),
        ({"tests": ["assert f(1) == " + "-" * 100_000 + "1"]}, "test 1 is no Python"),
        ({"tests": ["f(1) == 2"]}, "test 1 asserts nothing: f(1) == 2"),
        ({"tests": ["# assert f(1) == 2"]}, "test 1 asserts nothing"),
        ({"tests": ["assert True"]}, "test 1 asserts nothing"),
        ({"tests": ["assert 1 == 1"]}, "test 1 asserts nothing"),
        ({"tests": ["assert (f(1) == 2, 'two')"]}, "test 1 asserts nothing"),
        ({"tests": ["x = f(1)\nprint(x == 2)"]}, "test 1 asserts nothing"),
        ({"tests": [], "check": "def test(candidate):\n    assert candidate(1) == 2\n"}, "no function check"),
        ({"tests": [], "check": "def check(candidate):\n    candidate(1) == 2\n"}, "check asserts nothing"),
        ({"tests": [], "check": "def check(candidate:"}, "check is no Python"),
        ({"base_input": [1, 2]}, "base_input is not a list of lists"),
        ({"base_input": [[1]]}, "no reference"),
        ({"plus_input": {"a": 1}, "reference": "x"}, "plus_input is not a list of lists"),
        ({"setup": "def f(x): return 2"}, "setup defines f"),
        ({"setup": "from math import floor as f"}, "setup defines f"),
        ({"setup": "import"}, "setup is no Python"),
    ],
)  # fmt: skip
def test_what_nothing_can_be_judged_by_is_refused_by_file_line_and_task(tmp_path, change, said):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(GOOD | {"task_id": "own/0"}) + "\n\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(JobError) as caught:
        read_tasks(path)
    assert f"{path}: line 3" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    if isinstance(change.get("task_id", ""), str) and "task_id" not in change:
        assert "(own/1)" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tests": ["if f(1) != 2:\n    raise ValueError(1)"]},
        {"tests": ["import math\nassert math.isclose(f(1), 2), 'two'"]},
        {"tests": ["for n in range(3):\n    assert f(n) == n + 1"]},
        {"tests": [], "check": "def check(candidate):\n    assert candidate(1) == 2\n"},
        {"tests": [], "check": "def check(candidate):\n    if candidate(1) != 2:\n        raise ValueError\n"},
        {"tests": [], "base_input": [[1]], "plus_input": {}, "reference": "def f(x): return x + 1"},
        {"setup": "from math import floor\nlimit = 3", "reference": None, "check": None},
        {"entry_point": "größe", "tests": ["assert größe(1)"]},
        {"atol": 0, "source": None, "of_its_own": 1},
    ],
)
def test_tasks_of_every_form_are_read(tmp_path, change):
    assert fault(GOOD | change) == ""
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(GOOD | change))
    assert read_tasks(path) == [GOOD | change]


def test_ids_are_unique_and_a_file_is_not_empty(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"task_id": name}) + "\n" for name in ("a", "b", "a")))
    with pytest.raises(JobError, match=r"own\.jsonl: line 3 \(a\): is a second a, after line 1"):
        read_tasks(path)
    path.write_text("\n")
    with pytest.raises(JobError, match=r"own\.jsonl: has no tasks"):
        read_tasks(path)


def test_prompts_that_do_not_fit_are_named_with_their_tokens():
    def tokenizer(text):
        return {"input_ids": text.split()}

    tasks = [GOOD | {"task_id": f"own/{n}", "prompt": "word " * n} for n in (1, 500, 400, 300)]
    instructions = len(tokenizer("")["input_ids"]) + too_long(tokenizer, tasks, 0)[0][1] - 1
    limit = instructions + 350
    assert too_long(tokenizer, tasks, limit) == [("own/500", instructions + 500), ("own/400", instructions + 400)]
    with pytest.raises(
        JobError, match=rf"own/500 has {instructions + 500}, own/400 .*grpo\.max_prompt_length is {limit}"
    ):
        require_short(tokenizer, tasks, limit, "own.jsonl")
    require_short(tokenizer, tasks, instructions + 500, "own.jsonl")


def test_every_field_says_what_it_means_and_can_be_checked():
    """A new field needs a comment on its line, a type that errors can name, and a row in docs/tasks.md."""
    commented = re.findall(r"^    (\w+): .*  # \S.*$", inspect.getsource(Task), re.MULTILINE)
    assert commented == list(KINDS)
    assert not [name for name, kind in KINDS.items() if is_of(object(), kind)]
    assert set(KINDS.values()) <= set(WORDS)
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    table = [
        line for line in page.partition("| field |")[2].partition("\n\n")[0].splitlines() if line.startswith("| `")
    ]
    assert sorted(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table))) == sorted(KINDS)


HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": "def twice(x):\n",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
INPUTS = {"base_input": [[1]], "plus_input": {}, "atol": 0, "contract": ""}
MBPP_PLUS = {
    **HUMANEVAL,
    **INPUTS,
    "task_id": "Mbpp/900",
    "assertion": "import math\nassert twice(2) == 4\nassert twice(0) == 0",
}
del MBPP_PLUS["test"]
MBPP = {
    "task_id": 901, "text": " Double it. ", "code": "def twice(x):\r\n    return 2 * x", "test_setup_code": "",
    "test_list": ["assert twice(1) == 2 ", "assert twice(3) == 6"], "challenge_test_list": [],
}  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_official_rows_of_all_four_files_become_tasks(tmp_path):
    plus = {**HUMANEVAL, **INPUTS, "task_id": "HumanEval/901"}
    path = write(tmp_path / "rows.jsonl", HUMANEVAL, plus, MBPP_PLUS, MBPP, GOOD)
    openai, evalplus, mbpp_plus, mbpp, own = read_tasks(path, lambda row: official.task_of(row, "v9"))
    assert openai["reference"] == "def twice(x):\n    return 2 * x\n"
    assert openai["check"] == evalplus["check"] == HUMANEVAL["test"]
    assert "base_input" not in openai
    assert evalplus["base_input"] == [[1]]
    assert mbpp_plus["setup"] == "import math"
    assert mbpp_plus["tests"] == ["assert twice(2) == 4", "assert twice(0) == 0"]
    assert mbpp["task_id"] == "Mbpp/901"
    assert mbpp["prompt"] == '"""\nDouble it.\nassert twice(1) == 2\n"""\n'
    assert (mbpp["entry_point"], mbpp["tests"][0]) == ("twice", "assert twice(1) == 2")
    assert mbpp["reference"] == "def twice(x):\n    return 2 * x\n"
    assert [task.get("source") for task in (openai, evalplus, mbpp_plus, mbpp, own)] == [
        "HumanEval", "HumanEval+ v9", "MBPP+ v9", "MBPP", None]  # fmt: skip
    assert own == GOOD


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (HUMANEVAL | {"canonical_solution": None}, "line 2 (HumanEval/900): has no canonical_solution"),
        (HUMANEVAL | {"prompt": 3}, "line 2 (HumanEval/900): its prompt is not a text"),
        (HUMANEVAL | {"test": None}, "line 2 (HumanEval/900): has no tests"),
        (HUMANEVAL | {"test": ["x"]}, "line 2 (HumanEval/900): its check is not a text"),
        (MBPP_PLUS | {"assertion": "assert twice("}, "line 2 (Mbpp/900): its assertion is no Python"),
        (MBPP | {"test_list": "assert twice(1) == 2"}, "line 2: its test_list is not a list of texts"),
        (MBPP | {"test_setup_code": None}, "line 2: has no test_setup_code"),
        (MBPP | {"test_list": ["assert triple(1) == 3"]}, "its entry_point '' is no name"),
    ],
)
def test_official_rows_that_nothing_can_be_made_of_are_named_by_line_and_field(tmp_path, row, said):
    path = write(tmp_path / "rows.jsonl", GOOD, row)
    with pytest.raises(JobError) as caught:
        read_tasks(path, official.task_of)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
