"""What a response says: answer, thinking, why it ended, who answered and what it cost, in the ways that endpoints say it.

OpenAI's format is many servers' own: content comes as text or in parts, thinking in one of several fields or in the
text, a reason to end by several names, and a failure at times with status 200 and half an answer.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from jobs.common.answer_format import TAGS

CLOSING = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]", re.IGNORECASE)
OPENING = re.compile(r"\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\])", re.IGNORECASE)
THINKING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # DeepSeek's, OpenRouter's, Ollama's
# finish_reason, in lower case: the model's own end, a refusal, and an end that is the server's fault.
ENDS = {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "end", "complete", "completed", "done", "finished"}
REFUSALS = {"content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "sensitive", "spii"}
CUT = {"length", "max_tokens", "max_output_tokens", "model_length", "tool_calls", "function_call", "tool_use"}
FAILURES = {"error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource"}
VARIANTS = {"free", "nitro", "floor", "exacto", "online", "extended", "thinking", "latest"}  # of OpenRouter and Ollama
SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{3,8}|latest)")


class Failed(ValueError):
    """The endpoint says with status 200 that it failed."""


@dataclass(frozen=True)
class Reply:
    """What a response says. `error` is set, and the texts are empty, where there is no answer in it.

    finish: the reason by OpenAI's names where it has one there, "" if the endpoint gives none.
    detail: the endpoint's words on `error`.
    """

    text: str
    thinking: str
    model: str
    finish: str
    tokens_in: int
    tokens_out: int
    error: str = ""
    detail: str = ""


def completion(body: bytes) -> dict:
    """The chat completion in a response's body.

    Errors: Failed where the endpoint says that it failed; ValueError where it is none, or could not be written down.
    """
    try:
        value = json.loads(body)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # lone surrogates and NaN end here
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        begins = " ".join(body[:80].decode("utf-8", "replace").split())
        raise ValueError(f"{error}; it begins with {begins!r}") from None
    require_completion(value)
    return value


def require_completion(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if not value.get("choices") and value.get("error"):  # how some routers report a failure behind them
        raise Failed(f"the endpoint failed: {said(value['error'])}")
    choice = first_choice(value)
    message = choice.get("message") if choice else None
    if choice is None or not isinstance(message, dict) or not isinstance(message.get("content") or "", str | list):
        words = "" if value.get("choices") else f": {said(value)}"
        raise ValueError(f"no choices[0].message in it{words}")
    failure = choice.get("error") or value.get("error")
    if finish_of(choice) in FAILURES or (failure and finish_of(choice) not in ENDS):
        raise Failed(f"the endpoint failed on the way: {said(failure or finish_of(choice))}")


def is_answer(response: dict) -> bool:
    """Whether a stored response is a completion, or one that was too large to be kept: facts that do not change."""
    error = response.get("error")
    if isinstance(error, dict) and error.get("type") == "too_large":
        return True
    try:
        require_completion(response)
    except ValueError:
        return False
    return True


def first_choice(value: dict) -> dict | None:
    choices = value.get("choices")
    found = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    return next((choice for choice in found if choice.get("index") == 0), found[0] if found else None)


def finish_of(choice: dict) -> str:
    """The reason to end in lower case; "stop" for all names of the model's own end."""
    found = str(choice.get("finish_reason") or "").lower().removeprefix("finish_reason_")
    return "stop" if found in ENDS else found


def read(request: dict, response: dict) -> Reply:
    """The parts of a response; where it does not say what it used, the request's most is taken.

    Line ends are \\n, whatever they were. Thinking comes in a field or in parts of its own, or leads the text up to
    </think> where the server does not parse it; the template may have opened it, so <think> need not be there.
    """
    model = str(response.get("model") or "")
    choice = first_choice(response)
    if choice is None:
        error = response.get("error") or {}
        return Reply(
            "", "", model, "", *used(request, response, ""), str(error.get("type")), said(error.get("message"))
        )
    message = choice["message"]
    text, thinking, refusal = parts(message.get("content"))
    for name in THINKING:
        thinking = thinking or "".join(parts(message.get(name))[:2])
    refusal = refusal or (message["refusal"] if isinstance(message.get("refusal"), str) else "")
    text, thinking = (each.replace("\r\n", "\n").replace("\r", "\n") for each in (text, thinking))
    if not thinking:
        thinking, text = split_thinking(text)
    tokens, finish = used(request, response, text), finish_of(choice)
    if finish in REFUSALS or (refusal and not text.strip()):
        return Reply("", thinking.strip(), model, finish, *tokens, "refused", refusal or f"it ended with {finish}")
    return Reply(text.lstrip("\ufeff"), thinking.strip(), model, finish, *tokens)


