"""What is kept of the teacher's answers, and that neither order of arrival nor concurrency changes it."""

import asyncio
import json
import random
import re
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.distill import cache, datacard, job, reply, teacher
from jobs.distill.collect import Collection, Collector
from jobs.distill.examine import REASONS, Benchmarks, Candidate, examine, unfenced
from jobs.distill.refusals import words
from jobs.extraction.worker import Extractor
from jobs.plumbing.params import load
from tests.teacher_server import Behaviour, TeacherServer

PARAMS = load(Path(__file__).parents[2] / "params.yaml", ["distill.similarity=0.9", "distill.api_key_env=null"])
REASONING = "Add the two numbers that are given, and return their sum."


def with_settings(**changes):
    return PARAMS.distill.model_copy(update=changes)


def task(i: int, prompt: str = "") -> dict:
    return {
        "task_id": f"T/{i}",
        "prompt": prompt or f"task number {i}",
        "entry_point": f"f{i}",
        "setup": "",
        "tests": [],
        "reference": "",
        "source": "here",
        "license": "MIT",
    }


def code(i: int, salt: str = "") -> str:
    words = " + ".join(f"x{(i * 7 + k * 13) % 1000}{salt}" for k in range(12))
    return f"def f{i}():\n    return {words}"


@lru_cache
def extractor() -> Extractor:
    return Extractor()


def examined(text: str, settings=None, **changes) -> tuple[str, str]:
    candidate = Candidate(task(1), 0, cache.request(PARAMS.distill, "p", 0))
    values = {"thinking": "", "model": PARAMS.distill.model, "finish": "stop", "tokens_in": 1, "tokens_out": 1}
    candidate.reply = reply.Reply(text, **values | changes)
    return examine(candidate, settings or PARAMS.distill, extractor())


RIGHT = answer_format.render(REASONING, code(1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RIGHT, ""),
        (RIGHT.lower(), ""),
        (RIGHT + "\nI hope this helps.", "tags"),
        ("Sure! " + RIGHT, "tags"),
        (RIGHT.replace("</END_WORKING_OUT>", "</START_WORKING_OUT>"), "tags"),
        (RIGHT + RIGHT, "tags"),
        ("", "tags"),
        (answer_format.render("Short.", code(1)), "length"),
        (answer_format.render("x" * 4001, code(1)), "length"),
        (answer_format.render(REASONING, "f1=id"), "length"),
        (answer_format.render(REASONING, code(1) + "#" * 4000), "length"),
        (answer_format.render(REASONING, "```python\n" + code(1) + "\n```"), ""),
        ("```\n" + RIGHT + "\n```\n", ""),
        ("\ufeff" + RIGHT, "tags"),
        (answer_format.render(REASONING, "def f1(:\n    return 1"), "syntax"),
        (answer_format.render(REASONING, "def f1():\n    return '\0'"), "characters"),
        (answer_format.render(REASONING + "\x1b[31m", code(1)), "characters"),
        (answer_format.render(REASONING, "f1 = " + "(" * 3000 + ")" * 900), "syntax"),
        (answer_format.render(REASONING, "f1 = " + "-" * 3900 + "1"), "syntax"),
        (answer_format.render(REASONING, code(2)), "entry_point"),
        (answer_format.render(REASONING, "class A:\n    def f1(self):\n        return 1"), "entry_point"),
        (answer_format.render(REASONING, "if True:\n    pass\n    f1()"), "entry_point"),
    ],
)
def test_reasons_seen_without_running(text, reason):
    assert examined(text)[0] == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish": "length"}, "truncated"),
        ({"finish": "content_filter"}, "truncated"),
        ({"finish": ""}, ""),
        ({"finish": "whatever"}, ""),
        ({"finish": "tool_calls"}, "truncated"),
        ({"model": "gpt-0-mini"}, "model"),
        ({"model": ""}, ""),
        ({"model": "deepseek-v4-flash2"}, "model"),
        ({"model": "deepseek-v4-flash-2026-01-31"}, ""),
        ({"error": "too_large"}, "too_large"),
        ({"error": "malformed"}, "malformed"),
        ({"error": "refused"}, "refused"),
    ],
)
def test_reasons_in_the_response(changes, reason):
    assert examined(RIGHT, **changes)[0] == reason


