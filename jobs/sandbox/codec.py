"""The closed codec between judge and child: plain data as JSON text, exact types rebuilt by the reader, never pickle.

Scalars and lists are themselves; everything else is an object with one key, its tag:

    {"t": [...]} tuple      {"s": [...]} set          {"z": [...]} frozenset   {"m": {...}} dict with str keys
    {"d": [[k, v], ...]}    {"i": "hex"} large int    {"c": [re, im]} complex  {"b": latin-1} bytes
    {"y": latin-1} bytearray {"r": [a, b, c]} range   {"D": "1.5"} Decimal     {"F": [n, d]} Fraction
    {"w": [kind, ...]} date, time, datetime, timedelta {"T": "int"} a builtin  {"e": 0} Ellipsis
    {"C": [[k, v], ...]} Counter    {"O": [[k, v], ...]} OrderedDict    {"G": [factory, [[k, v], ...]]} defaultdict
    {"Q": [maxlen, [...]]} deque    {"v": [kind, [...]]} keys, values or items of a dict
    {"a": [dtype, shape, [...]]} numpy array           {"n": [dtype, item]} numpy scalar
    {"h": hex} digest of a value too large to carry
    {"q": base64} list of ints and {"f": [base64, mask]} of floats (and ints, where the mask is 1), when they are long
    {"@": [n, value]} a container that comes again as {"&": n}: the very same object
    {"o": [...]} an object that stays on its side      {"u": [...]} an instance of a subclass of a builtin, with its value

What the last two hold is a Side's business (agent.py, remote.py). The reader trusts nothing: any text either becomes
plain data or raises Malformed. Both ends use this module, each its own copy. It imports little, and the rest where a
value needs it: a fork server pays with every fork for what it holds."""

import array
import binascii
import builtins
import itertools
import marshal
import math
import re
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

from jobs.sandbox.protocol import Malformed

MAX_DEPTH = 100
MAX_ITEMS = 1 << 21  # items of a list of lists from which only its digest is worth sending
MAX_BYTES = 1 << 26  # of a numpy array

# Builtins that a test may hand over by name (`remove_datatype((4, "a"), int)`): pure, and the same in both processes.
NAMED = {
    name: getattr(builtins, name)
    for name in (  # noqa: SIM905
        "abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter float format "
        "frozenset hash hex int isinstance issubclass iter len list map max min next object oct ord pow range repr "
        "reversed round set slice sorted str sum tuple type zip ArithmeticError AssertionError AttributeError "
        "Exception IndexError KeyError LookupError NotImplementedError OverflowError RecursionError RuntimeError "
        "StopIteration TypeError ValueError ZeroDivisionError"
    ).split()
}
NAMES = {id(value): name for name, value in NAMED.items()}
LONG = 32  # numbers in a list from which they go as bytes
EXACT = 1 << 53  # ints below it are exact as doubles
DIGITS = bytes.maketrans(b"\0\1", b"01")
NUMBERS = frozenset({int, float})
LEAVES = frozenset({type(None), bool, int, float, str})
NESTED = frozenset({list, dict})
DTYPE = re.compile(r"[<>|]([iu][1248]|b1|f[248]|c(8|16)|[SU]\d{1,7})")  # numpy's: numbers, bytes and text; "O" apart
PAIRS = frozenset({dict, Counter, OrderedDict, defaultdict})
MUTABLE = PAIRS | {list, set, bytearray, deque}
SEQUENCES = frozenset({list, tuple, deque})
CONTAINERS = MUTABLE | {tuple}
VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
BASES = (int, float, str, tuple, list, dict, set, frozenset, bytes, bytearray, complex, deque)


