"""The codec: what comes out is what went in, exactly typed; bytes of a hostile child are plain data or Malformed."""

import contextlib
import datetime
import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.sandbox import codec, protocol
from jobs.sandbox.codec import digest, is_huge, pack, unpack
from jobs.sandbox.protocol import Malformed, dumps, loads

keys = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.fractions()
)
plain = st.recursive(
    st.one_of(
        keys,
        st.integers(-(2**9000), 2**9000),
        st.complex_numbers(allow_nan=False),
        st.decimals(allow_nan=False),
        st.dates(),
        st.datetimes(),
        st.timedeltas(),
        st.sampled_from([int, len, ValueError, ..., range(1, 9, 3)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.sets(keys, max_size=5),
        st.frozensets(keys, max_size=5),
        st.dictionaries(keys, inner, max_size=5),
        st.lists(st.integers(-(2**70), 2**70) | st.floats(allow_nan=False), min_size=32, max_size=40),
    ),
    max_leaves=20,
)


def there_and_back(value):
    return unpack(loads(dumps(pack(value))[4:]))


def same(a, b):
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    return a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@settings(max_examples=300, deadline=None)
@given(plain)
def test_plain_data_comes_back_exactly(value):
    assert same(there_and_back(value), value)


# JSON near what the codec writes: every tag, with anything inside.
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from("tszmdicbyrDFwaTeoqfhx"), inner, max_size=2),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=15,
)


@settings(max_examples=600, deadline=None)
@given(junk)
def test_any_json_is_plain_data_or_malformed(message):
    try:
        value = unpack(loads(dumps(message)[4:]))
    except Malformed:
        return
    assert_plain(value)


def assert_plain(value):
    """Nothing but builtin types and the codec's own: nothing that brings code along."""
    allowed = (
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        bytearray,
        list,
        tuple,
        set,
        frozenset,
        dict,
        range,
        Decimal,
        Fraction,
        datetime.date,
        datetime.time,
        datetime.datetime,
        datetime.timedelta,
        codec.Digest,
    )
    if type(value) in (list, tuple, set, frozenset):
        for item in value:
            assert_plain(item)
    elif type(value) is dict:
        for key, item in value.items():
            assert_plain(key)
            assert_plain(item)
    else:
        assert (
            type(value) in allowed or value is ... or value in codec.NAMED.values() or type(value).__name__ == "ndarray"
        )


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data):
    with contextlib.suppress(Malformed):
        assert_plain(unpack(loads(data)))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"t":' * 5000 + b"1" + b"}" * 5000,
        b"9" * 1_000_000,
        b'{"s":[[1]]}',
        b'{"s":[{"s":[1]}]}',
        b'{"d":[[1]]}',
        b'{"d":{"a":1}}',
        b'{"m":[1]}',
        b'{"F":[1,0]}',
        b'{"F":[1.5,2]}',
        b'{"D":"x"}',
        b'{"D":1}',
        b'{"i":"zz"}',
        b'{"i":5}',
        b'{"c":[1,2]}',
        b'{"r":[1,2,0]}',
        b'{"T":"open"}',
        b'{"T":"eval"}',
        b'{"T":["int"]}',
        b'{"w":["datetime","x"]}',
        b'{"w":["eval","1"]}',
        b'{"w":[]}',
        b'{"a":["object",[1]]}',
        b'{"a":["int8",[[1],[1,2]]]}',
        b'{"o":[1,true]}',
        b'{"q":"AAA="}',
        b'{"q":5}',
        b'{"f":["AAAAAAAA8D8=","11"]}',
        b'{"f":["AAAAAAAA8H8=","1"]}',
        b'{"h":5}',
        b'{"b":"\\u0100"}',
        b'{"t":{"m":{}}}',
        b"{}",
        b'{"t":[],"s":[]}',
        b'{"__class__":"int"}',
        b'{"w":["timedelta",1e300,0,0]}',
        b"\xff\xfe",
        b"",
    ],
)
def test_what_pack_cannot_have_made_is_malformed(text):
    with pytest.raises(Malformed):
        unpack(loads(text))


