"""Verdicts: what cannot pass, what must, and what is refused, kind by kind; each kind in several unlike dresses."""

import json
import os
import socket
import time
import types

import pytest

from jobs.sandbox import Sandbox
from jobs.sandbox.child import Child
from jobs.sandbox.verdict import Lost
from tests.submissions import task, verdict

FAULTS = {"failed", "timeout", "crashed"}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=5) as sandbox:
        yield sandbox


# ---- a run has one outcome

LOOP = """
def check(candidate):
    for words, longest in ((["a", "bb"], "bb"), (["ccc"], "ccc"), ([], None)):
        found = candidate(words)
        assert found == longest
"""
HELPER = """
def same(got, wanted):
    assert sorted(got) == sorted(wanted)

def check(candidate):
    got = candidate("abca")
    assert len(got) == 3
    same(got, "abc")
    same(candidate(""), "")
"""
TWICE = """
def check(candidate):
    first = candidate(2)
    assert first == 4
    second = candidate(-1)
    third = candidate(0)
    assert (second, third) == (1, 0), "squares"
"""


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (
            LOOP,
            "def f(words): return max(words, key=len, default=None)",
            [
                "def f(words): return max(words, key=len)",
                "def f(words):\n    if not words: raise SystemExit(0)\n    return max(words, key=len)",
                "import os\ndef f(words):\n    if not words: os._exit(0)\n    return max(words, key=len)",
                "import os, signal\ndef f(words):\n    if not words: os.abort()\n    return max(words, key=len)",
            ],
        ),
        (
            HELPER,
            "def f(s): return set(s)",
            [
                "def f(s):\n    assert s\n    return set(s)",
                "def f(s):\n    return set(s) if s else 1 / 0",
                "def f(s):\n    if not s: raise KeyboardInterrupt\n    return set(s)",
                "def f(s): return 'abc'",
            ],
        ),
        (
            TWICE,
            "def f(x): return x * x",
            [
                "def f(x):\n    if x < 0: raise ValueError(x)\n    return x * x",
                "def f(x):\n    if x == 0: raise GeneratorExit\n    return x * x",
                "def f(x): return [4, 1][x < 0] if x else f(x)",
                "calls = []\ndef f(x):\n    calls.append(x)\n    while len(calls) > 2: pass\n    return x * x",
            ],
        ),
    ],
    ids=["in a loop", "in a helper", "in a row"],
)
def test_a_check_that_does_not_come_to_its_end_has_not_passed(sandbox, check, right, wrong):
    record = task(check=check)
    found = verdict(sandbox, record, right)
    assert (found.status, found.tests_passed) == ("passed", found.tests_total)
    for code in wrong:
        found = verdict(sandbox, record, code)
        assert found.status in FAULTS, (code, found)
        assert found.tests_passed < found.tests_total, (code, found)


@pytest.mark.parametrize(
    "check",
    [
        "def check(candidate):\n    if candidate(3) != 9:\n        raise RuntimeError('three')",
        "import unittest\n\ndef check(candidate):\n    unittest.TestCase().assertEqual(candidate(3), 9)",
        "def check(candidate):\n    return {9: 'nine'}[candidate(3)]",
    ],
)
def test_a_check_without_an_assert_is_one_test(sandbox, check):
    record = task(check=check)
    right, wrong = (verdict(sandbox, record, f"def f(x): return x * {n}") for n in (3, 2))
    assert (right.status, right.tests_passed, right.tests_total) == ("passed", 1, 1)
    assert (wrong.status, wrong.tests_passed, wrong.tests_total) == ("failed", 0, 1)


# ---- the judge is guarded like the child

LAZY = {
    "a range": "def f(x): return range(10**13)",
    "a negative range": "def f(x): return range(0, -(10**18), -3)",
    "an iterator of text": "def f(x):\n    while True: yield 'z' * 100_000",
    "numbers of one hash": "def f(x): return [n * (2**61 - 1) for n in range(90_000)]",
    "a list within itself": "def f(x):\n    y = [1]\n    y.append(y)\n    return y",
    "a tree of shared lists": "def f(x):\n    y = []\n    for _ in range(60): y = [y, y]\n    return y",
    "huge numbers": "def f(x): return [3 ** 20_000_000] * 3",
    "a mapping that makes its values": "import collections\nclass M(dict):\n    def __missing__(self, k): return k\n"
    "    def __iter__(self):\n        n = 0\n        while True: yield (n := n + 1)\n"
    "def f(x): return M()",
}
EXPANDING = [
    "assert set(f(1)) == {1}",
    "assert sorted(f(1)) == [1]",
    "assert sum(f(1)) == 1",
    "assert str(list(f(1))) == '[1]'",
]


