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
from jobs.distill import cache, refusals, reply, teacher
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
            return [await client.ask(cache.request(settings, prompt, 0)) for prompt in prompts]
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
        assert reply.read(cache.request(settings, "add", 0), response).text == ANSWER
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


def test_the_key_is_sent_and_seen_nowhere_else(caplog):
    caplog.set_level(logging.DEBUG)
    echo = Behaviour(answer_format.render(f"I was given {SECRET}.", "x = 1"))
    with TeacherServer({"echo": echo}) as server:
        (response,) = ask(distill(server.url), "echo")
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
        assert SECRET not in json.dumps(response)
        assert SECRET not in json.dumps(server.bodies)
    with TeacherServer({"add": Behaviour(ANSWER, "401_echo")}) as server, pytest.raises(JobError) as caught:
        ask(distill(server.url), "add")
    assert SECRET not in str(caught.value)
    assert "you sent ***" in str(caught.value)
    assert SECRET not in caplog.text


def test_the_key_is_not_seen_encoded_either():
    import base64

    escaped = "".join(f"\\u{ord(letter):04x}" for letter in SECRET)
    body = json.dumps({"choices": [{"message": {"content": f"{base64.b64encode(SECRET.encode()).decode()} KEY"}}]})
    client = teacher.Teacher(distill())
    client.key = SECRET
    assert client.clean(reply.completion(body.replace("KEY", escaped).encode()))["choices"][0]["message"][
        "content"
    ] in (
        "*** ***",
        "***= ***",
        "***== ***",
    )


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
        assert server.bodies == [cache.request(settings, "add", 0)["body"]]
        assert server.bodies[0] == {
            "model": "deepseek-v4-flash",
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
        found = reply.read(cache.request(settings, "add", 0), ask(settings, "add")[0])
        assert (found.text.strip(), found.thinking) == (ANSWER, thinking)


def test_unknown_usage_costs_the_most():
    with TeacherServer({"add": Behaviour(ANSWER, "no_usage")}) as server:
        settings = distill(server.url)
        request = cache.request(settings, "add", 0)
        found = reply.read(request, ask(settings, "add")[0])
        assert (found.tokens_in, found.tokens_out) == reply.reservation(request)
        assert found.tokens_out == settings.max_tokens


def test_attempts_prompts_models_and_endpoints_have_keys_of_their_own():
    one, other = distill(), distill("http://127.0.0.1:9/v2")
    keys = [
        cache.request_key(cache.request(one, "add", 0)),
        cache.request_key(cache.request(one, "add", 1)),
        cache.request_key(cache.request(one, "sub", 0)),
        cache.request_key(cache.request(other, "add", 0)),
        cache.request_key(cache.request(distill("http://127.0.0.1:9/v1", "distill.model=x"), "add", 0)),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.request_key(json.loads(json.dumps(cache.request(distill(), "add", 0))))


def test_the_cache_returns_what_was_put_and_refuses_what_was_changed(tmp_path):
    request = cache.request(distill(), "add", 0)
    responses = cache.Responses(tmp_path)
    assert responses.get(request) is None
    responses.put(request, cache.response(request, "räght\u2028"))
    (path,) = tmp_path.iterdir()
    kept = tmp_path.with_name("kept")
    for folder, name, age in ((tmp_path, "new", 0), (kept, "new", 0), (kept, "old", 7200)):
        folder.mkdir(exist_ok=True)
        partial = folder / f".{path.stem}.{name}.partial"  # what a kill leaves, or another run is writing to
        partial.write_text("{")
        os.utime(partial, (time.time() - age,) * 2)
    (tmp_path / ".mine.partial").write_text("not the cache's")
    responses = cache.Responses(tmp_path, kept=kept)
    assert responses.get(request)["choices"][0]["message"]["content"] == "räght\u2028"
    assert {other.name for other in tmp_path.iterdir()} == {path.name, ".mine.partial"}
    assert {other.name for other in kept.iterdir()} == {path.name, f".{path.stem}.new.partial"}
    responses = cache.Responses(tmp_path)

    path.write_text(path.read_text().replace("add", "sub"))
    with pytest.raises(JobError, match=f"{path.name}.*key"):
        responses.get(request)
    path.write_text("{")
    with pytest.raises(JobError, match=path.name):
        responses.get(request)


def test_recorded_responses_are_checked_by_line(tmp_path):
    request = cache.request(distill(), "add", 0)
    row = cache.record(request, cache.response(request, ANSWER))
    recorded = tmp_path / "teacher.jsonl"
    recorded.write_text(json.dumps(row) + "\n")
    assert cache.Responses(tmp_path / "responses", recorded).get(request) == row["response"]
    assert cache.Responses(tmp_path / "responses", recorded).get(cache.request(distill(), "add", 1)) is None
    recorded.write_text(json.dumps(row) + "\n" + json.dumps({**row, "key": "0" * 64}) + "\n")
    with pytest.raises(JobError, match=r"line 2: its key"):
        cache.Responses(tmp_path / "responses", recorded)


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
        response = reply.completion(json.dumps({"choices": [{"message": value}], "usage": value}).encode())
    except ValueError:
        return
    found = reply.read(request, response)
    assert isinstance(found.text, str)
    assert found.tokens_in >= 0


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
        reply.completion(body)


ASKED = {"url": "", "attempt": 0, "body": {"messages": answer_format.messages("add"), "max_tokens": 9}}


def whole(content, finish="stop", **changes) -> dict:
    message = {"role": "assistant", "content": content, **changes.pop("message", {})}
    return {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **changes}


@pytest.mark.parametrize(
    ("response", "text", "thinking"),
    [
        (whole([{"type": "text", "text": ANSWER[:20]}, {"type": "text", "text": ANSWER[20:]}]), ANSWER, ""),
        (whole([{"type": "output_text", "text": ANSWER}]), ANSWER, ""),
        (
            whole(
                [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": ANSWER}]
            ),
            ANSWER,
            "hm",
        ),
        (whole([{"type": "reasoning", "text": "hm"}, ANSWER]), ANSWER, "hm"),
        (whole(ANSWER, message={"reasoning_content": "hm"}), ANSWER, "hm"),
        (whole(ANSWER, message={"reasoning": "hm"}), ANSWER, "hm"),
        (whole(ANSWER, message={"thinking": "hm"}), ANSWER, "hm"),
        (whole(ANSWER, message={"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}), ANSWER, "hm"),
        (whole(ANSWER, message={"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}), ANSWER, "hm"),
        (whole(f"<think>hm</think>{ANSWER}"), ANSWER, "hm"),
        (whole(f"hm\n</think>\n\n{ANSWER}"), ANSWER, "hm"),
        (whole(f"<Thinking>\nhm</Thinking>{ANSWER}"), ANSWER, "hm"),
        (whole(f"[THINK]hm[/THINK]{ANSWER}"), ANSWER, "hm"),
        (whole("<think>so long", finish="length"), "", "so long"),
        (whole(f"<think>like {ANSWER}</think>{ANSWER}"), ANSWER, f"like {ANSWER}"),
        (
            whole(ANSWER.replace("return", "'</think>'\n    return")),
            ANSWER.replace("return", "'</think>'\n    return"),
            "",
        ),
        (whole(ANSWER.replace("\n", "\r\n")), ANSWER, ""),
        (whole(ANSWER.replace("\n", "\r")), ANSWER, ""),
        (whole("\ufeff" + ANSWER), ANSWER, ""),
        ({**whole("x"), "choices": [{"index": 1, "message": {"content": "b"}}, *whole(ANSWER)["choices"]]}, ANSWER, ""),
        (whole(ANSWER, error=None), ANSWER, ""),
        (whole(ANSWER, error={"message": "this name is deprecated"}), ANSWER, ""),
    ],
)
def test_an_answer_is_read_however_it_comes(response, text, thinking):
    found = reply.read(ASKED, reply.completion(json.dumps(response).encode()))
    assert (found.text.strip(), found.thinking, found.error) == (text, thinking, "")


@pytest.mark.parametrize("finish", ["stop", "STOP", "eos", "eos_token", "end_turn", "FINISH_REASON_STOP", "completed"])
def test_a_models_own_end_has_many_names(finish):
    assert reply.read(ASKED, whole(ANSWER, finish)).finish == "stop"


def test_a_refusal_inside_an_answer_is_read_with_its_words():
    for response in (
        whole(None, message={"refusal": "I cannot help"}),
        whole([{"type": "refusal", "refusal": "I cannot help"}]),
    ):
        found = reply.read(ASKED, response)
        assert (found.error, found.detail) == ("refused", "I cannot help")
    assert reply.read(ASKED, whole("half", "content_filter")).error == "refused"


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ({"error": "model is loading"}, "model is loading"),
        (
            {"error": {"message": "Provider returned error", "metadata": {"raw": "upstream is full"}}},
            "upstream is full",
        ),
        (whole("", "error", error={"message": "cut by upstream"}), "cut by upstream"),
        (whole("half", None, error={"message": "cut by upstream"}), "cut by upstream"),
        (whole("half", "insufficient_system_resource"), "insufficient_system_resource"),
        (whole("half", "abort"), "abort"),
    ],
)
def test_a_failure_with_status_200_is_the_endpoints(response, words):
    with pytest.raises(reply.Failed, match=words):
        reply.completion(json.dumps(response).encode())
    assert not reply.is_answer(response)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7}, (5, 7)),
        ({"prompt_tokens": "5", "completion_tokens": 7.0}, (5, 7)),
        ({"input_tokens": 5, "output_tokens": 7}, (5, 7)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 100}, (5, 95)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": True, "completion_tokens": -1}, None),
        (None, None),
        ([], None),
        (300, None),
    ],
)
def test_usage(usage, tokens):
    found = reply.read(ASKED, reply.completion(json.dumps(whole(ANSWER, usage=usage)).encode()))
    assert (found.tokens_in, found.tokens_out) == (tokens or reply.reservation(ASKED))


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("m", "m", True), ("m", "M", True), ("m", "", True), ("m", "m-2026-01-31", True), ("m", "m-0731", True),
        ("m", "m-mini", False), ("m", "m-mini-2026-01-31", False), ("m", "m2", False), ("m", "n", False),
        ("owner/m", "m", True), ("owner/m:free", "owner/m", True), ("qwen:4b", "qwen:32b", False),
        ("qwen", "qwen:latest", True), ("smol", "/models/Smol.gguf", True), ("m", "nickname", True),
    ],
)  # fmt: skip
def test_a_model_is_known_by_its_names(asked, answered, same):
    assert reply.same_model(asked, answered, ["nickname"]) == same


@pytest.mark.parametrize(
    ("status", "text", "waits", "expected"),
    [
        (402, "Insufficient Balance", False, "money"),
        (400, "Your credit balance is too low to access the API", False, "money"),
        (429, "You exceeded your current quota, please check your plan and billing details", False, "money"),
        (429, "You exceeded your current quota. Please retry in 20s", False, "busy"),
        (429, "You exceeded your current quota", True, "busy"),
        (429, "Rate limit reached for requests per minute; see billing", False, "busy"),
        (403, "Your account is in arrears", False, "money"),
        (503, "overloaded", False, "busy"),
        (529, "overloaded", False, "busy"),
        (401, "Authentication Fails", False, "key"),
        (400, "API key not valid. Please pass a valid API key.", False, "key"),
        (403, "blocked", False, "key"),
        (400, "Content Exists Risk", False, "content"),
        (403, "Your input was flagged by moderation", False, "content"),
        (400, "maximum context length is 4096 tokens", False, "request"),
        (404, "The model has been deprecated", False, "endpoint"),
    ],
)
def test_causes(status, text, waits, expected):
    assert refusals.cause(status, text, waits) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"message": "no", "code": 3}, "no"),
        ([{"error": {"message": "no"}}], "no"),
        ({"detail": [{"loc": ["body"], "msg": "no"}]}, "no"),
        ("<html><head><style>p {}</style></head><h1>400\nBad Request</h1></html>", "400 Bad Request"),
        ("plain", "plain"),
        (None, "otherwise"),
    ],
)
def test_the_endpoints_own_words_are_found(body, message):
    assert refusals.words(body, "otherwise")[0] == message


