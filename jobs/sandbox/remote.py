"""The submission's names as a test in the judge sees them: calls are carried out in the child, values come back plain.

What cannot come back as plain data (an instance of the submission's own class, a generator, a match object) stays in
the child and is a `Remote` here. Its attributes, items, iteration, length, truth and text are asked of the child and
are plain data themselves. It is equal to nothing but itself, ordered with nothing and has no arithmetic, because the
answer would be the submission's word on what the test expects; nor has it the predicates of strings and sets.
"""

import builtins
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jobs.sandbox.codec import Malformed, pack, unpack

if TYPE_CHECKING:
    from jobs.sandbox.judge import Child

# Methods of plain data that decide a test by themselves; an object that merely claims them is not that data.
PREDICATES = frozenset({
    name for kind in (str, bytes, set, frozenset, float, int) for name in dir(kind) if name.startswith("is")
} | {"startswith", "endswith"})  # fmt: skip


class RemoteError(Exception):
    """The submission raised something that is no ordinary built-in exception."""


class Remote:
    """An object in the child, by number."""

    __slots__ = ("_child", "_number")

    def __init__(self, child: "Child", number: int) -> None:
        object.__setattr__(self, "_child", child)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name in PREDICATES or (name.startswith("__") and name.endswith("__") and name != "__name__"):
            raise AttributeError(f"{name} of an object that stays in the child")
        return ask(self._child, "getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ask(self._child, "setattr", self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return call(self, list(arguments), named)

    def __getitem__(self, key: Any) -> Any:
        return ask(self._child, "getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        ask(self._child, "setitem", self, key, value)

    def __len__(self) -> int:
        return ask(self._child, "len", self)

    def __bool__(self) -> bool:
        return ask(self._child, "bool", self)

    def __int__(self) -> int:
        return ask(self._child, "int", self)

    def __float__(self) -> float:
        return ask(self._child, "float", self)

    def __str__(self) -> str:
        return ask(self._child, "str", self)

    def __repr__(self) -> str:
        return ask(self._child, "repr", self)

    def __iter__(self) -> Iterator:
        iterator = ask(self._child, "iter", self)
        if not isinstance(iterator, Remote):
            raise TypeError("an iterator that is none")
        return items(iterator)

    def __next__(self) -> Any:
        try:
            return ask(self._child, "next", self)
        except RemoteError as error:
            if error.args[:1] == ("StopIteration",):
                raise StopIteration from None
            raise

    def __contains__(self, value: Any) -> bool:
        return any(value is item or value == item for item in self)


def items(iterator: Remote) -> Iterator:
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return


def keep(value: Any) -> dict[str, list]:
    """How an argument that is a Remote goes back to where its object is."""
    if type(value) is Remote:
        return {"o": [value._number, True]}
    raise TypeError(f"a {type(value).__name__} cannot be handed to the submission")


def ask(child: "Child", op: str, *arguments: Any) -> Any:
    """The plain result of an operation in the child; raises what the submission raised."""
    reply = child.request({"op": op, "args": [pack(argument, keep) for argument in arguments]})
    return result(child, reply)


def call(function: Remote, arguments: list, named: dict[str, Any]) -> Any:
    """Calls `function` in the child, then carries changes of the arguments back into the caller's own objects."""
    child = function._child
    packed = [pack(function, keep), pack(arguments, keep), pack(named, keep)]
    reply = child.request({"op": "call", "args": packed})
    value = result(child, reply)
    if "m" in reply:
        changed = reply["m"]
        if type(changed) is not list or len(changed) != 2:
            raise Malformed("changed arguments that are none")
        carry_back(arguments, unpack(changed[0], child.remote))
        carry_back(named, unpack(changed[1], child.remote))
    return value


def carry_back(old: Any, new: Any) -> Any:
    """Makes the mutable parts of `old` what `new` is, keeping the caller's objects; what to put in its place."""
    if type(old) is not type(new):
        return new
    if type(old) is list:
        old[:] = [carry_back(a, b) for a, b in zip(old, new, strict=False)] + new[len(old) :]
        return old
    if type(old) is tuple:
        return tuple(carry_back(a, b) for a, b in zip(old, new, strict=True)) if len(old) == len(new) else new
    if type(old) is dict:
        fresh = {key: carry_back(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(fresh)
        return old
    if type(old) is set:
        old.clear()
        old.update(new)
        return old
    if type(old) is bytearray:
        old[:] = new
        return old
    return new


def result(child: "Child", reply: Any) -> Any:
    """The value in a reply, or the exception in it, as a built-in one where that is safe."""
    if type(reply) is not dict:
        raise Malformed("a reply that is none")
    if "x" in reply:
        raise rebuilt(reply["x"])
    if "r" not in reply:
        raise Malformed("a reply without a result")
    return unpack(reply["r"], child.remote)


def rebuilt(raised: Any) -> Exception:
    """The submission's exception: the nearest built-in class, so that a test can expect it, or RemoteError.

    StopIteration is never raised here: inside a test's `all(map(...))` it would end the loop as if all were well.
    """
    if type(raised) is not list or len(raised) != 2 or type(raised[0]) is not list or type(raised[1]) is not str:
        raise Malformed("an exception that is none")
    names, text = raised
    for name in names:
        kind = getattr(builtins, name, None) if type(name) is str else None
        if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration):
            if kind is Exception:
                break
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError wants five arguments
                break
    first = names[0] if names and type(names[0]) is str else "?"
    return RemoteError(first, text)