class Side:
    """What one side makes of values that are no plain data. This one has none: it refuses them."""

    # id: number of containers that are known, to be packed as {"&": number}; and of those to be numbered on the way.
    known: dict[int, int] | None = None
    twice: dict[int, int] | None = None

    def pack_object(self, value: Any) -> Any:
        """An object of no type of the codec's. Errors: TypeError."""
        raise TypeError(f"a {type(value).__name__} cannot be carried")

    def pack_instance(self, value: Any, base: type, depth: int) -> Any:
        """An instance of a subclass of `base`: as the base's value alone."""
        return pack(reduced(value, base), self, depth)

    def object(self, inner: Any) -> Any:
        """What {"o": inner} stands for. Errors: Malformed."""
        raise Malformed("an object where there can be none")

    def instance(self, inner: Any, depth: int) -> Any:
        """What {"u": inner} stands for. Errors: Malformed."""
        raise Malformed("an object where there can be none")

    def part(self, number: int) -> Any:
        """What {"&": number} stands for. Errors: Malformed."""
        raise Malformed("a container that is not known")

    def define(self, number: int, value: Any) -> None:
        """Remembers what {"&": number} stands for from now on."""
        raise Malformed("a container that is not known")


PLAIN = Side()


class Digest:
    """What stands for a value too large to carry: equal digests are equal values of the same types, order included."""

    def __init__(self, hex: str) -> None:
        self.hex = hex

    def __eq__(self, other: object) -> bool:
        return type(other) is Digest and other.hex == self.hex

    def __hash__(self) -> int:
        return hash(self.hex)


def pack(value: Any, side: Side = PLAIN, depth: int = 0) -> Any:
    """`value` as JSON-able data; what is not plain data becomes what `side` makes of it, or raises.

    Errors: RecursionError for a value nested deeper than MAX_DEPTH, TypeError from `side`.
    """
    kind = type(value)
    if kind in LEAVES:
        return {"i": hex(value)} if kind is int and value.bit_length() > 8192 else value
    if depth > MAX_DEPTH:
        raise RecursionError("a value is nested too deeply to be carried")
    if side.known is not None and id(value) in side.known:
        return {"&": side.known[id(value)]}
    if side.twice is not None and id(value) in side.twice:
        number = side.twice.pop(id(value))
        if side.known is None:
            side.known = {}
        packed = pack(value, side, depth)
        side.known[id(value)] = number
        return {"@": [number, packed]}
    if kind is list:
        return pack_items(value, side, depth)
    if kind is tuple:
        return {"t": pack_items(value, side, depth)}
    if kind is dict:
        kinds = set(map(type, value))
        if kinds <= {str}:
            return {"m": {k: pack(v, side, depth + 1) for k, v in value.items()}}
        return {"d": pack_pairs(value, side, depth)}
    if kind is set:
        return {"s": pack_items(value, side, depth)}
    if kind is frozenset:
        return {"z": pack_items(value, side, depth)}
    return pack_rare(value, kind, side, depth)


def pack_pairs(value: dict, side: Side, depth: int) -> list:
    return [[pack(k, side, depth + 1), pack(v, side, depth + 1)] for k, v in value.items()]


def containers(values: Any, found: dict[int, Any], twice: set[int], depth: int = 0) -> None:
    """Notes the mutable containers within `values` by id, in order, and the ids of those that come more than once.

    Both sides count the same ones in the same order: none lies in a set, and dicts keep their order.
    Errors: RecursionError for what is nested deeper than MAX_DEPTH, or in itself.
    """
    for value in values:
        kind = type(value)
        if kind in LEAVES:
            continue
        if kind in MUTABLE or kind.__name__ == "ndarray":
            if id(value) in found:
                twice.add(id(value))
                continue
            found[id(value)] = value
        elif kind is not tuple:
            continue
        if depth > MAX_DEPTH:
            raise RecursionError("a value is nested too deeply to be carried")
        if kind in SEQUENCES:
            if not LEAVES.issuperset(map(type, value)):
                containers(value, found, twice, depth + 1)
        elif kind in PAIRS:
            containers(value.values(), found, twice, depth + 1)