def test_every_reason_is_counted():
    for reason in ("too_large", "malformed", "refused", "failed", "timeout", "crashed", "invalid"):
        assert reason in REASONS
    with pytest.raises(KeyError):
        REASONS["infrastructure_error"]  # that one ends the job


@pytest.mark.parametrize(
    ("change", "duplicate"),
    [
        (lambda text: text, True),
        (lambda text: text.replace("f1", "another_name"), True),
        (lambda text: text + "\n    # end", True),
        (lambda text: text.replace("  ", "    "), True),
        (lambda text: "def f1():\n    return sum([3, 5]) * len('abc') + max(7, 9)", False),
    ],
)
def test_near_duplicates(change, duplicate):
    collection = Collection(0.9, Benchmarks(13))
    for i in (1, 2):
        given = code(1) if i == 1 else change(code(1))
        entry_point = "another_name" if "another_name" in given else "f1"
        record = task(i, prompt="the same task, word for word") | {"entry_point": entry_point}
        candidate = Candidate(record, 0, {})
        candidate.answer = answer_format.Answer(REASONING, given)
        collection.decide(candidate)
    assert [c.reason for c in collection.decided] == ["", "near_duplicate" if duplicate else ""]


def test_an_answer_that_repeats_a_benchmark(tmp_path):
    (tmp_path / "benchmarks.jsonl").write_text(
        json.dumps(
            {
                "task_id": "HumanEval/0",
                "reference": "def g(a):\n    return sorted(a)[0]",
                "prompt": "Check if in given list of numbers, are any two numbers closer to each other",
            }
        )
        + "\n"
    )
    benchmarks = Benchmarks.read(tmp_path / "benchmarks.jsonl", 13)
    repeats = "Now: check if, in GIVEN list of numbers, are any two numbers closer to each one?"
    for reasoning, program, reason in (
        (repeats, code(1), "contaminated"),
        (REASONING, code(1), ""),
        (REASONING, f'def f1():\n    """{repeats}"""', "contaminated"),
        (" ".join(repeats.split()[5:]), code(1), ""),
    ):
        collection = Collection(0.9, benchmarks)
        candidate = Candidate(task(1), 0, {})
        candidate.answer = answer_format.Answer(reasoning, program)
        collection.decide(candidate)
        assert candidate.reason == reason
        assert bool(collection.accepted) != bool(reason)


class FakeTeacher:
    """Answers by (task, attempt) after a random number of turns of the event loop."""

    def __init__(self, right: dict[tuple[int, int], str], rng: random.Random) -> None:
        self.right, self.rng = right, rng
        self.asked: list[tuple[int, int]] = []
        self.answered = self.failed = self.flying = self.most = 0
        self.closing = False

    async def ask(self, request: dict) -> dict:
        number = int(request["body"]["messages"][-1]["content"].split()[-1])
        self.asked.append((number, request["attempt"]))
        self.flying += 1
        self.most = max(self.most, self.flying)
        for _ in range(self.rng.randrange(20)):
            await asyncio.sleep(0)
        self.flying -= 1
        what = self.right[number, request["attempt"]]
        text = (
            answer_format.render(REASONING, "broken")
            if what == "failed"
            else answer_format.render(REASONING, code(number))
        )
        return cache.response(request, "?" if what == "tags" else text)

    async def close(self) -> None:
        pass


class FakeSandbox:
    def submit(self, task: dict, code: str) -> Future:
        future: Future = Future()
        future.set_result(SimpleNamespace(status="passed", passed=True, error=""))
        return future


