"""The closed codec between judge and child: plain data as JSON text, exact types rebuilt by the reader, never pickle.

Scalars and lists are themselves; everything else is an object with one key, its tag:

    {"t": [...]} tuple      {"s": [...]} set          {"z": [...]} frozenset   {"m": {...}} dict with str keys
    {"d": [[k, v], ...]}    {"i": "hex"} large int    {"c": [re, im]} complex  {"b": latin-1} bytes
    {"y": latin-1} bytearray {"r": [a, b, c]} range   {"D": "1.5"} Decimal     {"F": [n, d]} Fraction
    {"w": [kind, ...]} date, time, datetime, timedelta                         {"a": [dtype, list]} numpy array
    {"T": "int"} a builtin  {"e": 0} Ellipsis         {"o": [id, callable]} an object that stays in the child
    {"h": hex} digest of a value too large to carry
    {"q": base64} list of ints and {"f": [base64, mask]} of floats (and ints, where the mask is 1), when they are long

An instance of a subclass is reduced to its base's value, so what the reader gets cannot lie about equality. The
reader trusts nothing: any text either becomes plain data or raises Malformed. Both ends use this module, each its
own copy. It imports little, and the rest where a value needs it: a fork server pays with every fork for what it holds."""

import array
import binascii
import builtins
import itertools
import json
import marshal
import struct
import sys
from collections.abc import Callable
from json.encoder import c_make_encoder, encode_basestring_ascii  # type: ignore[attr-defined]
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 1 << 21  # items of a list of lists from which only its digest is worth sending
MAX_FRAME = 1 << 24  # bytes of one message; a longer one is a broken protocol
HEADER = struct.Struct("<I")

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
INTS = (f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = frozenset({"bool", "float16", "float32", "float64", *INTS})


class Malformed(ValueError):
    """The other side sent something that is not a value of this codec."""


class TooLong(OverflowError):
    """A message would be longer than MAX_FRAME."""


def refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__} cannot be carried")


class Digest:
    """What stands for a value too large to carry: equal digests are equal values of the same types, order included."""

    def __init__(self, hex: str) -> None:
        self.hex = hex

    def __eq__(self, other: object) -> bool:
        return type(other) is Digest and other.hex == self.hex

    def __hash__(self) -> int:
        return hash(self.hex)


scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # json.loads looks for encodings and white space too
encoder = c_make_encoder(None, refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def dumps(message: Any) -> bytes:
    """A message of lists, str-keyed dicts and scalars as a frame: four bytes of length, then JSON text."""
    text = "".join(encoder(message, 0)).encode("ascii")
    if len(text) > MAX_FRAME:
        raise TooLong(f"a message of {len(text)} bytes is longer than {MAX_FRAME}")
    return HEADER.pack(len(text)) + text


def loads(text: bytes) -> Any:
    """The JSON value in a frame's text, before `unpack`. Errors: Malformed."""
    try:
        value, end = scan(text.decode(), 0)
        if end != len(text):
            raise ValueError("more than one value")
        return value
    except (ValueError, StopIteration, RecursionError, MemoryError) as error:
        raise Malformed(f"not a message: {type(error).__name__}") from None


def pack(value: Any, keep: Callable[[Any], Any] = refuse, depth: int = 0) -> Any:
    """`value` as JSON-able data; what is not plain data becomes what `keep` makes of it, or raises.

    Errors: RecursionError for a value nested deeper than MAX_DEPTH, TypeError from `keep`.
    """
    kind = type(value)
    if kind in LEAVES:
        return {"i": hex(value)} if kind is int and value.bit_length() > 8192 else value
    if depth > MAX_DEPTH:
        raise RecursionError("a value is nested too deeply to be carried")
    if kind is list:
        return pack_items(value, keep, depth)
    if kind is tuple:
        return {"t": pack_items(value, keep, depth)}
    if kind is dict:
        kinds = set(map(type, value))
        if kinds <= {str}:
            return {"m": {k: pack(v, keep, depth + 1) for k, v in value.items()}}
        return {"d": [[pack(k, keep, depth + 1), pack(v, keep, depth + 1)] for k, v in value.items()]}
    if kind is set:
        return {"s": pack_items(value, keep, depth)}
    if kind is frozenset:
        return {"z": pack_items(value, keep, depth)}
    return pack_rare(value, kind, keep, depth)


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


def pack_items(values: Any, keep: Callable[[Any], Any], depth: int) -> Any:
    kinds = set(map(type, values))
    if len(values) >= LONG and kinds <= NUMBERS:
        numbers = pack_numbers(list(values), kinds)
        if numbers is not None:
            return numbers
    if kinds <= LEAVES and (int not in kinds or not any(type(v) is int and v.bit_length() > 8192 for v in values)):
        return values if type(values) is list else list(values)
    return [pack(value, keep, depth + 1) for value in values]


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


def pack_rare(value: Any, kind: type, keep: Callable[[Any], Any], depth: int) -> Any:
    if kind is bytes:
        return {"b": value.decode("latin-1")}
    if kind is bytearray:
        return {"y": value.decode("latin-1")}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is range:
        return {"r": [pack(value.start), pack(value.stop), pack(value.step)]}
    if kind in of("decimal", "Decimal"):
        return {"D": str(value)}
    if kind in of("fractions", "Fraction"):
        return {"F": [pack(value.numerator), pack(value.denominator)]}
    if value is Ellipsis:
        return {"e": 0}
    if id(value) in NAMES:
        return {"T": NAMES[id(value)]}
    if kind in of("datetime", "timedelta"):
        return {"w": ["timedelta", value.days, value.seconds, value.microseconds]}
    if kind in of("datetime", "date", "time", "datetime") and getattr(value, "tzinfo", None) is None:
        return {"w": [kind.__name__, value.isoformat()]}
    if kind.__module__ == "numpy":
        if kind.__name__ == "ndarray" and value.dtype.name in DTYPES:
            return {"a": [value.dtype.name, value.tolist()]}
        if hasattr(value, "item"):
            return pack(value.item(), keep, depth)
    for base in (bool, int, float, str, tuple, list, dict, set, frozenset, bytes, bytearray, complex):
        if issubclass(kind, base):
            return pack(reduced(value, base), keep, depth)
    return keep(value)


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
    return base(base.__iter__(value))  # type: ignore[attr-defined]


def unpack(value: Any, remote: Callable[[int, bool], Any] | None = None, depth: int = 0) -> Any:
    """The plain value that `pack` described; `remote` stands in for objects that stay on the other side.

    Errors: Malformed for anything that `pack` cannot have made.
    """
    kind = type(value)
    if kind is list:
        return unpack_items(value, remote, depth)
    if kind is not dict:
        return value
    if len(value) != 1 or depth > MAX_DEPTH:
        raise Malformed("an object without its one tag, or nested too deeply")
    ((tag, inner),) = value.items()
    try:
        if tag in ("t", "s", "z"):
            items = unpack_items(inner, remote, depth)
            return tuple(items) if tag == "t" else set(items) if tag == "s" else frozenset(items)
        if tag == "m":
            if NESTED.isdisjoint(map(type, inner.values())):
                return inner
            return dict(zip(inner, unpack_items(list(inner.values()), remote, depth), strict=True))
        if tag == "d":
            return {unpack(k, remote, depth + 1): unpack(v, remote, depth + 1) for k, v in need(list, inner)}
        if tag in ("q", "f"):
            return unpack_numbers((tag, inner))
        if tag == "o" and remote is not None:
            number, called = inner
            return remote(need(int, number), need(bool, called))
        return unpack_rare(tag, inner)
    except Malformed:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, KeyError, RecursionError, MemoryError) as error:
        raise Malformed(f"a bad {str(tag)[:8]!r}: {type(error).__name__}") from None


def unpack_items(values: Any, remote: Callable[[int, bool], Any] | None, depth: int) -> list:
    if type(values) is dict and len(values) == 1:
        return unpack_numbers(*values.items())
    if type(values) is not list or depth > MAX_DEPTH:
        raise Malformed("not a list, or nested too deeply")
    if NESTED.isdisjoint(map(type, values)):
        return values
    return [unpack(value, remote, depth + 1) for value in values]


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


def unpack_rare(tag: str, inner: Any) -> Any:
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
    if tag == "a":
        import numpy

        dtype, items = inner
        if dtype not in DTYPES:
            raise Malformed("an array of another type")
        return numpy.array(items, dtype=dtype)
    raise Malformed("an unknown tag")


def need(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Malformed(f"not a {kind.__name__}")
    return value