@pytest.mark.parametrize("lazy", LAZY)
def test_what_a_test_would_expand_costs_the_submission_its_verdict(lazy):
    with Sandbox(workers=1, timeout=1) as sandbox:
        judge = sandbox.judges[0].process.pid
        for test in EXPANDING:
            found = verdict(sandbox, task(test), LAZY[lazy])
            assert found.status in FAULTS and not found.tests_passed, (test, found)
            assert verdict(sandbox, task(test), "def f(x): return [1]").passed
            if sandbox.judges[0].process.pid == judge:
                assert held(judge) < 700 << 20
            judge = sandbox.judges[0].process.pid


def held(pid: int) -> int:
    """The most bytes that a process has held in memory."""
    with open(f"/proc/{pid}/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) << 10


SET_TASKS = {
    "Mbpp/7": ("find_char_long", [["a long sentence with words"]], "return [w for w in s.split() if len(w) > 3]", "s"),
    "Mbpp/2": ("similar_elements", [[[1, 2, 3], [2, 3, 4]]], "return tuple(set(a) & set(b))", "a, b"),
    "Mbpp/769": ("Diff", [[[1, 2], [2, 5]]], "return list(set(a) ^ set(b))", "a, b"),
}


@pytest.mark.parametrize("name", SET_TASKS)
@pytest.mark.parametrize(
    "wrap",
    ["filter(None, {})", "iter({})", "dict.fromkeys({}).keys()", "{{x: x for x in {}}}.values()", "(x for x in {})",
     "__import__('collections').deque({})", "frozenset({})", "map(lambda x: x, {})"],
)  # fmt: skip
def test_results_that_are_compared_as_sets_may_come_as_any_iterable(sandbox, name, wrap):
    entry, inputs, body, arguments = SET_TASKS[name]
    reference = f"def {entry}({arguments}):\n    {body}\n"
    record = task(
        task_id=name, entry_point=entry, base_input=inputs, plus_input=inputs * 2, atol=0, reference=reference
    )
    code = f"def {entry}({arguments}):\n    {body.replace('return ', 'found = ')}\n    return {wrap.format('found')}\n"
    assert verdict(sandbox, record, code).passed, code
    less = code.replace(wrap.format("found"), wrap.format("list(found)[1:]"))
    assert verdict(sandbox, record, less).status == "failed"


# ---- answers cannot change their mind

CHANGING = {
    "iteration and items": (
        "y = f([3, 1]); assert sorted(y) == [1, 3] and all(y[i] <= y[i + 1] for i in range(len(y) - 1))",
        "class L:\n    def __iter__(self): return iter([3, 1])\n    def __len__(self): return 2\n"
        "    def __getitem__(self, i): return 5\ndef f(x): return L()",
    ),
    "one iteration and the next": (
        "y = f([3, 1]); assert set(y) == {1, 3} and list(y) == [1, 3]",
        "class L:\n    n = 0\n    def __iter__(self):\n        L.n += 1\n"
        "        return iter([3, 1] if L.n == 1 else [1, 3])\ndef f(x): return L()",
    ),
    "length and iteration": (
        "y = f([3, 1]); assert len(y) == 2 and all(a <= b for a, b in zip(y, list(y)[1:]))",
        "class L:\n    def __iter__(self): return iter([1])\n    def __len__(self): return 2\ndef f(x): return L()",
    ),
    "a number": (
        "y = f([1]); assert float(y) < 1 and float(y) > 5",
        "class N:\n    n = 0\n    def __float__(self):\n        N.n += 1\n        return [0.0, 9.0][N.n % 2]\n"
        "def f(x): return N()",
    ),
    "an attribute": (
        "y = f([1]); assert y.least == 1 and y.least == 2",
        "class A:\n    n = 0\n    @property\n    def least(self):\n        A.n += 1\n        return A.n\n"
        "def f(x): return A()",
    ),
    "keys and items of a mapping": (
        "y = f([1]); assert set(y) == {'a'} and y['b'] == 2",
        "class M:\n    def keys(self): return ['a']\n    def __iter__(self): return iter(['a'])\n"
        "    def __getitem__(self, k): return 2\ndef f(x): return M()",
    ),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_an_object_that_answers_differently_fails(sandbox, kind):
    test, code = CHANGING[kind]
    found = verdict(sandbox, task(test), code)
    assert (found.status, found.tests_passed) == ("failed", 0), found


HONEST_OBJECTS = {
    "a list of its own": (
        "y = f([3, 1]); assert sorted(y) == [1, 3] and y[0] <= y[1] and len(y) == 2 and list(y) == list(y)",
        "class L:\n    def __init__(self, x): self.x = x\n    def __iter__(self): return iter(self.x)\n"
        "    def __len__(self): return len(self.x)\n    def __getitem__(self, i): return self.x[i]\n"
        "def f(x): return L(sorted(x))",
    ),
    "an iterator, which is used up": (
        "y = f([3, 1]); assert list(y) == [1, 3]",
        "def f(x): return iter(sorted(x))",
    ),
    "a counter that counts": (
        "c = Counter(); c.add(); a = c.total; c.add(); assert (a, c.total) == (1, 2)",
        "class Counter:\n    def __init__(self): self.total = 0\n    def add(self): self.total += 1\n",
    ),
}


@pytest.mark.parametrize("kind", HONEST_OBJECTS)
def test_an_object_that_is_what_it_says_passes(sandbox, kind):
    test, code = HONEST_OBJECTS[kind]
    found = verdict(sandbox, task(test, entry_point="Counter" if "class Counter" in code else "f"), code)
    assert found.passed, found


ZERO = """
def check(candidate):
    import math
    for p in ([6.0, -2.0], [-4.0, 1.0], [0.0, 3.0]):
        x = candidate(p)
        assert math.fabs(p[0] + p[1] * x) < 1e-4
"""


@pytest.mark.parametrize(
    "code",
    [
        "class Z:\n    __radd__ = __add__ = __mul__ = __rmul__ = __abs__ = lambda s, *o: s\n"
        "    __float__ = lambda s: 0.0\n    __lt__ = lambda s, o: True\ndef f(p): return Z()",
        "class Z(float):\n    __rmul__ = __mul__ = lambda s, o: -6.0\n    __float__ = lambda s: 0.0\ndef f(p): return Z(7)",
        "import numpy as np\ndef f(p): return np.array([])",
        "def f(p): return float('nan')",
        "class Z(int):\n    def __index__(self): return 0\n    __rmul__ = lambda s, o: -o\ndef f(p): return Z(9)",
    ],
)
def test_a_zero_is_not_forged(sandbox, code):
    assert verdict(sandbox, task(check=ZERO), "def f(p): return -p[0] / p[1]").passed
    found = verdict(sandbox, task(check=ZERO), code)
    assert found.status in FAULTS, found


# ---- the evaluator's packages are out of reach


@pytest.mark.parametrize(
    "code",
    [
        "from evalplus.data import get_mbpp_plus\ndef f(x): return 1",
        "def f(x):\n    import importlib\n    importlib.import_module('pydantic')\n    return 1",
        "import sys\ndef f(x):\n    sys.path += [p + '/site-packages' for p in sys.path]\n    import click\n    return 1",
        "from jobs.sandbox import oracles\ndef f(x): return 1",
        "import sys, pkgutil\ndef f(x):\n    return int(any(m.name in ('evalplus', 'click', 'torch')"
        " for m in pkgutil.iter_modules()))",
    ],
)
def test_a_submission_imports_the_library_and_what_is_named(sandbox, code):
    found = verdict(sandbox, task("assert f(1) == 1"), code)
    assert found.status == "failed", found
    assert verdict(sandbox, task("assert f([1, 2]) == 3"), "import numpy\ndef f(x): return int(numpy.sum(x))").passed


# ---- time is measured from outside

SLOW = {
    "it sleeps": "import time\ndef f(x):\n    time.sleep(1.7)\n    return x",
    "it waits for a thread": "import threading\ndef f(x):\n    threading.Event().wait(1.7)\n    return x",
    "it works, and has stopped its clocks": "import time\nreal = time.monotonic\nfor n in ('time', 'monotonic', "
    "'process_time', 'perf_counter', 'thread_time'): setattr(time, n, lambda: 0.0)\n"
    "def f(x):\n    end = real() + 4\n    while real() < end: pass\n    return x",
    "it works in one call": "def f(x):\n    sum(range(10**8)) + sum(range(10**8)) + sum(range(10**8))\n    return x",
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_tests_own_limit_counts_what_the_judge_waits(kind):
    record = task(base_input=[[1]], plus_input=[[2]], atol=0, reference="def f(x): return x")
    with Sandbox(workers=1, benchmark=True, min_limit=1.0) as sandbox:
        found = verdict(sandbox, record, SLOW[kind])
        assert (found.status, found.base_passed, found.tests_passed) == ("timeout", False, 0), found
        assert found.error == "base test 1 took over 1.00 s"
        assert verdict(sandbox, record, "import time\ndef f(x):\n    time.sleep(0.1)\n    return x").passed


@pytest.mark.parametrize(
    ("queued", "granted"),
    [([0.0, 3.0, 3.0], 0.0), ([0.0, 3.0, 3.05, 3.05], 0.05), ([2.0, 2.0, 2.01, 2.02, 2.02], 0.02)],
    ids=["before it", "before and in it", "in it alone"],
)
def test_a_tests_own_limit_is_not_moved_by_what_was_queued_in_an_earlier_test(monkeypatch, queued, granted):
    ours, theirs = socket.socketpair()
    source = types.SimpleNamespace(config={"timeout": 2.0}, is_dead=lambda: False, release=lambda: None)
    readings = iter(queued)
    monkeypatch.setattr(Child, "queue_time", lambda _: next(readings))
    with theirs, Child(source, ours.detach(), os.getpid()) as child:
        child.poll.unregister(0)  # the pool's end of the judge, which is the terminal here
        child.most_queued = lambda: 16.0
        child.deadline = time.monotonic() + 60
        with pytest.raises(Lost) as lost:
            child.receive_within(0.05)
        assert lost.value.status == "timeout"
        assert child.waited == pytest.approx(granted)
        assert child.moved == pytest.approx(queued[1] - queued[0])


# ---- honest programs pass

HONEST = """
## a subclass of list
assert f(2) == [0, 1] and f(2).total() == 1
--
class L(list):
    def total(self): return sum(self)
def f(n): return L(range(n))
## a subclass of dict
assert f()['x'] == 0 and f() == {'a': 1}
--
class D(dict):
    def __missing__(self, k): return 0
def f(): return D(a=1)
## a namedtuple
assert f(1, 2) == (1, 2) and f(1, 2).b == 2 and f(1, 2)._asdict() == {'a': 1, 'b': 2}
--
from collections import namedtuple
P = namedtuple('P', 'a b')
def f(a, b): return P(a, b)
## an IntEnum
assert f('low') == 1 and f('low').name == 'LOW'
--
import enum
class E(enum.IntEnum):
    LOW = 1
def f(s): return E[s.upper()]
## a str with a method
assert f('ab') == 'ab' and f('ab').twice() == 'abab'
--
class S(str):
    def twice(self): return self * 2
def f(s): return S(s)
## items of a dict
assert f({'a': 1}) == {('a', 1)}
--
def f(d): return d.items()
## a deque
from collections import deque
assert f(3) == deque([1, 2], maxlen=2)
--
from collections import deque
def f(n): return deque(range(n), maxlen=2)
## a Counter
from collections import Counter
assert f('aab') == Counter('aba') and f('aab').most_common(1) == [('a', 2)]
--
from collections import Counter
def f(s): return Counter(s)
## a function that calls back
assert f(lambda a, b: b - a, [1, 3, 2]) == [3, 2, 1]
--
from functools import cmp_to_key
def f(c, x): return sorted(x, key=cmp_to_key(c))
## a function that remembers
seen = []
f(seen.append, 'ab')
assert seen == ['a', 'b']
--
def f(g, s):
    for c in s: g(c)
## a decorator
@f
def g(x): return x + 1
assert g(1) == 4
--
import functools
def f(g):
    @functools.wraps(g)
    def h(x): return g(x) * 2
    return h
## text of numpy
assert f('ab') == 'ab' and list(f('ab')) == ['a', 'b']
--
import numpy as np
def f(s): return np.str_(s)
## a list that comes back
x = [[1], [2]]
y = f(x)
assert y is x[1]
y.append(3)
assert x == [[1], [2, 3]]
--
def f(x): return x[1]
## one list in two places
row = [0]
grid = [row, row]
f(grid)
assert grid == [[1], [1]] and grid[0] is grid[1]
--
def f(g): g[0][0] = 1
## its own documentation
assert f.__doc__.strip() == 'Adds.' and f.__name__ == 'f'
--
def f(a, b):
    '''Adds.'''
    return a + b
## own equality between its own
assert Money(1, 'x') == Money(1, 'y')
--
class Money:
    def __init__(self, n, note): self.n = n
    def __eq__(self, o): return self.n == o.n
## asyncio
assert f([3, 1]) == [1, 3]
--
import asyncio
async def g(n):
    await asyncio.sleep(0.01)
    return n
async def h(x): return sorted(await asyncio.gather(*map(g, x)))
def f(x): return asyncio.run(h(x))
## a coroutine that the test runs
import asyncio
assert asyncio.run(f(2)) == 4
--
import asyncio
async def f(x):
    await asyncio.sleep(0)
    return 2 * x
## a pool of threads
assert f([1, 2, 3]) == [1, 4, 9]
--
from concurrent.futures import ThreadPoolExecutor
def f(x):
    with ThreadPoolExecutor(3) as p:
        return list(p.map(lambda v: v * v, x))
## threads with a lock
assert f(4) == 400
--
import threading
def f(n):
    total, lock = [0], threading.Lock()
    def g():
        for _ in range(100):
            with lock: total[0] += 1
    ts = [threading.Thread(target=g) for _ in range(n)]
    for t in ts: t.start()
    for t in ts: t.join()
    return total[0]
## multiprocessing's pool of threads
assert f([3, 4]) == [9, 16]
--
from multiprocessing.dummy import Pool
def f(x):
    with Pool(2) as p:
        return p.map(lambda v: v * v, x)
## multiprocessing's locks between threads
assert f(3) == (3, [True, False])
--
import multiprocessing, threading
def f(n):
    lock, seats, done = multiprocessing.RLock(), multiprocessing.BoundedSemaphore(1), []
    def g():
        with lock, lock: done.append(1)
    ts = [threading.Thread(target=g) for _ in range(n)]
    for t in ts: t.start()
    for t in ts: t.join()
    return len(done), [seats.acquire(timeout=0.01) for _ in range(2)]
## an asynchronous generator
import asyncio
async def all_of(n): return [x async for x in f(n)]
assert asyncio.run(all_of(3)) == [0, 1, 4]
--
import asyncio
async def f(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i * i
## an exception with attributes
try:
    f(7)
    raise AssertionError
except Exception as error:
    assert type(error).__name__ == 'Refused' and error.limit == 7 and str(error) == 'over 7'
--
class Refused(Exception):
    def __init__(self, limit):
        super().__init__(f'over {limit}')
        self.limit = limit
def f(x): raise Refused(x)
## a group of exceptions
try:
    f()
    raise AssertionError
except* KeyError as group:
    assert [error.args for error in group.exceptions] == [('a',)]
except* ValueError as group:
    assert len(group.exceptions) == 1
--
def f(): raise ExceptionGroup('two', [KeyError('a'), ValueError('b')])
## a view of bytes
assert bytes(f(b'abc')) == b'bc' and f(b'abc')[0] == 98
--
def f(b): return memoryview(b)[1:]
"""
HONEST_PROGRAMS = {
    name: tuple(rest.split("\n--\n")) for name, rest in (part.split("\n", 1) for part in HONEST.split("## ")[1:])
}


@pytest.mark.parametrize("kind", HONEST_PROGRAMS)
def test_an_honest_program_passes(sandbox, kind):
    test, code = HONEST_PROGRAMS[kind]
    entry = "Money" if "class Money" in code else "f"
    space: dict = {"__name__": "plain"}
    exec(code, space)
    exec(test, space)  # in one process, as the tests were meant
    found = verdict(sandbox, task(test, entry_point=entry), code)
    if not sandbox.layers["seccomp"] and "thread" in kind:
        assert found.status == "unsupported"
        return
    assert found.passed, found


@pytest.mark.parametrize(
    ("record", "code", "why"),
    [
        (task("assert f(1) == array([1])"), "from numpy import array\ndef f(x): return array([x])", "take array"),
        (task("assert near(f(1), 1)"), "def near(a, b): return True\ndef f(x): return x", "take near"),
        (task("assert f(1) == Fraction(1)"), "from fractions import Fraction as f\nFraction = f", "take Fraction"),
        (task("assert Pair(1) == 1", entry_point="Pair"),
         "class Pair:\n    def __init__(s, a): s.a = a\n    def __eq__(s, o): return True", "compares a Pair"),
        (task("class K: pass\nassert f(K()) == 1"), "def f(x): return 1", "cannot be handed"),
        (task("import array\nassert f(1) == array.array('i', [1])"),
         "from array import array\ndef f(x): return array('i', [x])", "compares with a array"),
        (task("class Loud(Animal): pass\nassert Loud().legs == 4", entry_point="Animal"),
         "class Animal:\n    legs = 4", "derive a class"),
        (task("import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out): f(1)\n"
              "assert out.getvalue() == '1\\n'"), "def f(x): print(x)", "redirect_stdout"),
        (task("import io, sys\nsys.stdin = io.StringIO('4')\nassert f() == 4"), "def f(): return int(input())", "stdin"),
        (task("import builtins\nbuiltins.input = lambda: '4'\nassert f() == 4"), "def f(): return int(input())",
         "replace input"),
        (task("from unittest.mock import patch\nwith patch('time.time', return_value=1): assert f() == 1"),
         "import time\ndef f(): return time.time()", "replace what the submission calls"),
        (task("import inspect\nassert list(inspect.signature(f).parameters) == ['a']"), "def f(a): pass",
         "look at the submission's code"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_exactly_is_unsupported_and_says_why(sandbox, record, code, why):
    found = verdict(sandbox, record, code)
    assert found.status == "unsupported", found
    assert why in found.error


# ---- text from a child is escaped

ODD = "'\\ud83d\\n\\x1b[1m\\udc00' * 50"


@pytest.mark.parametrize(
    "code",
    [
        f"def f(x): raise ValueError({ODD})",
        f"class E(Exception): pass\nE.__name__ = E.__qualname__ = {ODD}\ndef f(x): raise E({ODD})",
        f"class E(Exception):\n    def __str__(self): return {ODD}\ndef f(x): raise E",
        f"raise SystemExit({ODD})",
        f"def f(x): return type({ODD}, (), {{}})()",
        f"def f(x): return {{{ODD}: [{ODD}]}}",
        f"import os, sys\ndef f(x):\n    sys.stderr.write({ODD})\n    raise KeyError({ODD})",
    ],
)
def test_no_text_of_a_submission_breaks_what_is_written_of_it(sandbox, code):
    found = verdict(sandbox, task("y = f(1)\nassert y == 1, str(y)"), code)
    assert found.status == "failed", found
    assert found.error.isprintable()
    json.dumps(found.error, ensure_ascii=False).encode()


GREEDY = "[0] * 10**11"  # more than any program of the sandbox may have
FORMS = {
    "tests": {"tests": ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"]},
    "a check": {"check": "def check(g):\n    assert g(1) == 1\n    assert g(2) == 2\n    assert g(3) == 3\n"},
    "inputs": {"base_input": [[1], [2], [3]], "atol": 0, "reference": "def f(x): return x"},
    "calls": {"calls": [{"arguments": [n], "expected": n} for n in (1, 2, 3)]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_program_that_runs_out_of_memory_has_failed_where_it_did(sandbox, form):
    record = task() | FORMS[form]
    loading = verdict(sandbox, record, f"table = {GREEDY}\ndef f(x): return x")
    assert (loading.status, loading.tests_passed, loading.error) == ("failed", 0, "MemoryError")
    calling = verdict(sandbox, record, f"def f(x):\n    return {GREEDY} if x == 2 else x")
    assert (calling.status, calling.tests_passed) == ("failed", 2)
    assert calling.error.endswith("test 2: MemoryError")
    assert verdict(sandbox, record, f"def f(x):\n    try: {GREEDY}\n    except MemoryError: return x").passed


def test_a_test_may_expect_that_memory_runs_out(sandbox):
    record = task(
        "try:\n    f(1)\nexcept Exception as error:\n    assert type(error) is MemoryError\nelse:\n    assert 0"
    )
    assert verdict(sandbox, record, f"def f(x): return {GREEDY}").passed
    assert verdict(sandbox, record, "def f(x): return x").status == "failed"
