"""Requests to a teacher, their responses, and the cache of them.

A request is the dict {"url", "attempt", "body"}: everything that the answer depends on. Its key is the SHA-256 of its
canonical JSON. A record is {"key", "request", "response"}, the response being the endpoint's JSON as it came, or
{"error": {"type", "message"}} where there is no answer.

The cache is a folder with one file KEY.json a record, renamed into place as its response arrives: it only grows, a kill
cannot cut a record in two, and two people's folders merge by copying. A file of recorded responses holds the same
records, one a line.

An answer is a fact and is stored at once. That there is none (a refusal, a body that is no completion) is none: another
try may end otherwise, an account may be topped up. It is stored when a whole run has been decided with it, as settled:
that run is then replayed as it was.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common import answer_format
from jobs.common.errors import JobError
from jobs.common.files import numbered_jsonl, read_json
from jobs.distill.reply import is_answer

if TYPE_CHECKING:
    from jobs.plumbing.params import Distill

NAME = "[0-9a-f]" * 64
ABANDONED = 3600  # seconds after which a half-written record was left by a kill


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


def outside_experiments(path: Path) -> Path:
    """`path` in the project itself, where this is the copy of it in .dvc/tmp/exps in which DVC runs an experiment.

    DVC makes such a copy for `dvc exp run --temp` and --queue, and removes it after the run, whatever is in it.
    """
    project, copied, _ = Path.cwd().as_posix().partition("/.dvc/tmp/exps/")
    return Path(project) / path if copied else path


class Responses:
    """The response cache: a folder of records, and a second one, `kept`, where every answer is kept as well.

    The first is the stage's out. DVC replaces its content by what an experiment starts from, and with it what a failed
    run has paid for; `kept` it does not know. Either answers, and what is in one alone is copied to the other.

    With `recorded`, that file alone answers, and the folders are left as they are.
    """

    def __init__(self, folder: Path, recorded: Path | None = None, kept: Path | None = None) -> None:
        self.folders = [place for place in (kept, folder) if place]
        self.folder, self.kept, self.recorded = folder, kept, recorded
        self.records: dict[str, dict] = {}
        self.unsettled: dict[str, dict] = {}  # records without an answer, of this run
        if recorded is not None:
            for line, row in numbered_jsonl(recorded):
                key = checked(row, f"{recorded}: line {line}")["key"]
                if self.records.setdefault(key, row) != row:
                    raise JobError(f"{recorded}: line {line} holds another answer to a request that an earlier one has")
            self.folders = [folder]
        for place in self.folders:
            try:
                place.mkdir(parents=True, exist_ok=True)
                for leftover in place.glob(f".{NAME}.*.partial"):
                    # Into `kept`, another run may be writing it now; the stage's out is this run's alone.
                    if place != kept or time.time() - leftover.stat().st_mtime > ABANDONED:
                        leftover.unlink(missing_ok=True)
            except OSError as error:
                raise JobError(f"{place}: cannot be written ({error.strerror})") from None

    def get(self, request: dict) -> dict | None:
        """The response to `request`, or None. Errors: JobError naming a broken record."""
        key = request_key(request)
        if self.recorded is not None:
            return self.records[key]["response"] if key in self.records else None
        found = [row for folder in self.folders if (row := self.stored(folder, key))]
        if not found:
            return None
        if len(found) < len(self.folders) and is_answer(found[0]["response"]):
            self.store(found[0], self.folders)
        return found[0]["response"]

    def stored(self, folder: Path, key: str) -> dict | None:
        path = folder / f"{key}.json"
        if not path.exists():
            return None
        row = checked(read_json(path), str(path))
        if row["key"] != key:
            raise JobError(f"{path}: holds the answer to another request; remove it to ask again")
        error = row["response"].get("error")
        settled = isinstance(error, dict) and error.get("settled") is True
        return row if settled or is_answer(row["response"]) else None

    def put(self, request: dict, response: dict) -> None:
        """Keeps what arrived: an answer at once; that there is none, until `settle`."""
        row = record(request, response)
        if is_answer(response):
            self.store(row, self.folders)
        else:
            self.unsettled[row["key"]] = row

    def settle(self, requests: Iterable[dict]) -> None:
        """After a whole run: stores for its replay which of these requests had no answer."""
        for request in requests:
            if row := self.unsettled.get(request_key(request)):
                error = {**row["response"]["error"], "settled": True}
                self.store(record(request, {"error": error}), [self.folder])

    def store(self, row: dict, folders: list[Path]) -> None:
        text = json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for folder in folders:
            path = folder / f"{row['key']}.json"
            try:
                # A name of its own: experiments that run side by side keep their answers in one folder.
                number, partial = tempfile.mkstemp(prefix=f".{row['key']}.", suffix=".partial", dir=folder)
                with open(number, "w", encoding="utf-8", newline="\n") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(partial, 0o644)
                os.replace(partial, path)
            except OSError as error:
                raise JobError(f"{path}: cannot be written ({error.strerror or error})") from error


def checked(row: dict, where: str) -> dict:
    if not isinstance(row.get("request"), dict) or not isinstance(row.get("response"), dict):
        raise JobError(f"{where}: is not a record of a request and its response")
    if row.get("key") != request_key(row["request"]):
        raise JobError(f"{where}: its key is not the hash of its request; the record was changed")
    return row
