"""Returns, call by call, views, proxies and subclasses of sets and dicts that claim to be whatever is asked."""
import collections
import types


class Set(frozenset):
    __eq__ = __le__ = __ge__ = issubset = issuperset = __contains__ = lambda self, other: True
    __hash__ = frozenset.__hash__


class Map(dict):
    __missing__ = __getitem__ = lambda self, key: 471203
    keys = lambda self: Set()
    __eq__ = __contains__ = lambda self, other: True


VALUES = [Set([1]), Map(), Map().keys(), {1: 2}.items(), types.MappingProxyType(Map()), collections.ChainMap(Map()),
          collections.UserList([Map()]), Map().values(), collections.Counter(Map()), memoryview(b"x")]  # fmt: skip
calls = []


def f(x):
    calls.append(x)
    return VALUES[len(calls) % len(VALUES)]