def test_that_there_is_no_answer_is_stored_only_once_a_run_is_settled(tmp_path):
    request = cache.request(distill(), "add", 0)
    refused = {"error": {"type": "refused", "message": "status 400: no"}}
    responses = cache.Responses(tmp_path)
    responses.put(request, refused)
    assert list(tmp_path.iterdir()) == []
    responses.settle([request, cache.request(distill(), "sub", 0)])
    assert cache.Responses(tmp_path).get(request)["error"]["type"] == "refused"


@pytest.mark.parametrize(
    "response",
    [{"error": {"type": "malformed", "message": ""}}, {"error": {"type": "refused", "message": ""}}, {"detail": "no"},
     whole("", "error", error={"message": "upstream"})],
)  # fmt: skip
def test_what_an_older_cache_holds_as_a_fact_and_is_none_is_asked_again(tmp_path, response):
    request = cache.request(distill(), "add", 0)
    key = cache.request_key(request)
    (tmp_path / f"{key}.json").write_text(json.dumps(cache.record(request, response)))
    assert cache.Responses(tmp_path).get(request) is None


def test_what_was_answered_is_kept_where_dvc_does_not_clear(tmp_path, monkeypatch):
    project, request = tmp_path / "project", cache.request(distill(), "add", 0)
    copy = project / ".dvc/tmp/exps/standalone/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    kept = cache.outside_experiments(Path(".cache/responses"))
    assert kept == project / ".cache/responses"
    response = cache.response(request, ANSWER)
    cache.Responses(Path("data/responses"), kept=kept).put(request, response)
    monkeypatch.chdir(project)
    assert cache.outside_experiments(Path(".cache/responses")) == Path(".cache/responses")
    assert cache.Responses(Path("data/responses"), kept=Path(".cache/responses")).get(request) == response
    assert cache.Responses(Path("data/responses")).get(request) == response, "the replay's cache is filled from it"
    # And the other way: what came with `dvc pull`.
    assert cache.Responses(Path("data/responses"), kept=Path("anew")).get(request) == response
    assert cache.Responses(Path("empty"), kept=Path("anew")).get(request) == response


def test_no_credit_ends_the_job_at_once_with_the_endpoints_words():
    with TeacherServer({"add": Behaviour(ANSWER, "429_quota", times=99)}) as server:
        with pytest.raises(JobError, match=r"status 429: your quota .* kept"):
            ask(distill(server.url), "add")
        assert server.asked["add"] == 1


def test_a_failure_that_stays_ends_with_its_words():
    behaviours = {"add": Behaviour(ANSWER, "500", times=99)}
    with TeacherServer(behaviours) as server, pytest.raises(JobError, match=r"status 500: it broke \(4 tries\)"):
        ask(distill(server.url), "add")