def assign(old: Any, new: Any) -> None:
    """Gives the container `old` the content of `new`. Errors: Malformed where that cannot be."""
    if type(old) is not type(new):
        raise Malformed("a changed argument of another type")
    if isinstance(old, (list, bytearray)):
        old[:] = new
    elif isinstance(old, dict):
        dict.clear(old)
        for key, value in dict.items(new):
            dict.__setitem__(old, key, value) if type(old) is not OrderedDict else old.__setitem__(key, value)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)
    elif old.shape == new.shape and old.dtype == new.dtype:
        old[...] = new
    else:
        raise Malformed("a changed argument of another shape")


def is_huge(value: Any) -> bool:
    """A guess, by the first item, at whether packing is a waste."""
    if type(value) not in (list, tuple) or not value or type(value[0]) not in (list, tuple, str):
        return False
    return len(value) * len(value[0]) > MAX_ITEMS


def digest(value: Any) -> dict[str, str]:
    """A huge value as its SHA-256, made piece by piece. Errors: ValueError for what is not plain data."""
    import hashlib

    total = hashlib.sha256(type(value).__name__.encode())
    pieces = (value[i : i + 4096] for i in range(0, len(value), 4096)) if type(value) in (list, tuple) else (value,)
    for piece in pieces:
        total.update(marshal.dumps(piece, 2))  # version 2 depends on nothing but the value
    return {"h": total.hexdigest()}


def pack_items(values: Any, side: Side, depth: int) -> Any:
    kinds = set(map(type, values))
    if len(values) >= LONG and kinds <= NUMBERS:
        numbers = pack_numbers(list(values), kinds)
        if numbers is not None:
            return numbers
    if kinds <= LEAVES and (int not in kinds or not any(type(v) is int and v.bit_length() > 8192 for v in values)):
        return values if type(values) is list else list(values)
    return [pack(value, side, depth + 1) for value in values]


def pack_numbers(values: list, kinds: set[type]) -> dict | None:
    """A long list of numbers as the bytes of an array, ten times faster than digits; None if an int is too large."""
    try:
        if float not in kinds:
            return {"q": binascii.b2a_base64(array.array("q", values), newline=False).decode()}
        mask = b""
        if int in kinds:
            mask = bytes([type(value) is int for value in values])
            if not all(-EXACT < value < EXACT for value in itertools.compress(values, mask)):
                return None
        doubles = binascii.b2a_base64(array.array("d", values), newline=False).decode()
        return {"f": [doubles, mask.translate(DIGITS).decode()]}
    except OverflowError:
        return None


def of(module: str, *names: str) -> list[type]:
    """Types of a module, none if nothing has imported it yet: then no value can be of them."""
    return [getattr(sys.modules[module], name) for name in names] if module in sys.modules else []


def pack_rare(value: Any, kind: type, side: Side, depth: int) -> Any:
    if kind is bytes:
        return {"b": value.decode("latin-1")}
    if kind is bytearray:
        return {"y": value.decode("latin-1")}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is range:
        return {"r": [pack(value.start), pack(value.stop), pack(value.step)]}
    if value is Ellipsis:
        return {"e": 0}
    if id(value) in NAMES:
        return {"T": NAMES[id(value)]}
    if kind in VIEWS:
        return {"v": [VIEWS[kind], pack_items(list(value), side, depth)]}
    if kind is Counter:
        return {"C": pack_pairs(value, side, depth)}
    if kind is OrderedDict:
        return {"O": pack_pairs(value, side, depth)}
    if kind is defaultdict and (value.default_factory is None or id(value.default_factory) in NAMES):
        return {"G": [NAMES.get(id(value.default_factory)), pack_pairs(value, side, depth)]}
    if kind is deque:
        return {"Q": [value.maxlen, pack_items(list(value), side, depth)]}
    packed = pack_imported(value, kind, side, depth)
    if packed is not None:
        return packed
    for base in BASES:
        if issubclass(kind, base):
            return side.pack_instance(value, base, depth)
    return side.pack_object(value)


