"""The agent: in a child that has taken its rights away, runs one submission and answers the judge's questions.

Nothing here decides anything: a submission may replace any of it, and would only change its own answers.
"""

import builtins
import itertools
import operator
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from jobs.sandbox.codec import CONTAINERS, LEAVES, MUTABLE, Side, containers, digest, is_huge, pack, reduced, unpack
from jobs.sandbox.protocol import HEADER, SOCKET, TooLong, dumps, loads

SUBMISSION = sys.modules["submission"] = types.ModuleType("submission")
EACH = 1 << 21  # items of an iterable result that are worth looking at
OPAQUE, CALLABLE, COROUTINE = 0, 1, 2


def base_name(base: type) -> str:
    return base.__name__


class Here(Side):
    """What stays in this process: objects by number, and the judge's own functions as callbacks."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.lock = threading.RLock()

    def number(self, value: Any) -> int:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return number

    def pack_object(self, value: Any) -> dict[str, list]:
        """Leaves `value` here and gives the judge a number for it; the test's own functions go back as what they are."""
        if type(value) is Callback:
            return {"o": ["f", value.number]}
        kind = COROUTINE if type(value) is types.CoroutineType else CALLABLE if callable(value) else OPAQUE
        return {"o": [self.number(value), kind, type(value).__name__]}

    def pack_instance(self, value: Any, base: type, depth: int) -> dict[str, list]:
        """Leaves `value` here; the judge gets its number, what of `base` its class has replaced, and the base's value."""
        own = [name for kind in type(value).__mro__[: type(value).__mro__.index(base)] for name in vars(kind)
               if hasattr(base, name)]  # fmt: skip
        plain = pack(reduced(value, base), self, depth + 1)
        return {"u": [self.number(value), base_name(base), type(value).__name__, own, plain]}

    def object(self, inner: Any) -> Any:
        """An object from here, a function of the judge's (["f", number]) or an iterator of its (["i", number])."""
        if len(inner) == 1:
            return self.objects[inner[0]]
        kind, number = inner
        return Callback(number) if kind == "f" else items_of(Callback(number))

    def knowing(self, known: dict[int, int] | None, twice: dict[int, int] | None) -> "Here":
        """The same objects, with containers that go as references."""
        side = Here.__new__(Here)
        side.__dict__.update(self.__dict__, known=known, twice=twice)
        return side


class Unpacking(Side):
    """One message of the judge's: containers that come twice in it are the same object here."""

    def __init__(self) -> None:
        self.defined: dict[int, Any] = {}

    def object(self, inner: Any) -> Any:
        return HERE.object(inner)

    def part(self, number: int) -> Any:
        return self.defined[number]

    def define(self, number: int, value: Any) -> None:
        self.defined[number] = value


HERE = Here()
LOOPS: list[Any] = []  # the event loop of asynchronous generators, once there is one
CURRENT = {"n": 0}  # the number of the question that is being answered


class Callback:
    """A function of the test's own: called here, carried out in the judge."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with HERE.lock:
            number = CURRENT["n"]
            packed = [self.number, [pack(a, HERE) for a in arguments], {k: pack(v, HERE) for k, v in named.items()}]
            send({"n": number, "c": packed})
            while True:
                message = loads(receive())
                if "op" in message:  # the judge's function calls the submission in its turn
                    answer_one(message)
                    continue
                CURRENT["n"] = number
                if "x" in message:
                    raise RuntimeError(message["x"])
                if "stop" in message:
                    raise Stop
                return unpack(message["a"], Unpacking())


class Stop(Exception):
    """An iterator of the test's has no more items."""


def items_of(pull: Callback) -> Iterator:
    while True:
        try:
            item = pull()
        except Stop:
            return
        yield item


def set_item(value: Any, key: Any, item: Any) -> None:
    value[key] = item


def delete_item(value: Any, key: Any) -> None:
    del value[key]


def operate(value: Any, name: str, *operands: Any) -> Any:
    """A function of the module operator, or one of the built-in functions of arithmetic."""
    module = builtins if name in ("divmod", "round", "pow", "abs") else operator
    return getattr(module, name)(value, *operands)


