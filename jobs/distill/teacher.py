"""The teacher: an OpenAI-compatible endpoint behind a cache of its responses.

A request is the dict {"url", "attempt", "body"}: everything that the answer depends on. Its key is the SHA-256 of its
canonical JSON. A record is {"key", "request", "response"}, the response being the endpoint's JSON as it came, or
{"error": {"type", "message"}} where there is no answer and there never will be one (see `Teacher.ask`).

The cache is a folder with one file KEY.json a record, renamed into place as its response arrives: it only grows, a kill
cannot cut a record in two, and two people's folders merge by copying. A file of recorded responses holds the same
records, one a line.
"""

import asyncio
import email.utils
import hashlib
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import numbered_jsonl, read_json, write_json
from jobs.plumbing.cli import log

if TYPE_CHECKING:
    from jobs.plumbing.params import Distill

LARGEST = 2 << 20  # bytes of a response; 8,192 tokens of content and as many of reasoning are about 100 KB
THINK = "<think>", "</think>"


def request(settings: "Distill", prompt: str, attempt: int) -> dict:
    """The request that asks for a task's `attempt`-th answer (from 0)."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": answer_format.messages(prompt),
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        **settings.extra_body,
    }
    return {
        "url": settings.base_url.rstrip("/") + "/chat/completions",
        "attempt": attempt,
        "body": {name: value for name, value in body.items() if value is not None},
    }


def request_key(request: dict) -> str:
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def response(request: dict, content: str, thinking: str | None = None, finish: str = "stop") -> dict:
    """A response such as an endpoint would give, for recordings and tests; four characters count as a token."""
    message = {"role": "assistant", "content": content}
    if thinking is not None:
        message["reasoning_content"] = thinking
    tokens_in = sum(len(turn["content"]) for turn in request["body"]["messages"]) // 4 + 1
    tokens_out = (len(content) + len(thinking or "")) // 4 + 1
    return {
        "id": f"recorded-{request_key(request)[:16]}",
        "object": "chat.completion",
        "created": 0,
        "model": request["body"]["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out},
    }


def record(request: dict, response: dict) -> dict:
    return {"key": request_key(request), "request": request, "response": response}


class Responses:
    """The response cache: a folder of records, behind a file of recorded ones if there is one.

    With `recorded`, that file alone answers, and the folder is left as it is.
    """

    def __init__(self, folder: Path, recorded: Path | None = None) -> None:
        self.folder, self.recorded, self.records = folder, recorded, {}
        if recorded is not None:
            for line, row in numbered_jsonl(recorded):
                self.records[checked(row, f"{recorded}: line {line}")["key"]] = row
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f".{'[0-9a-f]' * 64}.json.partial"):
                leftover.unlink()
        except OSError as error:
            raise JobError(f"{folder}: cannot be written ({error.strerror})") from None

    def get(self, request: dict) -> dict | None:
        """The response to `request`, or None. Errors: JobError naming a broken record."""
        key = request_key(request)
        if self.recorded is not None:
            return self.records[key]["response"] if key in self.records else None
        path = self.folder / f"{key}.json"
        if not path.exists():
            return None
        row = checked(read_json(path), str(path))
        if row["key"] != key:
            raise JobError(f"{path}: holds the answer to another request; remove it to ask again")
        return row["response"]

    def put(self, request: dict, response: dict) -> None:
        write_json(self.folder / f"{request_key(request)}.json", record(request, response))


def checked(row: dict, where: str) -> dict:
    if not isinstance(row.get("request"), dict) or not isinstance(row.get("response"), dict):
        raise JobError(f"{where}: is not a record of a request and its response")
    if row.get("key") != request_key(row["request"]):
        raise JobError(f"{where}: its key is not the hash of its request; the record was changed")
    return row


@dataclass(frozen=True)
class Reply:
    """What a response says. `error` is set, and the texts are empty, where there is no answer in it."""

    text: str
    thinking: str
    model: str
    finish: str
    tokens_in: int
    tokens_out: int
    error: str = ""


def read(request: dict, response: dict) -> Reply:
    """The parts of a response; where it does not say what it used, the request's most is taken.

    A reasoning model's thinking comes in a field of its own (`reasoning_content`, or `reasoning`), or leads the text
    between <think> and </think> where the server does not parse it.
    """
    most_in, most_out = reservation(request)
    usage = response.get("usage") or {}
    tokens = count(usage, "prompt_tokens", most_in), count(usage, "completion_tokens", most_out)
    model = str(response.get("model") or "")
    if "error" in response:
        return Reply("", "", model, "", *tokens, error=str(response["error"].get("type")))
    choice = response["choices"][0]
    message = choice["message"]
    text = message.get("content") or ""
    thinking = message.get("reasoning_content") or message.get("reasoning") or ""
    if text.lstrip().startswith(THINK[0]) and THINK[1] in text:
        thinking, _, text = text.lstrip()[len(THINK[0]) :].partition(THINK[1])
    return Reply(text, str(thinking).strip(), model, str(choice.get("finish_reason") or ""), *tokens)


def count(usage: dict, name: str, otherwise: int) -> int:
    value = usage.get(name)
    return value if type(value) is int and value >= 0 else otherwise


def reservation(request: dict) -> tuple[int, int]:
    """The most tokens in and out that a request can cost: a token is a byte at least, and answers are bounded."""
    body = request["body"]
    return (
        sum(len(turn["content"].encode()) for turn in body["messages"]),
        max(count(body, name, 0) for name in ("max_tokens", "max_completion_tokens")),
    )


def completion(body: bytes) -> dict:
    """The chat completion in a response's body. Errors: ValueError where it is none, or could not be written down."""
    try:
        value = json.loads(body)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # lone surrogates and NaN end here
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    choices = value.get("choices")
    if choices is None and "error" in value:  # how some routers report an upstream failure, with status 200
        raise Transient(f"the endpoint failed: {one_line(value['error'])}")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict) or not isinstance(message.get("content") or "", str):
        raise ValueError("no choices[0].message in it")
    if "error" in value or not isinstance(value.get("usage") or {}, dict):
        raise ValueError("an error beside the choices, or a usage that is no object")
    return value