def pack_imported(value: Any, kind: type, side: Side, depth: int) -> Any:
    """A value of a type that some module brings, or None."""
    if kind in of("decimal", "Decimal"):
        return {"D": str(value)}
    if kind in of("fractions", "Fraction"):
        return {"F": [pack(value.numerator), pack(value.denominator)]}
    if kind in of("datetime", "timedelta"):
        return {"w": ["timedelta", value.days, value.seconds, value.microseconds]}
    if kind in of("datetime", "date", "time", "datetime") and type(getattr(value, "tzinfo", None)) in (
        type(None), *of("datetime", "timezone"),
    ):  # fmt: skip
        return {"w": [kind.__name__, value.isoformat()]}
    if kind.__module__ == "numpy" and kind in of("numpy", "ndarray"):
        if DTYPE.fullmatch(value.dtype.str) or value.dtype.str == "|O":
            return {"a": [value.dtype.str, list(value.shape), pack_items(value.ravel().tolist(), side, depth)]}
    elif kind.__module__ == "numpy" and issubclass(kind, tuple(of("numpy", "generic"))):
        return {"n": [value.dtype.str, pack(value.item())]} if DTYPE.fullmatch(value.dtype.str) else None
    return None


def reduced(value: Any, base: type) -> Any:
    """The plain value inside an instance of a subclass of `base`, read with the base's own methods."""
    if base is int:
        return int.__add__(value, 0)
    if base is float:
        return float.__add__(value, 0.0) if float.__ne__(value, 0.0) else float.__mul__(value, 1.0)
    if base is str:
        return str.__str__(value) if type(str.__str__(value)) is str else "".join(str.__iter__(value))
    if base is complex:
        return complex.__mul__(value, 1)
    if base is dict:
        return dict(zip(dict.keys(value), dict.values(value), strict=True))
    if base is bytes:
        return bytes.__add__(value, b"")
    if base is bytearray:
        return bytearray.__add__(value, b"")
    if base is deque:
        return deque(deque.__iter__(value), deque.maxlen.__get__(value))  # type: ignore[attr-defined]
    return base(base.__iter__(value))  # type: ignore[attr-defined]


def unpack(value: Any, side: Side = PLAIN, depth: int = 0) -> Any:
    """The plain value that `pack` described; `side` knows what stands for objects that stay on the other side.

    Errors: Malformed for anything that `pack` cannot have made.
    """
    kind = type(value)
    if kind is list:
        return unpack_items(value, side, depth)
    if kind is not dict:
        return value
    if len(value) != 1 or depth > MAX_DEPTH:
        raise Malformed("an object without its one tag, or nested too deeply")
    ((tag, inner),) = value.items()
    try:
        if tag in ("t", "s", "z"):
            items = unpack_items(inner, side, depth)
            return tuple(items) if tag == "t" else set(items) if tag == "s" else frozenset(items)
        if tag == "m":
            if NESTED.isdisjoint(map(type, inner.values())):
                return inner
            return dict(zip(inner, unpack_items(list(inner.values()), side, depth), strict=True))
        if tag == "d":
            return dict(unpack_pairs(inner, side, depth))
        if tag in ("q", "f"):
            return unpack_numbers((tag, inner))
        if tag == "o":
            return side.object(inner)
        if tag == "u":
            return side.instance(inner, depth)
        if tag == "&":
            return side.part(need(int, inner))
        if tag == "@":
            number, packed = inner
            known = unpack(packed, side, depth)
            side.define(need(int, number), known)
            return known
        return unpack_rare(tag, inner, side, depth)
    except Malformed:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, KeyError, RecursionError, MemoryError) as error:
        raise Malformed(f"a bad {str(tag)[:8]!r}: {type(error).__name__}") from None


def unpack_pairs(pairs: Any, side: Side, depth: int) -> list[tuple]:
    return [(unpack(k, side, depth + 1), unpack(v, side, depth + 1)) for k, v in need(list, pairs)]


def unpack_items(values: Any, side: Side, depth: int) -> list:
    if type(values) is dict and len(values) == 1:
        return unpack_numbers(*values.items())
    if type(values) is not list or depth > MAX_DEPTH:
        raise Malformed("not a list, or nested too deeply")
    if NESTED.isdisjoint(map(type, values)):
        return values
    return [unpack(value, side, depth + 1) for value in values]


