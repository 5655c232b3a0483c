"""What judge, server and child say to each other, each fact in one place.

A frame is four bytes of length, little-endian, and that much JSON text. The judge asks, the child answers, and every
answer carries the number of its question, so that no reply can ever be taken for another question's.

    judge to child                                               child to judge, each with "n", the number
    {"n", "op": "load", "code", "names"}                         {"r": {name: value}} or {"invalid": exception}
    {"n", "op": "call", "args": [function, arguments, named]}    {"r": value} or {"x": exception}, and {"m": changes}
    {"n", "op": OPERATION, "args": [values]}                     {"r": value} or {"x": exception}
    {"n", "op": "batch", "name", "inputs", "each"}               one [n, i, "r" or "x", value or exception] an input
    {"n", "a": value} or {"n", "stop": 1}, which answers:        {"c": [function, arguments, named]}, a call back

An exception is [[names of its classes], text, its arguments if they are scalars, {attribute: scalar}, group], where group
is [] or the message and exceptions of an exception group, each such a list. `changes` are what a call has made of
its arguments: [[number of a container, its content]], the containers counted as codec.containers finds them.
"""

import json
import struct
from json.encoder import c_make_encoder, encode_basestring_ascii  # type: ignore[attr-defined]
from typing import Any

SOCKET = 3  # the descriptor of a child's socket, and of a server's control socket
PID = struct.Struct("<I")  # what comes with the socket of a new child
NEXT = b"n"  # to a server: have the child in use killed, and hand over the next one
RUN = b"r"  # to a stage, with the descriptors of a run: begin it
END = b"e"  # to a stage: end the run
STATUS = struct.Struct("<i")  # its answer after PID, a wait status
HEADER = struct.Struct("<I")
MAX_FRAME = 1 << 24  # bytes of one message; a longer one is a broken protocol


class Malformed(ValueError):
    """The other side sent something that is not a message, or not a value of the codec."""


class TooLong(OverflowError):
    """A message would be longer than MAX_FRAME."""


def refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} cannot be carried")


scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # json.loads looks for encodings and white space too
encoder = c_make_encoder(None, refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def dumps(message: Any) -> bytes:
    """A message of lists, str-keyed dicts and scalars as a frame. Errors: TooLong."""
    text = "".join(encoder(message, 0)).encode("ascii")
    if len(text) > MAX_FRAME:
        raise TooLong(f"a message of {len(text)} bytes is longer than {MAX_FRAME}")
    return HEADER.pack(len(text)) + text


def loads(text: bytes) -> Any:
    """The JSON value in a frame's text. Errors: Malformed."""
    try:
        value, end = scan(text.decode(), 0)
        if end != len(text):
            raise ValueError("more than one value")
        return value
    except (ValueError, StopIteration, RecursionError, MemoryError) as error:
        raise Malformed(f"not a message: {type(error).__name__}") from None