class Kept:
    """A cache that an earlier run left: the answers to the tasks of these numbers."""

    recorded = None

    def __init__(self, settings, *numbers: int) -> None:
        asked = [(number, cache.request(settings, task(number)["prompt"], 0)) for number in numbers]
        self.rows = {
            cache.request_key(request): cache.response(request, answer_format.render(REASONING, code(number)))
            for number, request in asked
        }

    def get(self, request):
        return self.rows.get(cache.request_key(request))

    def put(self, request, response):
        self.rows[cache.request_key(request)] = response


class NoResponses:
    recorded = None

    def get(self, request):
        return None

    def put(self, request, response):
        pass


def collector(tasks: list[dict], settings, asked, sandbox) -> Collector:
    collection = Collection(settings.similarity, Benchmarks(13))
    return Collector(tasks, settings, collection, NoResponses(), asked, sandbox, extractor())


@pytest.mark.parametrize("kept", [(), (1,)], ids=["a first run", "a run that goes on"])
def test_a_refused_prompt_ends_a_run_only_where_the_endpoint_has_answered_none(kept):
    """What an earlier run was answered counts: a refusal is not kept, so it may be the first to come after a kill."""
    answer = answer_format.render(REASONING, code(3))
    with TeacherServer({task(2)["prompt"]: Behaviour("", "400"), task(3)["prompt"]: Behaviour(answer)}) as server:
        chosen = with_settings(base_url=server.url, examples=2, concurrency=1, api_key_env=None)
        order = [task(1), task(2), task(3)] if kept else [task(2), task(3)]
        work = Collector(
            order,
            chosen,
            Collection(chosen.similarity, Benchmarks(13)),
            Kept(chosen, *kept),
            teacher.Teacher(chosen),
            FakeSandbox(),
            extractor(),
        )
        if not kept:
            with pytest.raises(JobError, match="content exists risk"):
                asyncio.run(work.collect())
            return
        collection = asyncio.run(work.collect())
    assert [candidate.task["task_id"] for candidate in collection.accepted] == ["T/1", "T/3"]
    assert [candidate.reason for candidate in collection.decided] == ["", "refused", ""]


def collected(what: dict, tasks: list[dict], settings, seed: int):
    asked = FakeTeacher(what, random.Random(seed))
    try:
        collection = asyncio.run(collector(tasks, settings, asked, FakeSandbox()).collect())
        return asked, collection, ""
    except JobError as error:
        return asked, None, str(error)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_shortest_beginning_of_the_sequence_whatever_the_order(data):
    many, attempts = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    wanted = data.draw(st.integers(1, many))
    what = {
        (i, a): data.draw(st.sampled_from(["right", "right", "tags", "failed"]))
        for a in range(attempts)
        for i in range(many)
    }
    chosen = with_settings(
        examples=wanted,
        attempts=attempts,
        concurrency=data.draw(st.integers(1, 8)),
        patience=data.draw(st.sampled_from([3, 1000])),
        similarity=1.0,
    )
    # The plain loop, one request after the other.
    accepted, sequence, in_a_row = [], [], 0
    for place in ((i, a) for a in range(attempts) for i in range(many)):
        if len(accepted) == wanted or in_a_row == chosen.patience:
            break
        if place[0] in accepted:
            continue
        sequence.append(place)
        in_a_row = 0 if what[place] == "right" else in_a_row + 1
        if what[place] == "right":
            accepted.append(place[0])

    asked, collection, error = collected(what, [task(i) for i in range(many)], chosen, data.draw(st.integers()))
    assert asked.most <= chosen.concurrency
    if len(accepted) == wanted:
        assert collection is not None, error
        assert [c.task["task_id"] for c in collection.accepted] == [f"T/{i}" for i in accepted]
        assert [(int(c.task["task_id"][2:]), c.attempt) for c in collection.decided] == sequence
        assert asked.asked == sequence
    else:
        assert collection is None
        assert ("in a row" if in_a_row == chosen.patience else "every task was asked") in error
        if in_a_row < chosen.patience:
            assert asked.asked == sequence


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_the_budgets_are_never_exceeded(concurrency):
    tasks, what = [task(i) for i in range(50)], {(i, 0): "right" for i in range(50)}
    few = with_settings(examples=50, attempts=1, concurrency=concurrency, max_requests=20)
    asked, collection, error = collected(what, tasks, few, 1)
    assert collection is None
    assert len(asked.asked) == 20
    assert "the budget ended before there were 50 examples; 20 examples from 20 answers" in error

    cost = sum(
        reply.read(r, cache.response(r, answer_format.render(REASONING, code(1)))).tokens_out
        for r in [cache.request(few, "task number 1", 0)]
    )
    tight = with_settings(examples=50, attempts=1, concurrency=concurrency, max_tokens=500, max_total_tokens=6000)
    asked, collection, error = collected(what, tasks, tight, 1)
    assert collection is None
    assert "the budget ended" in error
    assert 6000 / (cost + 600) / 2 < len(asked.asked) < 6000 / cost


