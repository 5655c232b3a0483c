"""Why an endpoint refuses a request: from its status and its words, which differ from maker to maker."""

import json
import re
from typing import Literal

from jobs.distill.reply import one_line, said

MONEY = re.compile(
    r"insufficient[ _](quota|balance|credit|fund)|credit balance|out of credit|(not enough|no) credits?\b|"
    r"exceeded your current quota|billing|payment required|arrear|good standing|top[ -]?up|recharge|spending limit|"
    r"(monthly|usage) limit (reached|exceeded)|balance (is )?(too low|not enough)",
    re.IGNORECASE,
)
SOON = re.compile(r"(retry|try again) (in|after)|per[ -]?(minute|second|hour|day)|rate[ _-]?limit", re.IGNORECASE)
KEY = re.compile(
    r"api[ _-]?key.{0,40}(invalid|not valid|incorrect|expired|missing|not found|revoked)|"
    r"(invalid|incorrect|expired|missing|no) .{0,20}api[ _-]?key|authenticat|unauthorized",
    re.IGNORECASE,
)
CONTENT = re.compile(
    r"content[ _-]?(filter|policy|management|exists risk|moderation)|moderation|flagged|inappropriate|data_inspection|"
    r"responsible ?ai|prohibited|sensitive|safety|violat",
    re.IGNORECASE,
)
TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)

PAGE = 10_000  # characters of a page that are looked at: of one made for it, tags take time by the square of its length

Cause = Literal["money", "key", "content", "busy", "request", "endpoint"]


def words(body: object, otherwise: str) -> tuple[str, str]:
    """The endpoint's message in one line, and all of its body's words (codes and types too), to tell the cause by."""
    if isinstance(body, str) and "<" in body[:200]:  # a page of a proxy
        body = TAG.sub(" ", body[:PAGE])
    whole = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)
    if body in (None, "", {}, []):
        return one_line(otherwise), otherwise
    return said(body), whole


def cause(status: int, text: str, waits: bool) -> Cause:
    """What kind of refusal this is. waits: whether it says when to come back.

    money: until somebody pays; key: until it is another; content: of this prompt; busy: for now; request: of this
    request, and perhaps of all; endpoint: the address or the model is not there.
    """
    if status == 402 or (MONEY.search(text) and not (status == 429 and (waits or SOON.search(text)))):
        return "money"
    if status in (408, 409, 425, 429) or status >= 500:
        return "busy"
    if status == 401 or (status in (400, 403, 422) and KEY.search(text)):
        return "key"
    if status in (400, 403, 422, 451) and CONTENT.search(text):
        return "content"
    if status in (400, 413, 422):
        return "request"
    return "key" if status == 403 else "endpoint"