def own(value: Any, name: str) -> bool:
    """Whether the class of `value` has a method `name` of its own, and not object's."""
    return any(name in vars(kind) for kind in type(value).__mro__[:-1])


def plain(value: Any, base: str) -> Any:
    """The value of the built-in class inside an instance of a subclass."""
    kinds = {base_name(kind): kind for kind in MUTABLE}
    return reduced(value, kinds[base])


def awaited(value: Any) -> Any:
    import asyncio

    return asyncio.run(value)


def next_awaited(value: Any) -> Any:
    """The next item of an asynchronous generator, all of whose items come in one loop."""
    import asyncio

    if not LOOPS:
        LOOPS.append(asyncio.new_event_loop())
    return LOOPS[0].run_until_complete(anext(value))


DO: dict[str, Any] = {
    "call": lambda function, arguments, named: function(*arguments, **named),
    "getattr": getattr, "setattr": setattr, "delattr": delattr, "len": len, "iter": iter, "next": next, "bool": bool,
    "str": str, "repr": repr, "int": int, "float": float, "complex": complex, "hash": hash, "format": format,
    "index": lambda value: value.__index__(), "dir": dir,
    "getitem": lambda value, key: value[key], "setitem": set_item, "delitem": delete_item,
    "contains": lambda value, item: item in value, "eq": lambda a, b: bool(a == b), "ne": lambda a, b: bool(a != b),
    "isinstance": isinstance, "issubclass": issubclass, "operate": operate, "own": own, "plain": plain,
    "await": awaited, "anext": next_awaited, "bytes": bytes, "same": lambda a, b: a is b,
}  # fmt: skip


def receive() -> bytes:
    """The text of the next frame. One read takes most whole: the judge sends none before it has the last one's answer."""
    frame = os.read(SOCKET, 1 << 14)
    missing = 4 + HEADER.unpack_from(frame)[0] - len(frame)
    return frame[4:] + read_exactly(missing) if missing else frame[4:]