def parts(content: object) -> tuple[str, str, str]:
    """Text, thinking and refusal of a content that is a text or a list of parts."""
    if isinstance(content, str):
        return content, "", ""
    found = {"text": "", "thinking": "", "refusal": ""}
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            found["text"] += part
        elif isinstance(part, dict):
            kind = str(part.get("type") or "text")
            thought = kind.startswith(("thinking", "reasoning", "summary"))
            names = ("thinking", "text", "reasoning", "summary", "content") if thought else ("text",)
            inner = next((part[name] for name in names if part.get(name)), "")
            if kind == "refusal":
                found["refusal"] += str(part.get("refusal") or "")
            elif thought:
                found["thinking"] += "".join(parts(inner)[:2])
            elif kind in ("text", "output_text") and isinstance(inner, str):
                found["text"] += inner
    return found["text"], found["thinking"], found["refusal"]


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking and answer of a text that begins with thinking; it may draft the answer's tags, so its last end counts."""
    opened = OPENING.match(text)
    ends = list(CLOSING.finditer(text))
    before_answer = [end for end in ends if TAGS[0].lower() in text[end.end() :].lower()]
    end = before_answer[-1] if before_answer else ends[0] if ends and opened else None
    if end is None:
        return (text[opened.end() :], "") if opened else ("", text)
    return text[opened.end() if opened else 0 : end.start()], text[end.end() :]


def used(request: dict, response: dict, text: str) -> tuple[int, int]:
    """Tokens in and out. A usage that is absent, no number, or zero beside a text says nothing."""
    most_in, most_out = reservation(request)
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    into = number(usage, "prompt_tokens", "input_tokens")
    out = number(usage, "completion_tokens", "output_tokens")
    total = number(usage, "total_tokens")
    if into and out and total:
        out = max(out, total - into)  # some count the thinking in the total alone
    return into or most_in, most_out if out is None or (not out and text) else out


def number(usage: dict, *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, str) and re.fullmatch(r"\d{1,12}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and 0 <= value < 10**12:
            return value
    return None


def reservation(request: dict) -> tuple[int, int]:
    """The most tokens in and out that a request can cost: a token is a byte at least, and answers are bounded."""
    body = request["body"]
    return (
        sum(len(turn["content"].encode()) for turn in body["messages"]),
        max(number(body, name) or 0 for name in ("max_tokens", "max_completion_tokens")),
    )


def same_model(asked: str, answered: str, aliases: list[str]) -> bool:
    """Whether `answered`, the name in a response, is the model that was asked for; no name at all is taken for it.

    It is by its own name, by its snapshot's (NAME-2026-01-31), without its owner, variant or path (an OpenRouter or
    Ollama variant, llama.cpp's file), or by an alias.
    """

    def plain(name: str) -> str:
        name = name.strip().lower().replace("\\", "/").rpartition("/")[2].removesuffix(".gguf")
        stem, _, variant = name.rpartition(":")
        return stem if variant in VARIANTS else name

    if not answered.strip() or answered in aliases:
        return True
    one, other = plain(asked), plain(answered)
    return one == other or bool(other.startswith(one) and SNAPSHOT.fullmatch(other[len(one) :]))


def said(value: object) -> str:
    """The words in an endpoint's message, whatever form it has, in one line."""
    found = dug(value)
    return one_line(found if found else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def dug(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return next((found for inner in value if (found := dug(inner))), "")
    if isinstance(value, dict):
        names = ("error", "message", "msg", "detail", "error_message", "errors", "error_description", "title", "reason")
        found = next((found for name in names if (found := dug(value.get(name)))), "")
        metadata = value.get("metadata")  # OpenRouter's: what the provider behind it said
        raw = dug(metadata.get("raw")) if isinstance(metadata, dict) else ""
        return f"{found}: {raw}" if raw and raw not in found else found
    return ""


def one_line(value: object) -> str:
    return " ".join(str(value).split())[:300]
