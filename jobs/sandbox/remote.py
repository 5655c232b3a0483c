"""The submission's names as a test in the judge sees them: calls are carried out in the child, values come back plain.

What cannot come back as plain data (an instance of the submission's own class, a generator, a match object) stays in
the child and is a `Remote` here. Its attributes, items, length, truth and text are asked of the child, once each, and
the answers kept: an object cannot be one thing to one line of a test and another thing to the next. Iteration, items
and length must agree, as those of a list or of a dict do.

An instance of a subclass of a built-in class comes with its plain value, by which it is compared, and stays in the
child as well: `Named` where the value cannot change (IntEnum, namedtuple), `RemoteContainer` where it can.

What decides a test is never the submission's word. A Remote is equal to no plain data, and has none of the predicates
of strings and sets. Where the task is to write a class, its operators on plain data are its own business and cannot be
judged: Unsupported. Operators between two of the submission's objects are answers like any other.
"""

import builtins
import contextlib
import itertools
import operator
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from jobs.sandbox.codec import BASES, LEAVES, Side, assign, containers, pack, unpack
from jobs.sandbox.names import MODULES
from jobs.sandbox.protocol import Malformed, dumps
from jobs.sandbox.verdict import SUBMITTED, Invalid, RemoteError, Unsupported, is_exhausted, line

if TYPE_CHECKING:
    from jobs.sandbox.child import Child

