"""The teacher: an OpenAI-compatible endpoint, asked with patience, a budget of tries and a key that nobody sees."""

import asyncio
import base64
import email.utils
import os
import random
import re
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, UsageError
from jobs.distill.refusals import cause, words
from jobs.distill.reply import Failed, completion, one_line
from jobs.plumbing.cli import log

if TYPE_CHECKING:
    from jobs.plumbing.params import Distill

LARGEST = 2 << 20  # bytes of a response; 8,192 tokens of content and as many of reasoning are about 100 KB
HINTS = {
    "money": "the answers so far are kept, and the next run goes on from them",
    "key": "is the key in {key} right?",
    "endpoint": "are distill.base_url and distill.model right? `make doctor` asks what is served there",
    "request": "is the request right, as distill.* has it made?",
}


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
        if not self.key.isascii() or re.search(r"\s", self.key):
            raise UsageError(f"distill.api_key_env: what is in {name} is no key: it has blanks or letters beyond ASCII")
        self.client = openai.AsyncOpenAI(
            api_key=self.key or "none", base_url=self.settings.base_url, max_retries=0, timeout=self.settings.timeout
        )

    async def ask(self, request: dict) -> dict:
        """The response to a request, after as many tries as params allow.

        429, 5xx, timeouts, broken connections and bodies that are no chat completion are tried again, after what
        Retry-After says or an exponential back-off. Three ends are returned as {"error": ...}: a body above LARGEST
        ("too_large"), one that stays malformed ("malformed"), and a request that a working endpoint refuses for what
        is in it, as content filters do ("refused").

        Errors: JobError with the endpoint's words when it cannot be used: wrong key, wrong model, no credit, no answer
        after all tries.
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
        wanted = error.wait if isinstance(error, Transient) else None
        if wanted is not None and wanted > self.settings.timeout:
            raise JobError(
                f"{self.settings.base_url}: {reason}; it asks to wait for {wanted:.0f} s, longer than distill.timeout"
            )
        seconds = min(60.0, 2.0**failures / 2) * random.uniform(0.5, 1.0) if wanted is None else wanted
        log.info("%s; again in %.1f s", reason, seconds)
        if wanted is not None:
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
                        if len(body) > LARGEST and body.lstrip()[:1] == b"{":
                            return {"error": {"type": "too_large", "message": f"more than {LARGEST} bytes"}}
                        if len(body) > LARGEST:
                            raise Transient(f"more than {LARGEST} bytes of something else than JSON", malformed=True)
                except Transient:
                    raise
                except Exception as error:  # only reading is in this try; what it raises depends on openai's version
                    raise Transient(f"the response was cut ({type(error).__name__})") from None
        except openai.APIStatusError as error:
            return self.refusal(request, error)
        except openai.APIConnectionError as error:
            raise Transient(self.clean(f"no connection ({one_line(error.__cause__ or error)})")) from None
        try:
            return self.clean(completion(bytes(body)))
        except Failed as error:
            text = self.clean(one_line(error))
            if cause(200, text, waits=False) in ("money", "key"):
                raise JobError(f"{request['url']}: {text}; {self.hint(cause(200, text, waits=False))}") from None
            raise Transient(text) from None
        except (ValueError, RecursionError) as error:
            text = self.clean(one_line(error))
            raise Transient(f"the response is no chat completion ({text})", malformed=True) from None

    def refusal(self, request: dict, error: Any) -> dict:
        """What becomes of a request that was answered with an error status."""
        status, headers = error.status_code, error.response.headers
        message, whole = words(error.body, error.message)
        wait = retry_after(headers.get("retry-after"))
        if wait is None and (milliseconds := retry_after(headers.get("retry-after-ms"))) is not None:
            wait = milliseconds / 1000
        kind = cause(status, whole, waits=wait is not None)
        text = self.clean(f"status {status}: {message}")
        if kind == "busy":
            raise Transient(text, wait)
        if kind in ("content", "request") and self.answered:
            return {"error": {"type": "refused", "message": text}}
        hint = self.hint(kind)
        raise JobError(f"{request['url']}: {text}{'; ' if hint else ''}{hint}")

    def hint(self, kind: str) -> str:
        return HINTS.get(kind, "").format(key=self.settings.api_key_env or "(no variable: distill.api_key_env is null)")

    def clean(self, value: Any) -> Any:
        """`value` without the key, also where it stands encoded."""
        if isinstance(value, str):
            if self.key:
                encoded = base64.b64encode(self.key.encode()).decode().rstrip("=")
                for secret in (self.key, encoded, urllib.parse.quote(self.key, safe="")):
                    value = value.replace(secret, "***")
            return value
        if isinstance(value, list):
            return [self.clean(inner) for inner in value]
        if isinstance(value, dict):
            return {self.clean(name): self.clean(inner) for name, inner in value.items()}
        return value

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
