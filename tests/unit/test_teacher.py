"""The teacher's client and its cache, against a server that misbehaves."""

import asyncio
import json
import logging
import os
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.distill import teacher
from jobs.plumbing.params import load
from tests.teacher_server import TRANSIENT, Behaviour, TeacherServer

PARAMS = Path(__file__).parents[2] / "params.yaml"
ANSWER = answer_format.render("Add the two numbers.", "def add(a, b):\n    return a + b")
SECRET = "sk-very-secret-0123456789"


def distill(url: str = "http://127.0.0.1:9/v1", *assignments: str):
    return load(
        PARAMS,
        [
            f"distill.base_url={url}",
            "distill.api_key_env=FAKE_TEACHER_KEY",
            "distill.timeout=2.0",
            "distill.retries=3",
            *assignments,
        ],
    ).distill


def ask(settings, *prompts: str, key: str | None = SECRET) -> list[dict]:
    """The responses to prompts asked one after the other by one client."""

    async def work() -> list[dict]:
        client = teacher.Teacher(settings)
        try:
            return [await client.ask(teacher.request(settings, prompt, 0)) for prompt in prompts]
        finally:
            await client.close()

    if key is not None:
        os.environ["FAKE_TEACHER_KEY"] = key
    try:
        return asyncio.run(work())
    finally:
        os.environ.pop("FAKE_TEACHER_KEY", None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Back-off without the waiting; what Retry-After asks for is still waited for."""
    monkeypatch.setattr(teacher.random, "uniform", lambda low, high: 0.01)


@pytest.mark.parametrize("way", TRANSIENT)
def test_what_passes_when_repeated_is_repeated_once(way):
    with TeacherServer({"add": Behaviour(ANSWER, way)}) as server:
        settings = distill(server.url)
        (response,) = ask(settings, "add")
        assert teacher.read(teacher.request(settings, "add", 0), response).text == ANSWER
        assert server.asked["add"] == 2


@pytest.mark.parametrize(("way", "least"), [("429", 1.0), ("429_date", 0.4)])
def test_retry_after_is_waited_for(way, least):
    with TeacherServer({"add": Behaviour(ANSWER, way)}) as server:
        started = time.monotonic()
        ask(distill(server.url, "distill.timeout=5.0"), "add")
        assert time.monotonic() - started >= least


def test_a_wait_beyond_the_timeout_ends_the_job():
    with TeacherServer({"add": Behaviour(ANSWER, "429")}) as server, pytest.raises(JobError, match="asks to wait"):
        ask(distill(server.url, "distill.timeout=0.5"), "add")


@pytest.mark.parametrize("way", ["500", "stall", "cut", "reset", "router_error"])
def test_what_never_passes_ends_the_job_after_all_tries(way):
    with TeacherServer({"add": Behaviour(ANSWER, way, times=99)}) as server:
        with pytest.raises(JobError, match=r"4 tries"):
            ask(distill(server.url, "distill.timeout=0.3"), "add")
        assert server.asked["add"] == 4


@pytest.mark.parametrize("way", ["invalid_json", "no_choices", "surrogate"])
def test_a_body_that_stays_malformed_is_an_answer_of_its_own(way):
    with TeacherServer({"add": Behaviour(ANSWER, way, times=99)}) as server:
        (response,) = ask(distill(server.url), "add")
        assert response["error"]["type"] == "malformed"
        assert server.asked["add"] == 4


@pytest.mark.parametrize("way", ["huge", "gzip_bomb"])
def test_an_oversized_body_is_not_read_to_its_end(way):
    with TeacherServer({"add": Behaviour(ANSWER, way)}) as server:
        (response,) = ask(distill(server.url, "distill.timeout=30.0"), "add")
        assert response["error"]["type"] == "too_large"
        assert server.asked["add"] == 1


def test_a_refused_prompt_is_final_only_where_others_are_answered():
    with TeacherServer({"add": Behaviour(ANSWER), "bad": Behaviour(ANSWER, "400")}) as server:
        settings = distill(server.url)
        assert ask(settings, "add", "bad")[1]["error"]["type"] == "refused"
        with pytest.raises(JobError, match=r"status 400: .*content exists risk"):
            ask(settings, "bad")


def test_a_wrong_path_or_model_ends_the_job_at_once():
    with TeacherServer({}) as server:
        with pytest.raises(JobError, match="status 404"):
            ask(distill(server.url), "unknown")
        assert sum(server.asked.values()) == 1


def test_nobody_listens():
    with pytest.raises(JobError, match=r"127\.0\.0\.1:9.*no connection"):
        ask(distill("http://127.0.0.1:9/v1"), "add")


def test_the_key_is_sent_and_seen_nowhere_else(caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    echo = Behaviour(answer_format.render(f"I was given {SECRET}.", "x = 1"))
    with TeacherServer({"echo": echo}) as server:
        (response,) = ask(distill(server.url), "echo")
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
        assert SECRET not in json.dumps(response)
        assert SECRET not in json.dumps(server.bodies)
    monkeypatch.setattr(teacher.Teacher, "refusal", refuse_with_key(teacher.Teacher.refusal))
    with TeacherServer({}) as server, pytest.raises(JobError) as caught:
        ask(distill(server.url), "unknown")
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)
    assert SECRET not in caplog.text


def refuse_with_key(refusal):
    """An endpoint whose error message repeats the key, as some do."""

    def echoing(self, request, error):
        error.message += f" (you sent {SECRET})"
        return refusal(self, request, error)

    return echoing


def test_the_key_leaves_the_environment_with_the_first_request():
    with TeacherServer({"add": Behaviour(ANSWER)}) as server:
        settings = distill(server.url)
        os.environ["FAKE_TEACHER_KEY"] = SECRET
        client = teacher.Teacher(settings)
        client.connect()
        assert "FAKE_TEACHER_KEY" not in os.environ


def test_a_missing_key_is_named():
    with pytest.raises(UsageError, match="FAKE_TEACHER_KEY is not set"):
        ask(distill(), "add", key=None)


def test_an_endpoint_without_a_key():
    with TeacherServer({"add": Behaviour(ANSWER)}) as server:
        assert ask(distill(server.url, "distill.api_key_env=null"), "add", key=None)[0]["choices"]


def test_the_body_is_what_the_request_says():
    with TeacherServer({"add": Behaviour(ANSWER)}) as server:
        settings = distill(
            server.url,
            "distill.extra_body={seed: 1, max_tokens: null, max_completion_tokens: 7}",
            "distill.temperature=null",
        )
        ask(settings, "add")
        assert server.bodies == [teacher.request(settings, "add", 0)["body"]]
        assert server.bodies[0] == {
            "model": "deepseek-reasoner",
            "messages": answer_format.messages("add"),
            "seed": 1,
            "max_completion_tokens": 7,
        }


@pytest.mark.parametrize("key", ["model", "messages", "stream", "n"])
def test_the_extra_body_cannot_ask_for_something_else(key):
    with pytest.raises(UsageError, match=rf"distill\.extra_body: .*{key}"):
        distill("http://127.0.0.1:9/v1", f"distill.extra_body={{{key}: 2}}")


@pytest.mark.parametrize(("way", "thinking"), [("think", "let me see"), ("reasoning", "let me see"), ("right", "hm")])
def test_thinking_is_kept_apart(way, thinking):
    behaviour = Behaviour(ANSWER, way, thinking="hm" if way == "right" else "")
    with TeacherServer({"add": behaviour}) as server:
        settings = distill(server.url)
        reply = teacher.read(teacher.request(settings, "add", 0), ask(settings, "add")[0])
        assert (reply.text.strip(), reply.thinking) == (ANSWER, thinking)


def test_unknown_usage_costs_the_most():
    with TeacherServer({"add": Behaviour(ANSWER, "no_usage")}) as server:
        settings = distill(server.url)
        request = teacher.request(settings, "add", 0)
        reply = teacher.read(request, ask(settings, "add")[0])
        assert (reply.tokens_in, reply.tokens_out) == teacher.reservation(request)
        assert reply.tokens_out == settings.max_tokens


def test_attempts_prompts_models_and_endpoints_have_keys_of_their_own():
    one, other = distill(), distill("http://127.0.0.1:9/v2")
    keys = [
        teacher.request_key(teacher.request(one, "add", 0)),
        teacher.request_key(teacher.request(one, "add", 1)),
        teacher.request_key(teacher.request(one, "sub", 0)),
        teacher.request_key(teacher.request(other, "add", 0)),
        teacher.request_key(teacher.request(distill("http://127.0.0.1:9/v1", "distill.model=x"), "add", 0)),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == teacher.request_key(json.loads(json.dumps(teacher.request(distill(), "add", 0))))


def test_the_cache_returns_what_was_put_and_refuses_what_was_changed(tmp_path):
    request = teacher.request(distill(), "add", 0)
    responses = teacher.Responses(tmp_path)
    assert responses.get(request) is None
    responses.put(request, teacher.response(request, "räght\u2028"))
    (path,) = tmp_path.iterdir()
    (tmp_path / f".{path.name}.partial").write_text("{")  # what a kill leaves
    assert teacher.Responses(tmp_path).get(request)["choices"][0]["message"]["content"] == "räght\u2028"
    assert list(tmp_path.iterdir()) == [path]

    path.write_text(path.read_text().replace("add", "sub"))
    with pytest.raises(JobError, match=f"{path.name}.*key"):
        responses.get(request)
    path.write_text("{")
    with pytest.raises(JobError, match=path.name):
        responses.get(request)


def test_recorded_responses_are_checked_by_line(tmp_path):
    request = teacher.request(distill(), "add", 0)
    row = teacher.record(request, teacher.response(request, ANSWER))
    recorded = tmp_path / "teacher.jsonl"
    recorded.write_text(json.dumps(row) + "\n")
    assert teacher.Responses(tmp_path / "responses", recorded).get(request) == row["response"]
    assert teacher.Responses(tmp_path / "responses", recorded).get(teacher.request(distill(), "add", 1)) is None
    recorded.write_text(json.dumps(row) + "\n" + json.dumps({**row, "key": "0" * 64}) + "\n")
    with pytest.raises(JobError, match=r"line 2: its key"):
        teacher.Responses(tmp_path / "responses", recorded)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), (None, None), ("soon", None), ("", None), ("nan", None), ("inf", None)],
)
def test_retry_after(value, seconds):
    assert teacher.retry_after(value) == seconds


def test_retry_after_as_a_date():
    assert teacher.retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert teacher.retry_after(formatdate(time.time() - 30, usegmt=True)) == 0.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "usage",
                    "error",
                    "model",
                    "finish_reason",
                    "prompt_tokens",
                    "reasoning",
                    "type",
                ]
            ),
            inner,
        )
    ),
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_any_body_is_read_or_refused(value):
    request = {"url": "", "attempt": 0, "body": {"messages": answer_format.messages("add"), "max_tokens": 9}}
    try:
        response = teacher.completion(json.dumps({"choices": [{"message": value}], "usage": value}).encode())
    except (ValueError, teacher.Transient):
        return
    reply = teacher.read(request, response)
    assert isinstance(reply.text, str)
    assert reply.tokens_in >= 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[" * 100000,
        b'{"choices": null}',
        b'{"choices": [null]}',
        b"\xff",
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": {"0": {}}}',
    ],
)
def test_bodies_that_are_no_completion(body):
    with pytest.raises(ValueError, match=r"\w"):
        teacher.completion(body)