class Transient(Exception):
    """A try that failed and may succeed when repeated."""

    def __init__(self, message: str, wait: float | None = None, malformed: bool = False) -> None:
        super().__init__(message)
        self.wait, self.malformed = wait, malformed


class Teacher:
    """Asks the endpoint; the key comes from the environment variable that params name, on the first request.

    The variable is then removed from this process's environment, and the key is cut out of whatever the endpoint
    returns: error messages and bodies may echo it.
    """

    def __init__(self, settings: "Distill") -> None:
        self.settings = settings
        self.client: Any = None
        self.key = ""
        self.answered = 0
        self.failed = 0  # tries without an answer; they count against the budget
        self.not_before = 0.0  # one Retry-After holds all requests back
        self.closing = False

    def connect(self) -> None:
        import openai

        name = self.settings.api_key_env
        self.key = (os.environ.pop(name, "") if name else "").strip()
        if name and not self.key:
            raise UsageError(
                f"distill.api_key_env: the environment variable {name} is not set, and not all responses are cached"
            )
        self.client = openai.AsyncOpenAI(
            api_key=self.key or "none", base_url=self.settings.base_url, max_retries=0, timeout=self.settings.timeout
        )

    async def ask(self, request: dict) -> dict:
        """The response to a request, after as many tries as params allow.

        429, 5xx, timeouts, broken connections and bodies that are no chat completion are tried again, after what
        Retry-After says or an exponential back-off. Three ends are final and returned as {"error": ...}: a body above
        LARGEST ("too_large"), one that stays malformed ("malformed"), and a request that a working endpoint refuses
        with 400 or 422, as content filters do ("refused").

        Errors: JobError when the endpoint cannot be used: wrong key, wrong model, no answer after all tries.
        """
        if self.client is None:
            self.connect()
        for left in range(self.settings.retries, -1, -1):
            await asyncio.sleep(max(0.0, self.not_before - time.monotonic()))
            try:
                async with asyncio.timeout(self.settings.timeout):
                    response = await self.send(request)
                self.answered += 1
                return response
            except (Transient, TimeoutError) as error:
                self.failed += 1
                reason = str(error) or f"no answer within {self.settings.timeout:g} s"
                if left == 0 and isinstance(error, Transient) and error.malformed:
                    return {"error": {"type": "malformed", "message": reason}}
                if left == 0 or self.closing:
                    raise JobError(f"{request['url']}: {reason} ({self.settings.retries + 1} tries)") from None
                await self.wait(error, self.settings.retries - left, reason)
        raise AssertionError("unreachable")

    async def wait(self, error: Exception, failures: int, reason: str) -> None:
        asked = error.wait if isinstance(error, Transient) else None
        if asked is not None and asked > self.settings.timeout:
            raise JobError(f"{self.settings.base_url}: asks to wait for {asked:.0f} s, longer than distill.timeout")
        seconds = min(60.0, 2.0**failures / 2) * random.uniform(0.5, 1.0) if asked is None else asked
        log.info("%s; again in %.1f s", reason, seconds)
        if asked is not None:
            self.not_before = max(self.not_before, time.monotonic() + seconds)
        await asyncio.sleep(seconds)

    async def send(self, request: dict) -> dict:
        import openai

        rest = {name: value for name, value in request["body"].items() if name not in ("model", "messages")}
        create = self.client.chat.completions.with_streaming_response.create
        body = bytearray()
        try:
            async with create(
                model=request["body"]["model"], messages=request["body"]["messages"], extra_body=rest
            ) as stream:
                try:
                    async for chunk in stream.iter_bytes():
                        body += chunk
                        if len(body) > LARGEST:
                            return {"error": {"type": "too_large", "message": f"more than {LARGEST} bytes"}}
                except Exception as error:  # only reading is in this try; what it raises depends on openai's version
                    raise Transient(f"the response was cut ({type(error).__name__})") from None
        except openai.APIStatusError as error:
            return self.refusal(request, error)
        except openai.APIConnectionError as error:
            raise Transient(self.clean(f"no connection ({one_line(error.__cause__ or error)})")) from None
        if self.key:
            body = body.replace(self.key.encode(), b"***")
        try:
            return completion(bytes(body))
        except ValueError as error:
            raise Transient(f"the response is no chat completion ({one_line(error)})", malformed=True) from None

    def refusal(self, request: dict, error: Any) -> dict:
        status, message = error.status_code, self.clean(one_line(error.message))
        if status in (408, 409, 425, 429) or status >= 500:
            raise Transient(f"status {status}", retry_after(error.response.headers.get("retry-after")))
        if status in (400, 422) and self.answered:
            return {"error": {"type": "refused", "message": f"status {status}: {message}"}}
        hint = f"; is the key in {self.settings.api_key_env} right?" if status in (401, 403) else ""
        raise JobError(f"{request['url']}: status {status}: {message}{hint}")

    def clean(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header: a number of seconds or an HTTP date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def one_line(value: object) -> str:
    return " ".join(str(value).split())[:300]