# Methods of plain data that decide a test by themselves; an object that merely claims them is not that data.
PREDICATES = frozenset({
    name for kind in (str, bytes, set, frozenset, float, int) for name in dir(kind) if name.startswith("is")
} | {"startswith", "endswith"})  # fmt: skip
SPECIAL = frozenset({"__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "__dict__", "__wrapped__"})
CALLABLE, COROUTINE = 1, 2


class Session(Side):
    """What a test and one child know of each other: the child's objects here, and the test's functions there."""

    def __init__(self, child: "Child", of_class: bool) -> None:
        self.child, self.of_class = child, of_class
        self.epoch = 0  # how often the submission has run, where its objects may be connected: see Remote.answers
        self.remotes: dict[int, Any] = {}
        self.kinds: dict[tuple[type, str], type] = {}
        self.functions: list[Any] = []
        self.parts: list[Any] = []
        self.handed: list[Any] = []
        self.defined: dict[int, Any] = {}
        child.callback = self.call_back

    # ---- from here to the child

    def pack_object(self, value: Any) -> Any:
        """A Remote goes back to where its object is; a function or iterator of the test's stays here, under a number."""
        if isinstance(value, Remote):
            self.handed.append(value)
            return {"o": [value._number]}
        if callable(value):
            return {"o": ["f", self.keep(value)]}
        if hasattr(type(value), "__next__") and iter(value) is value:
            return {"o": ["i", self.keep(lambda: next(value))]}
        raise Unsupported(f"a {type(value).__name__} of the test's own cannot be handed to the submission")

    def pack_instance(self, value: Any, base: type, depth: int) -> Any:
        if isinstance(value, Named):
            return {"o": [value._number]}
        raise Unsupported(f"a {type(value).__name__} of the test's own cannot be handed to the submission")

    def keep(self, function: Callable) -> int:
        for number, known in enumerate(self.functions):
            if known is function:
                return number
        self.functions.append(function)
        return len(self.functions) - 1

    # ---- from the child to here

    def object(self, inner: Any) -> Any:
        if len(inner) == 2 and inner[0] == "f":
            return self.functions[inner[1]]
        number, kind, name = inner
        known = self.remotes.get(number)
        if known is None or not isinstance(known, Remote):
            base = RemoteFunction if kind == CALLABLE else RemoteCoroutine if kind == COROUTINE else Remote
            known = self.remotes[whole(number)] = self.named(base, name)(self, number)
        return known

    def instance(self, inner: Any, depth: int) -> Any:
        number, base, name, own, packed = inner
        plain = unpack(packed, self, depth + 1)
        if type(plain) not in BASES or type(plain).__name__ != base or type(own) is not list:
            raise Malformed("an instance of another class than it says")
        known: Any = self.remotes.get(number)
        if base in MUTABLE_NAMES:
            if not isinstance(known, RemoteContainer):
                known = self.remotes[whole(number)] = self.named(RemoteContainer, name)(self, number)
                object.__setattr__(known, "_base", type(plain))
                object.__setattr__(known, "_own", frozenset(own))
            return known
        kind = next(kind for kind in NAMED_KINDS if issubclass(kind, type(plain)))
        held = getattr(known, "_value", None)
        if type(known) is not self.named(kind, name) or held != plain:
            known = self.named(kind, name)(plain)
            known._session, known._number, known._own, known._value = self, whole(number), frozenset(own), plain
            self.remotes[number] = known
        return known

    def named(self, base: type, name: Any) -> type:
        """A class of proxies that has the name of the submission's class."""
        if type(name) is not str or not name.isidentifier() or len(name) > 100:
            name = "object"
        if (base, name) not in self.kinds:
            space = {"__slots__": (), "__doc__": DOC} if issubclass(base, Remote) else {"__doc__": DOC}
            self.kinds[base, name] = type(name, (base,), space)
        return self.kinds[base, name]

    def part(self, number: int) -> Any:
        if number in self.defined:
            return self.defined[number]
        return self.parts[number]

    def define(self, number: int, value: Any) -> None:
        self.defined[number] = value

    # ---- questions

    def ask(self, op: str, *arguments: Any) -> Any:
        """The plain result of an operation in the child; raises what the submission raised."""
        packed = self.packed(arguments)
        self.parts, self.defined = [], {}
        return self.result(self.child.request({"op": op, "args": packed}))

    def packed(self, arguments: Any) -> list:
        try:
            return [pack(argument, self) for argument in arguments]
        except (RecursionError, OverflowError, TypeError) as error:
            raise Unsupported(f"an argument cannot be handed to the submission: {error}") from None

    def call(self, function: Any, arguments: list, named: dict[str, Any]) -> Any:
        """Calls `function` in the child, then carries changes of the arguments back into the caller's own objects."""
        found: dict[int, Any] = {}
        twice: set[int] = set()
        self.handed = []
        try:
            containers([*arguments, *named.values()], found, twice)
        except RecursionError as error:
            raise Unsupported(f"an argument cannot be handed to the submission: {error}") from None
        if twice:
            self.twice = {key: i for i, key in enumerate(found) if key in twice}
        try:
            packed = self.packed([function, arguments, named])
        finally:
            self.twice = self.known = None
        self.changed(function)
        reply = self.child.request({"op": "call", "args": packed})
        self.changed(function)
        self.parts, self.defined = list(found.values()), {}
        if "m" in reply:
            for number, content in reply["m"]:
                assign(self.parts[number], unpack(content, self))
        return self.result(reply)

    def changed(self, function: Any) -> None:
        """Forgets the answers of objects that a call may have changed: all where the task is a class, else those in it."""
        self.epoch += self.of_class
        for remote in (*self.handed, getattr(function, "_owner", None)):
            if isinstance(remote, Remote):
                object.__setattr__(remote, "_answers", {})

    def result(self, reply: dict) -> Any:
        """The value in a reply, or the exception in it, as a built-in one where that is safe."""
        if "x" in reply:
            raise rebuilt(reply["x"])
        if "r" not in reply:
            raise Malformed("a reply without a result")
        try:
            return unpack(reply["r"], self)
        except StopIteration:  # would end the loop of a test as if all were well
            raise Malformed("a result that cannot be read") from None

    def call_back(self, request: Any) -> dict[str, Any]:
        """Carries out a call of one of the test's functions."""
        number, arguments, named = request
        try:
            function = self.functions[whole(number)]
            values = [unpack(argument, self) for argument in arguments]
            value = function(*values, **{key: unpack(item, self) for key, item in named.items()})
            return {"a": pack(value, self)}
        except StopIteration:
            return {"stop": 1}
        except Malformed:
            raise
        except Exception as error:
            if is_exhausted(error):
                raise
            return {"x": f"{type(error).__name__}: {error}"[:200]}

    def load(self, code: str, names: list[str]) -> dict[str, Any]:
        """Runs the submission's top level; the values of `names` that it defines. Errors: Invalid, what it raised."""
        values = loaded(self.child, code, names)
        return {name: unpack(value, self) for name, value in values.items()}


def loaded(child: "Child", code: str, names: list[str]) -> dict[str, Any]:
    """Runs the submission's top level; those of `names` that it defines, packed. Errors: Invalid, what it raised."""
    try:
        reply = child.request({"op": "load", "code": code, "names": names})
    except OverflowError:
        raise Invalid("the program is too long") from None
    if "invalid" in reply:
        raise Invalid(line(rebuilt(reply["invalid"])))
    if "x" in reply:
        raise rebuilt(reply["x"])
    try:
        values = reply["r"]["m"]
        return {name: values[name] for name in names if name in values}
    except (TypeError, KeyError):
        raise Malformed("a reply without names") from None


def whole(number: Any) -> int:
    if type(number) is not int:
        raise Malformed("a number that is none")
    return number


class Remote:
    """An object in the child, by number."""

    __slots__ = ("_answers", "_base", "_epoch", "_items", "_number", "_own", "_owner", "_session")

    def __init__(self, session: Session, number: int) -> None:
        for name, value in (("_session", session), ("_number", number), ("_owner", None), ("_answers", {}),
                            ("_epoch", 0), ("_items", None), ("_base", None), ("_own", frozenset())):  # fmt: skip
            object.__setattr__(self, name, value)

    def _kept(self) -> dict[bytes, Any]:
        """The answers that hold until the submission runs again on this object, or at all where the task is a class."""
        if self._epoch != self._session.epoch:
            object.__setattr__(self, "_epoch", self._session.epoch)
            object.__setattr__(self, "_answers", {})
        if not self._answers:
            object.__setattr__(self, "_items", None)
        return self._answers

    def _ask(self, op: str, *arguments: Any) -> Any:
        """The child's answer, the same whenever it is asked again."""
        kept = self._kept()
        try:
            key = op.encode() + dumps([pack(argument, self._session) for argument in arguments])
        except (RecursionError, OverflowError, TypeError) as error:
            raise Unsupported(f"an argument cannot be handed to the submission: {error}") from None
        if key not in kept:
            kept[key] = self._session.ask(op, self, *arguments)
        return kept[key]

    def _change(self, op: str, *arguments: Any) -> None:
        self._session.epoch += self._session.of_class
        object.__setattr__(self, "_answers", {})
        self._session.ask(op, self, *arguments)

    def __getattr__(self, name: str) -> Any:
        if name in PREDICATES or (name.startswith("__") and name.endswith("__") and name not in SPECIAL):
            raise AttributeError(f"{name} of an object that stays in the child")
        value = self._ask("getattr", name)
        if isinstance(value, RemoteFunction) and value._owner is None:
            object.__setattr__(value, "_owner", self)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._change("setattr", name, value)

    def __delattr__(self, name: str) -> None:
        self._change("delattr", name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._change("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._change("delitem", key)

    def __len__(self) -> int:
        return self._checked(self._ask("len"))

    def __bool__(self) -> bool:
        return self._ask("bool")

    def __int__(self) -> int:
        return self._ask("int")

    def __float__(self) -> float:
        return self._ask("float")

    def __complex__(self) -> complex:
        return self._ask("complex")

    def __index__(self) -> int:
        return self._ask("index")

    def __bytes__(self) -> bytes:
        return self._ask("bytes")

    def __str__(self) -> str:
        return self._ask("str")

    def __repr__(self) -> str:
        return self._ask("repr")

    def __format__(self, form: str) -> str:
        return self._ask("format", form)

    def __hash__(self) -> int:
        return self._ask("hash")

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, (Remote, Named)) and self._session.ask("isinstance", value, self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Remote) and self._session.ask("issubclass", kind, self) is True

    def __enter__(self) -> Any:
        return self._session.call(self._session.ask("getattr", self, "__enter__"), [], {})

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if kind is not None:
            return False
        return self._session.call(self._session.ask("getattr", self, "__exit__"), [None, None, None], {})

    def __mro_entries__(self, bases: Any) -> NoReturn:
        raise Unsupported("its tests derive a class from one of the submission's")

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return following(self, "anext", StopAsyncIteration)

    # ---- items: one thing, a list's or a dict's, whichever way a test looks at them

    def __iter__(self) -> Iterator:
        self._kept()
        iterator = self._ask("iter")
        if not isinstance(iterator, Remote):
            return iter(iterator)
        if iterator is self:
            return self
        if self._items is None:
            object.__setattr__(self, "_items", Items(iterator))
        return self._items.replay(self)

    def __next__(self) -> Any:
        return following(self, "next", StopIteration)

    def __getitem__(self, key: Any) -> Any:
        value = self._ask("getitem", key)
        if type(key) is slice:
            if not self._is_mapping() and [*value] != [*self][key]:
                self._disagree()
            return value
        self._kept().setdefault(ITEMS, []).append((key, value))
        self._agree(key, value)
        return value

    def __contains__(self, value: Any) -> bool:
        if self._session.of_class:
            return self._ask("contains", value)
        return any(value is item or value == item for item in self)

    def _is_mapping(self) -> bool:
        return self._ask("own", "keys") is True

    def _agree(self, key: Any, value: Any) -> None:
        """Raises unless the item fits what iteration has shown so far. A dict's iteration shows keys, a list's items."""
        items = self._items
        if items is None:
            return
        if self._is_mapping():
            if items.complete and not any(same(key, item) for item in items):
                self._disagree()
        elif type(key) is int:
            known = 0 <= key < len(items) or (items.complete and -len(items) <= key < 0)
            if known and not same(items[key], value):
                self._disagree()

    def _fetched(self) -> None:
        """Holds the iteration so far against the items and the length that were asked for."""
        for key, value in self._kept().get(ITEMS, ()):
            self._agree(key, value)
        length = self._kept().get(LENGTH)
        if length is not None:
            self._checked(length)

    def _checked(self, length: int) -> int:
        items = self._items
        if items is not None and (len(items) > length or (items.complete and len(items) != length)):
            self._disagree()
        return length

    def _disagree(self) -> NoReturn:
        raise RemoteError("", "an object's iteration, items and length contradict one another")

    # ---- operators: between the submission's own objects alone

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Remote):
            return self._ask("eq", other)
        if self._session.of_class and self._ask("own", "__eq__"):
            raise Unsupported(f"compares a {type(self).__name__}, a class of the submission's own, with plain data")
        if type(other).__module__ in sys.stdlib_module_names and not callable(other):
            comparable(other)
        return False

    def __ne__(self, other: Any) -> bool:
        return self._ask("ne", other) if isinstance(other, Remote) else not self == other

    def _operate(self, name: str, left: Any, right: Any) -> Any:
        if isinstance(left, Remote) and isinstance(right, Remote):
            return left._ask("operate", name, right)
        if self._session.of_class:
            kind = type(self).__name__
            raise Unsupported(f"{name} of a {kind}, a class of the submission's own, and of plain data")
        return NotImplemented


class Items(list):
    """What one iteration of the child's object has shown so far; later iterations show it again."""

    def __init__(self, iterator: Any, items: Any = (), complete: bool = False) -> None:
        super().__init__(items)
        self.iterator, self.complete = iterator, complete

    def replay(self, remote: Remote) -> Iterator:
        for number in itertools.count():
            if number == len(self):
                if self.complete:
                    return
                try:
                    self.append(next(self.iterator))
                except StopIteration:
                    self.complete = True
                if remote._items is self:
                    remote._fetched()
                if self.complete:
                    return
            yield self[number]


def same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b) or bool(a != a and b != b)


def binary(name: str) -> Any:
    return lambda self, other: self._operate(name, self, other)


def reflected(name: str) -> Any:
    return lambda self, other: self._operate(name, other, self)


def unary(name: str) -> Any:
    return lambda self, *more: self._ask("operate", name, *more)


for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "and_", "or_", "xor", "lshift",
             "rshift", "matmul"):  # fmt: skip
    setattr(Remote, f"__{name.strip('_')}__", binary(name))
    setattr(Remote, f"__r{name.strip('_')}__", reflected(name))