def unpack_numbers(item: tuple[str, Any]) -> list:
    tag, inner = item
    try:
        if tag == "q":
            return array.array("q", binascii.a2b_base64(need(str, inner))).tolist()
        if tag == "f":
            doubles, mask = inner
            values = array.array("d", binascii.a2b_base64(need(str, doubles))).tolist()
            if need(str, mask):
                values = [int(v) if m == "1" else v for v, m in zip(values, mask, strict=True)]
            return values
    except (TypeError, ValueError, OverflowError, MemoryError):
        pass
    raise Malformed("a bad list of numbers")


def unpack_rare(tag: str, inner: Any, side: Side, depth: int) -> Any:
    if tag == "v":
        kind, items = inner
        items = unpack_items(items, side, depth)
        if kind == "values":
            return dict(enumerate(items)).values()
        return dict.fromkeys(items).keys() if kind == "keys" else dict(map(tuple, items)).items()
    if tag in ("C", "O"):
        pairs = dict(unpack_pairs(inner, side, depth))
        return Counter(pairs) if tag == "C" else OrderedDict(pairs)
    if tag == "G":
        factory, pairs = inner
        return defaultdict(None if factory is None else NAMED[factory], unpack_pairs(pairs, side, depth))
    if tag == "Q":
        limit, items = inner
        return deque(unpack_items(items, side, depth), limit if limit is None else need(int, limit))
    if tag == "a":
        return unpack_array(inner, side, depth)
    if tag == "n":
        import numpy

        dtype, item = inner
        return numpy.dtype(name_of_dtype(dtype)).type(unpack(item))
    if tag == "i":
        return int(need(str, inner), 16)
    if tag == "b":
        return need(str, inner).encode("latin-1")
    if tag == "y":
        return bytearray(need(str, inner).encode("latin-1"))
    if tag == "c":
        real, imaginary = inner
        return complex(need(float, real), need(float, imaginary))
    if tag == "r":
        start, stop, step = (need(int, unpack(part)) for part in inner)
        return range(start, stop, step)
    if tag == "D":
        from decimal import Decimal

        return Decimal(need(str, inner))
    if tag == "F":
        from fractions import Fraction

        numerator, denominator = (need(int, unpack(part)) for part in inner)
        return Fraction(numerator, denominator)
    if tag == "e":
        return Ellipsis
    if tag == "h":
        return Digest(need(str, inner))
    if tag == "T":
        return NAMED[inner]
    if tag == "w":
        import datetime

        name, *parts = inner
        if name == "timedelta":
            days, seconds, microseconds = (need(int, part) for part in parts)
            return datetime.timedelta(days, seconds, microseconds)
        kinds: dict[str, Any] = {"date": datetime.date, "time": datetime.time, "datetime": datetime.datetime}
        return kinds[name].fromisoformat(*parts)
    raise Malformed("an unknown tag")


def name_of_dtype(name: Any) -> str:
    if type(name) is not str or not (DTYPE.fullmatch(name) or name == "|O"):
        raise Malformed("an array of another type")
    return name


def unpack_array(inner: Any, side: Side, depth: int) -> Any:
    import numpy

    dtype, shape, items = inner
    kind, items = numpy.dtype(name_of_dtype(dtype)), unpack_items(items, side, depth)
    if math.prod(need(int, size) for size in shape) != len(items) or len(items) * kind.itemsize > MAX_BYTES:
        raise Malformed("an array of another size")
    if max(shape, default=0) > MAX_BYTES or min(shape, default=0) < 0:
        raise Malformed("an array of another size")
    flat = numpy.empty(len(items), dtype=kind)
    for i, item in enumerate(items) if dtype == "|O" else ():
        flat[i] = item
    if dtype != "|O":
        flat[:] = items
    return flat.reshape(shape)


def need(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Malformed(f"not a {kind.__name__}")
    return value