def test_a_failing_sandbox_ends_the_job():
    class Broken:
        def submit(self, task, code):
            future: Future = Future()
            future.set_result(SimpleNamespace(status="infrastructure_error", passed=False, error="out of memory"))
            return future

    chosen = with_settings(examples=3, concurrency=2)
    asked = FakeTeacher({(i, 0): "right" for i in range(5)}, random.Random(1))
    with pytest.raises(JobError, match=r"the sandbox failed on T/[01]: out of memory"):
        asyncio.run(collector([task(i) for i in range(5)], chosen, asked, Broken()).collect())


def test_the_card_is_made_of_the_numbers():
    asked, collection, _ = collected(
        {(i, 0): "right" if i % 2 else "tags" for i in range(10)},
        [task(i) for i in range(10)],
        with_settings(examples=4, attempts=1),
        1,
    )
    chosen = with_settings(examples=4)
    metrics = job.metrics_of(collection, chosen)
    assert metrics["requests"] == len(asked.asked) == 8
    assert metrics["acceptance"] == metrics["rejected"]["tags"] == 0.5
    assert sum(metrics["rejected"].values()) + metrics["acceptance"] == 1
    card = datacard.card([job.example(c) for c in collection.accepted], metrics, REASONS, chosen)
    assert "- Tasks: 4 from here, licence MIT" in card
    assert "| tags | the tag format is not obeyed | 50.0% |" in card


@given(st.text("`~ \n\tapy", max_size=30))
def test_a_fence_is_taken_off_by_its_definition(text):
    """What the regular expression says that would take hours over some texts of the length of an answer."""
    fenced = re.compile(r"\s*(`{3,}|~{3,})[^\n`~]*\n(.*?)\n?[ \t]*\1\s*", re.DOTALL)
    match = fenced.fullmatch(text)
    assert unfenced(text) == (match[2] if match and match[1] not in match[2] else text)


@pytest.mark.parametrize("text", ["```\n" + " " * 2_000_000 + "x", "```\n" + "\n```" * 500_000 + "x", "`" * 2_000_000,
                                  "\n" * 2_000_000 + "~~~\n" + "\t" * 2_000_000, "```\n" + " \n" * 1_000_000])  # fmt: skip
def test_a_text_made_to_hold_up_the_reader_does_not(text):
    assert unfenced(text) == text


@pytest.mark.parametrize(
    "page", ["<" * 3_000_000, "<script " * 400_000, "<style><" * 400_000, "<html>" + "<p" * 900_000]
)
def test_a_proxys_page_made_to_hold_up_the_reader_does_not(page):
    said, whole = words(page, "502")
    assert len(said) <= 1000
    assert len(whole) <= 10_000