for name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{name}__", binary(name))
for name in ("neg", "pos", "abs", "invert", "round"):
    setattr(Remote, f"__{name}__", unary(name))


class RemoteFunction(Remote):
    """A function, a method or a class of the submission's."""

    __slots__ = ()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._session.call(self, list(arguments), named)


class RemoteCoroutine(Remote):
    """What an async function of the submission's has returned: it runs to its end in the child when it is awaited."""

    __slots__ = ()

    def send(self, value: Any) -> NoReturn:
        raise StopIteration(self._ask("await"))

    def __next__(self) -> NoReturn:  # by which an event loop sends where there is one
        self.send(None)

    def throw(self, *error: Any) -> NoReturn:
        raise error[0]

    def close(self) -> None:
        """Nothing has begun that would have to end."""

    def __await__(self) -> Iterator:
        return self._ask("await")
        yield


class RemoteContainer(Remote):
    """An instance of a subclass of list, dict, set, bytearray or deque: read and compared by its plain value.

    What its class has replaced of the base, it answers itself.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._base

    def __getattr__(self, name: str) -> Any:
        if name in PREDICATES and name not in self._own:
            return getattr(self._plain(), name)
        return super().__getattr__(name)

    def _plain(self) -> Any:
        value = self._ask("plain", self._base.__name__)
        if type(value) is not self._base:
            raise Malformed("a plain value of another class")
        return value

    def __iter__(self) -> Iterator:
        if "__iter__" in self._own:
            return super().__iter__()
        self._kept()
        if self._items is None:
            plain = list(self._plain())
            object.__setattr__(self, "_items", Items(None, plain, complete=True))
            self._fetched()
        return self._items.replay(self)

    def __len__(self) -> int:
        return super().__len__() if "__len__" in self._own else len(self._plain())

    def __bool__(self) -> bool:
        return super().__bool__() if {"__len__", "__bool__"} & self._own else bool(self._plain())

    def __contains__(self, value: Any) -> bool:
        return super().__contains__(value) if "__contains__" in self._own else value in self._plain()

    def __getitem__(self, key: Any) -> Any:
        plain = self._plain()
        if "__getitem__" in self._own or (isinstance(plain, dict) and key not in plain):
            return super().__getitem__(key)
        return plain[key]

    def _is_mapping(self) -> bool:
        return issubclass(self._base, dict)

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Remote) and "__eq__" in self._own:
            return super().__eq__(other)
        return self._plain() == plain_of(other)

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def _operate(self, name: str, left: Any, right: Any) -> Any:
        if isinstance(left, Remote) and isinstance(right, Remote):
            return super()._operate(name, left, right)
        if f"__{name.strip('_')}__" in self._own:
            return super()._operate(name, left, right)
        return getattr(operator, name)(plain_of(left), plain_of(right))


def plain_of(value: Any) -> Any:
    return value._plain() if isinstance(value, RemoteContainer) else value


class Named:
    """An instance of a subclass of a built-in class whose value cannot change: that value, and the rest in the child."""

    _session: Session
    _number: int
    _own: frozenset
    _value: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("_session", "_number", "_own", "_value"):
            raise AttributeError(name)
        if name.startswith("__") and name.endswith("__") and name not in SPECIAL:
            raise AttributeError(f"{name} of an object that stays in the child")
        kept = self.__dict__.setdefault("_answers", {})
        key = (name, self._session.epoch)
        if key not in kept:
            kept[key] = self._session.ask("getattr", self, name)
        return kept[key]

    def __str__(self) -> str:
        return self._session.ask("str", self) if {"__str__", "__repr__"} & self._own else super().__str__()

    def __repr__(self) -> str:
        return self._session.ask("repr", self) if "__repr__" in self._own else super().__repr__()

    def __format__(self, form: str) -> str:
        if {"__str__", "__repr__", "__format__"} & self._own:
            return self._session.ask("format", self, form)
        return super().__format__(form)


NAMED_KINDS = tuple(type("Named", (Named, base), {}) for base in (int, float, str, tuple, frozenset, bytes, complex))
MUTABLE_NAMES = frozenset({"list", "dict", "set", "bytearray", "deque"})
DOC = property(lambda self: self.__getattr__("__doc__"))
ITEMS, LENGTH = b"items", b"len" + dumps([])


def following(iterator: Remote, question: str, end: type[Exception]) -> Any:
    """What an iterator gives next; raises `end` where the submission's own has come to its end."""
    try:
        return iterator._session.ask(question, iterator)
    except RemoteError as error:
        if error.args[:1] == (end.__name__,):
            raise end from None
        raise


