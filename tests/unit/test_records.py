"""Task records: what is refused, and that the message says where."""

import json

import pytest

from jobs.common.errors import JobError
from jobs.common.prompts import require_short, too_long
from jobs.common.records import fault, read_tasks

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
        ({"tests": []}, "has no tests"),
        ({"tests": "assert f(1) == 2"}, "not a list of texts"),
        ({"tests": [None]}, "not a list of texts"),
        ({"tests": ["assert f(1) == 2", "assert f(1) =="]}, "test 2 is no Python"),
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
    ],
)
def test_records_of_every_form_are_read(tmp_path, change):
    assert fault(GOOD | change) == ""
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(GOOD | change))
    assert read_tasks(path) == [GOOD | change]


def test_ids_are_unique_and_a_file_is_not_empty(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"task_id": name}) + "\n" for name in ("a", "b", "a")))
    with pytest.raises(JobError, match=r"own\.jsonl: line 3 is a second a, after line 1"):
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