def read_exactly(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(SOCKET, min(size, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(message: Any) -> None:
    frame = dumps(message)
    while frame:
        frame = frame[os.write(SOCKET, frame) :]


def raised(error: BaseException, depth: int = 0) -> list:
    """An exception as the names of its classes, a short text, its arguments and attributes where they are scalars, and
    the exceptions of a group, each in the same way."""
    kinds = type(error).__mro__[:20]
    names = [k.__name__ if k.__module__ == "builtins" else f"{k.__module__}.{k.__qualname__}" for k in kinds]
    try:
        text = str(error)[:300]
    except BaseException:
        text = ""
    arguments: list = []
    attributes: dict = {}
    group: list = []
    try:
        if all(scalar(a) for a in error.args):
            arguments = list(error.args[:5])
        own = itertools.islice(getattr(error, "__dict__", {}).items(), 5)
        attributes = {name: value for name, value in own if type(name) is str and name.isidentifier() and scalar(value)}
        if isinstance(error, BaseExceptionGroup) and depth < 3:
            group = [str(error.message)[:300], [raised(inner, depth + 1) for inner in error.exceptions[:8]]]
    except BaseException:
        arguments = []
    return [[str(name)[:100] for name in names], str.__str__(text), arguments, attributes, group]


def scalar(value: Any) -> bool:
    return type(value) in LEAVES and len(repr(value)) < 400


def answer(number: int, reply: dict) -> None:
    """Sends a reply; one that cannot be sent is an exception of the submission's."""
    try:
        send({"n": number, **reply})
    except (OverflowError, MemoryError, RecursionError, TypeError, ValueError) as error:
        send({"n": number, "x": raised(error)})


def serve() -> None:
    while True:
        answer_one(loads(receive()))


def answer_one(request: dict) -> None:
    number = CURRENT["n"] = request["n"]
    try:
        op = request["op"]
        if op == "load":
            reply = load(request, SUBMISSION.__dict__)
        elif op == "call":
            reply = call(request["args"])
        elif op == "batch":
            batch(number, SUBMISSION.__dict__[request["name"]], request["inputs"], request["each"])
            return
        else:
            arguments = [unpack(argument, Unpacking()) for argument in request["args"]]
            reply = {"r": pack_result(DO[op](*arguments), {})}
    except BaseException as error:
        reply = {"x": raised(error)}
    answer(number, reply)


def load(request: dict, space: dict) -> dict:
    try:
        code = compile(request["code"], "<submission>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return {"invalid": raised(error)}
    exec(code, space)
    return {"r": {"m": {name: pack(space[name], HERE) for name in request["names"] if name in space}}}


def call(packed: list) -> dict:
    """Calls a function, and tells what that has changed of its arguments: their containers stay the test's own."""
    side = Unpacking()
    function, arguments, named = (unpack(argument, side) for argument in packed)
    parts: dict[int, Any] = {}
    containers([*arguments, *named.values()], parts, set())
    before = packed_text(arguments, named) if parts else b""
    reply: dict[str, Any]
    try:
        reply = {"r": pack_result(function(*arguments, **named), parts)}
    except BaseException as error:
        reply = {"x": raised(error)}
    if parts and packed_text(arguments, named) != before:
        reply["m"] = [[i, content(part, parts)] for i, part in enumerate(parts.values())]
    return reply


def packed_text(arguments: list, named: dict) -> bytes:
    found: dict[int, Any] = {}
    twice: set[int] = set()
    containers([*arguments, *named.values()], found, twice)
    side = HERE.knowing(None, {key: i for i, key in enumerate(found) if key in twice}) if twice else HERE
    return dumps([pack(arguments, side), pack(named, side)])


def content(part: Any, parts: dict[int, Any]) -> Any:
    """A container with the others of `parts` that it holds as references."""
    return pack(part, HERE.knowing({key: i for i, key in enumerate(parts) if parts[key] is not part}, None))


def pack_result(value: Any, parts: dict[int, Any]) -> Any:
    """A result; what in it is one of the arguments' containers, or comes twice, goes as a reference."""
    if type(value) not in CONTAINERS:
        return pack(value, HERE)
    found: dict[int, Any] = {}
    twice: set[int] = set()
    containers([value], found, twice)
    known = {key: i for i, key in enumerate(parts)} if not found.keys().isdisjoint(parts) else {}
    again = {key: len(parts) + i for i, key in enumerate(sorted(twice - known.keys()))}
    return pack(value, HERE.knowing(known, again) if known or again else HERE)


def batch(number: int, function: Any, inputs: list, each: bool) -> None:
    """Answers every call, with fresh arguments for each; with `each`, an iterable result goes as the list of its items."""
    side = Iterated() if each else PLAIN_HERE
    for i, packed in enumerate(inputs):
        arguments = unpack(packed)
        try:
            value = function(*arguments)
            send([number, i, "r", digest(value) if is_huge(value) else pack(value, side)])
            continue
        except TooLong:
            try:
                reply = [number, i, "r", digest(value)]
            except BaseException as error:
                reply = [number, i, "x", raised(error)]
        except BaseException as error:
            reply = [number, i, "x", raised(error)]
        send(reply)


class Unasked(Side):
    """Results of which nothing more will be asked: what is no plain data goes as a mere name."""

    def pack_object(self, value: Any) -> Any:
        return {"o": [0, OPAQUE, type(value).__name__]}


class Iterated(Unasked):
    """The same, but an iterable goes as the list of its items."""

    def pack_object(self, value: Any) -> Any:
        return pack(list(itertools.islice(value, EACH)), PLAIN_HERE)


PLAIN_HERE = Unasked()


def rehearse() -> None:
    """Does in the server what children do, so that they inherit specialised bytecode and the interpreter's caches, filled.

    Each child would have to make them anew, and to copy every page that it writes them to.
    """
    code = "from typing import List\n\ndef f(x: List[int]) -> int:\n    return x[0]\n"
    for _ in range(40):
        dumps(load(loads(dumps({"n": 1, "op": "load", "code": code, "names": ["f"]})[4:]), {}))
        dumps(call(loads(dumps([{"o": [0]}, [[1, 2]], {"m": {}}])[4:])))
    HERE.objects.clear()
    HERE.numbers.clear()