def comparable(value: Any) -> None:
    """Errors: Unsupported for a value of a library's class that the codec does not carry: no answer can be equal to it."""
    try:
        pack(value)
    except TypeError:
        raise Unsupported(f"compares with a {type(value).__name__}, which cannot be carried") from None
    except (RecursionError, OverflowError):
        return


def rebuilt(raised: Any, depth: int = 0) -> Exception:
    """The submission's exception: the nearest class of Python's own, so that a test can expect it, or RemoteError.

    StopIteration is never raised here: inside a test's `all(map(...))` it would end the loop as if all were well.
    """
    shape = (list, str, list, dict, list)
    if type(raised) is not list or tuple(map(type, raised)) != shape or depth > 5:
        raise Malformed("an exception that is none")
    names, text, arguments, attributes, group = raised
    error = nearest(names, text, arguments, group, depth)
    setattr(error, SUBMITTED, True)
    if LEAVES.issuperset(map(type, attributes.values())):
        for name, value in attributes.items():
            if name.isidentifier() and not name.startswith("_") and not hasattr(error, name):
                with contextlib.suppress(AttributeError, TypeError, ValueError):
                    setattr(error, name, value)
    return error


def nearest(names: list, text: str, arguments: list, group: list, depth: int) -> Exception:
    """An exception of the first class in `names` that is Python's own and no more general than Exception's heirs."""
    for name in names:
        kind = exception_class(name) if type(name) is str else None
        if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration):
            if kind is Exception:
                break
            if issubclass(kind, ExceptionGroup):
                if len(group) == 2 and type(group[0]) is str and type(group[1]) is list and group[1]:
                    return kind(group[0], [rebuilt(inner, depth + 1) for inner in group[1]])
                break
            error = kind.__new__(kind)
            error.args = tuple(arguments) if LEAVES.issuperset(map(type, arguments)) else ()
            if str_of(error) != text and text:
                error = kind.__new__(kind, text)
                error.args = (text,)
                if isinstance(error, SyntaxError):
                    error.msg = text
            return error
    first = names[0].rpartition(".")[2] if names and type(names[0]) is str else "?"
    return type(first if first.isidentifier() else "RemoteError", (RemoteError,), {})(first, text)


def str_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def exception_class(name: str) -> Any:
    """A builtin class by its name, or a module's of the standard library as `module.Class`."""
    module, _, kind = name.rpartition(".")
    if not module:
        return getattr(builtins, kind, None)
    return getattr(sys.modules.get(module), kind, None) if module.partition(".")[0] in MODULES else None