class Int(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class List(list):
    def __iter__(self):
        return iter(["a lie"])

    def __len__(self):
        return 99


class Text(str):
    def __str__(self):
        return "a lie"


class Colour(enum.IntEnum):
    RED = 3


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (Int(5), 5),
        (List([1, 2]), [1, 2]),
        (Text("x"), "x"),
        (Colour.RED, 3),
        (Point(1, 2), (1, 2)),
        ([Int(5), (Text("x"),)], [5, ("x",)]),
        ({Text("k"): Int(1)}, {"k": 1}),
    ],
)
def test_an_instance_of_a_subclass_is_its_bases_value(value, base):
    assert same(there_and_back(value), base)


def test_floats_keep_their_sign_and_kind():
    assert math.isnan(there_and_back(float("nan")))
    assert there_and_back(float("-inf")) == float("-inf")
    assert math.copysign(1, there_and_back(-0.0)) == -1
    assert [math.copysign(1, x) for x in there_and_back([-0.0] * 40)] == [-1] * 40
    assert same(there_and_back([2**53 + 1, 0.5] * 20), [2**53 + 1, 0.5] * 20)
    assert same(there_and_back([True, 1] * 20), [True, 1] * 20)


def test_what_is_too_deep_cyclic_or_no_data_is_refused():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    cyclic = []
    cyclic.append(cyclic)
    for value in (deep, cyclic):
        with pytest.raises(RecursionError):
            pack(value)
    for value in (object(), lambda: 0, iter([]), open):
        with pytest.raises(TypeError):
            pack(value)
    with pytest.raises(protocol.TooLong):
        dumps("x" * (protocol.MAX_FRAME + 1))


def test_a_digest_is_of_the_value_alone():
    value = [("Dog", "Cat") * 40 for _ in range(60_000)]
    copy = [tuple("".join(list(word)) for word in row) for row in value]
    assert is_huge(value)
    assert digest(value) == digest(copy)
    copy[-1] = (*copy[-1][:-1], "Cow")
    assert digest(value) != digest(copy)
    assert digest((1,)) != digest([1])


def test_numpy_values():
    numpy = pytest.importorskip("numpy")
    for value in (numpy.float64(1.5), numpy.int64(3), numpy.bool_(True), numpy.str_("x"), numpy.complex64(1j)):
        assert same(there_and_back(value), value)
    array = there_and_back(numpy.arange(6.0).reshape(2, 3))
    assert array.dtype == numpy.float64
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    for value in (numpy.zeros((0, 3)), numpy.array(["a", "bc"]), numpy.array([1, "x", None], dtype=object)):
        back = there_and_back(value)
        assert (back.dtype, back.shape, back.tolist()) == (value.dtype, value.shape, value.tolist())
    for packed in (["<f8", [1 << 40, 0], []], ["<U9999999", [20], ["x"] * 20], ["<f8", [-1], []], ["|V8", [1], [1]]):
        with pytest.raises(Malformed):
            unpack({"a": packed})


@pytest.mark.parametrize(
    "value",
    [
        Counter("aab"),
        OrderedDict([("b", 1), ("a", 2)]),
        defaultdict(list, a=[1]),
        deque([1, (2,)], maxlen=5),
        datetime.datetime(2024, 2, 28, tzinfo=datetime.UTC),
    ],
)
def test_classes_of_the_standard_library_keep_their_class(value):
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)


def test_views_of_a_dict():
    pairs = {"a": 1, (2, 3): [4]}
    assert there_and_back(pairs.keys()) == {"a", (2, 3)}
    assert list(there_and_back(pairs.values())) == [1, [4]]
    assert list(there_and_back(pairs.items())) == list(pairs.items())
    assert {type(there_and_back(view)) for view in (pairs.keys(), pairs.values(), pairs.items())} == {
        type(pairs.keys()), type(pairs.values()), type(pairs.items())
    }  # fmt: skip
