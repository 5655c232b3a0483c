"""An OpenAI-compatible server that answers from a table and misbehaves as it says, and counts what it is asked."""

import json
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Ways that pass when the request is repeated, and ways that do not.
TRANSIENT = (
    "429",
    "429_date",
    "500",
    "503",
    "stall",
    "drip",
    "cut",
    "cut_chunked",
    "reset",
    "invalid_json",
    "no_choices",
    "surrogate",
    "router_error",
)
FINAL = ("huge", "gzip_bomb", "other_model", "truncated", "empty", "no_usage", "think", "reasoning", "right", "400")


@dataclass
class Behaviour:
    """What one prompt gets: `way` for the first `times` requests if it is a transient one, then the answer."""

    answer: str
    way: str = "right"
    times: int = 1
    thinking: str = ""

    @property
    def needed(self) -> int:
        """Requests that an honest client sends for it."""
        return 1 + (self.times if self.way in TRANSIENT else 0)


class TeacherServer:
    """`with TeacherServer({prompt: Behaviour}) as server:` listens on server.url; host "0.0.0.0": on all addresses.

    server.asked counts requests by prompt, server.headers keeps every request's headers.
    """

    def __init__(
        self, behaviours: dict[str, Behaviour], latency: float = 0.02, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.behaviours = {prompt.strip(): behaviour for prompt, behaviour in behaviours.items()}
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict] = []
        self.flying = self.most_flying = 0
        self.latency, self.lock, self.stopped = latency, threading.Lock(), threading.Event()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with teacher.lock:
                    teacher.flying += 1
                    teacher.most_flying = max(teacher.most_flying, teacher.flying)
                try:
                    teacher.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client was killed, or has seen enough
                finally:
                    with teacher.lock:
                        teacher.flying -= 1

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *args: object) -> None:
                pass  # a client that is killed resets its connections

        self.server = Server((host, port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "TeacherServer":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["content-length"])))
        prompt = body["messages"][-1]["content"].strip()
        with self.lock:
            self.asked[prompt] += 1
            turn = self.asked[prompt]
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
            self.bodies.append(body)
        if http.path != "/v1/chat/completions" or prompt not in self.behaviours:
            return reply(http, 404, {"error": {"message": f"nothing at {http.path} for this prompt"}})
        behaviour = self.behaviours[prompt]
        time.sleep(self.latency)
        way = behaviour.way
        if way in TRANSIENT and turn > behaviour.times:
            way = "right"
        message = {"role": "assistant", "content": behaviour.answer}
        whole = {
            "id": f"chatcmpl-{zlib.crc32(prompt.encode())}",
            "object": "chat.completion",
            "created": 1700000000,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300},
        }
        if behaviour.thinking:
            message["reasoning_content"] = behaviour.thinking
        if way == "429":
            return reply(http, 429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        if way == "429_date":
            return reply(
                http,
                429,
                {"error": {"message": "slow down"}},
                {"Retry-After": formatdate(time.time() + 1.5, usegmt=True)},
            )
        if way in ("500", "503"):
            return reply(http, int(way), {"error": {"message": "it broke"}})
        if way == "429_quota":
            return reply(http, 429, {"error": {"message": "your quota is used up", "code": "insufficient_quota"}})
        if way == "401_echo":
            return reply(http, 401, {"error": {"message": f"you sent {http.headers['authorization'][7:]}"}})
        if way == "400":
            return reply(http, 400, {"error": {"message": "content exists risk", "code": "content_filter"}})
        if way == "stall":
            self.stopped.wait(30)
            http.close_connection = True
            return None
        if way == "drip":  # never silent for long, never done
            http.send_response(200)
            http.send_header("Content-Length", "1000000")
            http.end_headers()
            while not self.stopped.wait(0.2):
                http.wfile.write(b" ")
                http.wfile.flush()
            return None
        if way == "reset":
            http.close_connection = True
            http.connection.close()
            return None
        if way in ("cut", "cut_chunked"):
            data = json.dumps(whole).encode()
            http.send_response(200)
            http.send_header("Content-Type", "application/json")
            if way == "cut":
                http.send_header("Content-Length", str(len(data)))
                http.end_headers()
                http.wfile.write(data[: len(data) // 2])
            else:
                http.send_header("Transfer-Encoding", "chunked")
                http.end_headers()
                http.wfile.write(b"%x\r\n%s\r\n" % (len(data) // 2, data[: len(data) // 2]))
            http.close_connection = True
            return None
        if way == "invalid_json":
            return reply(http, 200, json.dumps(whole)[:-40].encode())
        if way == "no_choices":
            return reply(http, 200, {**whole, "choices": []})
        if way == "surrogate":
            return reply(http, 200, json.dumps(whole).replace("chatcmpl", "\\ud800").encode())
        if way == "router_error":
            return reply(http, 200, {"error": {"message": "upstream is gone", "code": 502}})
        if way == "huge":
            message["content"] += "x" * (10 << 20)
        if way == "gzip_bomb":
            import gzip

            message["content"] += " " * (100 << 20)
            return reply(http, 200, gzip.compress(json.dumps(whole).encode(), 1), {"Content-Encoding": "gzip"})
        if way == "other_model":
            whole["model"] = "gpt-0-mini"
        if way == "truncated":
            whole["choices"][0]["finish_reason"] = "length"
        if way == "empty":
            message["content"] = None
        if way == "no_usage":
            del whole["usage"]
        if way == "think":
            message["content"] = f"<think>\nlet me see\n</think>\n\n{behaviour.answer}"
        if way == "reasoning":
            message["reasoning"] = "let me see"
        return reply(http, 200, whole)


def reply(
    http: BaseHTTPRequestHandler, status: int, value: dict | bytes, headers: dict[str, str] | None = None
) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    http.send_response(status)
    http.send_header("Content-Type", "application/json")
    http.send_header("Content-Length", str(len(data)))
    for name, text in (headers or {}).items():
        http.send_header(name, text)
    http.end_headers()
    http.wfile.write(data)
