"""Whole programs with standard input and output, and calls of methods: what they may do, and what verdict they get."""

import pytest

from jobs.sandbox import Sandbox
from jobs.sandbox.outputs import agrees
from tests.attacks.test_attacks import servers_of, settled

SUM = [{"input": "2 3\n", "output": "5\n"}, {"input": "10 -4\n", "output": "6\n"}]


def program(tests=SUM, **fields):
    return {"task_id": "p", "prompt": "", "entry_point": "", "stdin_tests": tests, **fields}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=5) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def scoring():
    with Sandbox(workers=1, timeout=5, benchmark=True) as sandbox:
        yield sandbox


IDIOMS = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "main": "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
    "read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "readline": "from sys import stdin\ninput = stdin.readline\nprint(sum(map(int, input().split())))",
    "buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
    "lines": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "open": "print(sum(map(int, open(0).read().split())))",
    "fast reader": (
        "import os, io, sys\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
        "a, b = map(int, input().split())\nos.write(1, b'%d' % (a + b))"
    ),
    "descriptor": "import os\nos.write(1, str(sum(map(int, os.read(0, 1000).split()))).encode())",
    "no line end": "print(sum(map(int, input().split())), end='')",
    "write": "import sys\nsys.stdout.write(str(sum(map(int, input().split()))) + ' \\n\\n')",
    "output buffer": "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, sys.stdin.buffer.readline().split())))",
    "string buffer": (
        "import sys, io\nreal, sys.stdout = sys.stdout, io.StringIO()\nprint(sum(map(int, input().split())))\n"
        "real.write(sys.stdout.getvalue())"
    ),
    "output of its own": "out = open(1, 'w')\nout.write(str(sum(map(int, input().split()))))",
    "exit": "import sys\nprint(sum(map(int, input().split())))\nsys.exit()",
    "exit 0": "print(sum(map(int, input().split())))\nexit(0)",
    "_exit": "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
    "atexit": "import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))",
    "deep recursion": (
        "import sys, threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size(2**27)\n"
        "def depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main():\n    a, b = map(int, input().split())\n    print(depth(30000) + a + b - 30000)\n"
        "threading.Thread(target=main).start()"
    ),
    "stack limit": (
        "import resource, sys\nmost = resource.RLIM_INFINITY\nresource.setrlimit(resource.RLIMIT_STACK, (most, most))\n"
        "print(sum(map(int, input().split())))"
    ),
    "global": "n = 0\ndef add(x):\n    global n\n    n += x\nfor x in input().split(): add(int(x))\nprint(n)",
    "generator recursion": (
        "from types import GeneratorType\ndef f(n):\n    yield n\nprint(next(f(sum(map(int, input().split())))))"
    ),
    "numpy": "import numpy as np\nprint(int(np.array(list(map(int, input().split()))).sum()))",
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\n    b: int\n"
        "p = P(*map(int, input().split()))\nprint(p.a + p.b)"
    ),
    "pickle of main": (
        "import pickle\nclass A:\n    pass\nassert type(pickle.loads(pickle.dumps(A()))) is A\n"
        "print(sum(map(int, input().split())))"
    ),
}


@pytest.mark.parametrize("code", IDIOMS.values(), ids=IDIOMS)
def test_what_competition_programs_do_works(sandbox, code):
    verdict = sandbox.run([(program(), code)])[0]
    assert (verdict.status, verdict.tests_passed, verdict.error) == ("passed", 2, "")


@pytest.mark.parametrize(
    ("code", "status", "passed", "error"),
    [
        ("print(5)", "failed", 1, "test 2: a wrong answer"),
        ("print(int(input().split()[0]) // (len(input()) - 5))", "failed", 0, "test 1: EOFError: EOF when reading a line"),
        ("print(5)\nraise SystemExit(3)", "failed", 0, "test 1: ended with exit code 3"),
        ("print(5)\nexit('no way')", "failed", 0, "test 1: no way"),
        ("print(5)\nimport ctypes\nctypes.string_at(0)", "crashed", 0, "test 1: ended by SIGSEGV"),
        ("def f(:", "invalid", 0, "SyntaxError"),
        ("", "invalid", 0, "there is no program"),
        ("print('x' * (1 << 23))", "failed", 0, "test 1: wrote over 1048576 bytes"),
        ("class E(Exception): pass\nraise E('odd')", "failed", 0, "test 1: E: odd"),
        ("import socket", "failed", 0, "test 1: "),
    ],
)  # fmt: skip
def test_verdicts(sandbox, code, status, passed, error):
    verdict = sandbox.run([(program(), code)])[0]
    assert (verdict.status, verdict.tests_passed, verdict.tests_total) == (status, passed, 2)
    assert verdict.error.startswith(error)


def test_a_run_that_takes_too_long_ends_the_rest():
    with Sandbox(workers=1, timeout=0.5) as sandbox:
        code = "n = sum(map(int, input().split()))\nwhile n == 6: pass\nprint(n)"
        verdict = sandbox.run([(program([*SUM, *SUM]), code)])[0]
    assert (verdict.status, verdict.tests_passed, verdict.error) == ("timeout", 1, "test 2: time is up")


def test_threads_where_the_machine_allows_none_cannot_be_judged():
    with Sandbox(workers=1, timeout=5, without=["seccomp"]) as sandbox:
        verdict = sandbox.run([(program(), IDIOMS["deep recursion"])])[0]
    assert verdict.status == "unsupported"
    assert "starts threads" in verdict.error


def test_each_run_is_a_process_of_its_own(sandbox):
    code = "import sys, builtins\nseen = getattr(builtins, 'seen', 0) + 1\nbuiltins.seen = seen\nprint(seen)"
    tests = [{"input": "", "output": "1"}] * 3
    assert sandbox.run([(program(tests), code)])[0].tests_passed == 3


def test_what_a_run_has_changed_is_gone_in_the_next(sandbox):
    """Limits of the interpreter, handlers of signals, modules, streams, descriptors: each run begins as the first did."""
    code = (
        "import builtins, math, os, signal, sys\n"
        "print(sys.getrecursionlimit(), signal.getsignal(signal.SIGTERM), math.pi > 3, input())\n"
        "sys.setrecursionlimit(99)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nmath.pi = 0\nsys.stdin.read()\n"
        "sys.stdout.flush()\nos.close(0)\nos.close(2)\nbuiltins.print = None\n"
    )
    tests = [{"input": f"{n} \nmore", "output": f"1000 0 True {n}"} for n in range(3)]  # Python's own limit
    verdict = sandbox.run([(program(tests), code)])[0]
    assert (verdict.tests_passed, verdict.error) == (3, "")


def test_nothing_is_left_of_a_run_that_was_cut_short():
    """A program that ignores signals and has threads, ended for its time or its output, leaves no process."""
    code = (
        "import os, signal, threading, time\n"
        "for number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n    except Exception: pass\n"
        "for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print(open('/proc/self/stat').read().split()[0] if os.access('/proc/self/stat', os.R_OK) else '')\n"
    )
    with Sandbox(workers=1, timeout=0.5) as sandbox:
        judge = sandbox.judges[0].process.pid
        sandbox.run([(program(), IDIOMS["input"]), (program(), code)])  # each has a server of its own
        servers = servers_of(judge)
        for end in ("while True: pass", "while True: print('x' * 100_000)", "time.sleep(60)"):
            assert not sandbox.run([(program(), code + end)])[0].passed
            assert sandbox.run([(program(), IDIOMS["input"])])[0].passed
        assert settled(judge), "each server has the one child that is made ready, and nothing runs below that"
        assert servers_of(judge) == servers


def test_large_inputs_and_outputs_come_whole(sandbox):
    numbers = " ".join(map(str, range(400000)))
    tests = [{"input": numbers, "output": "\n".join(numbers.split())}]
    code = "import sys\nprint('\\n'.join(sys.stdin.read().split()))"
    assert sandbox.run([(program(tests), code)])[0].passed


def test_a_task_that_needs_a_checker_is_unsupported(sandbox):
    verdict = sandbox.run([(program(checker="any order is accepted"), "print(5)")])[0]
    assert (verdict.status, verdict.tests_total) == ("unsupported", 0)
    assert "any order" in verdict.error


def test_a_benchmarks_sample_is_told_at_its_first_failing_test(scoring):
    tests = [SUM[0], {"input": "1 1\n", "output": "0"}, SUM[1]]
    verdict = scoring.run([(program(tests), IDIOMS["input"])])[0]
    assert (verdict.status, verdict.tests_passed) == ("failed", 1)


def test_time_limit_is_the_benchmarks(scoring):
    verdict = scoring.run([(program(time_limit=0.3), "while True: pass")])[0]
    assert verdict.status == "timeout"
    assert verdict.seconds < 3


@pytest.mark.parametrize(
    ("rule", "written", "expected", "same"),
    [
        ("lines", "1 2  \n3\n\n", "1 2\n3", True),
        ("lines", "1  2\n", "1 2\n", False),
        ("lines", " 1\n", "1\n", False),
        ("lines", "1\r\n2\r\n", "1\n2\n", True),
        ("lines", "\n1\n", "1\n", False),
        ("lines", "", "\n", True),
        ("lines", "YES\n", "Yes\n", False),
        ("tokens", "1  2\n3", "1 2 3\n", True),
        ("tokens", "12", "1 2", False),
        ("livecodebench", " 1.50 2\n", "1.5 2.000\n", True),
        ("livecodebench", "0.30000000000000004", "0.3", False),
        ("livecodebench", "1 2", "1 2 3", False),
        ("livecodebench", "nan", "NaN", False),
        ("livecodebench", "sNaN", "1", False),
        ("livecodebench", "a b", "a  b", False),
    ],
)
def test_rules_for_outputs(rule, written, expected, same):
    assert agrees(written, expected, rule) is same


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("0.3333334", "0.3333333", True),
        ("0.334", "0.333", False),
        ("1000001", "1000000", True),
        ("inf", "inf", True),
        ("nan", "1", False),
        ("inf", "1e300", False),
        ("1_0", "10", False),
        ("yes 1.0", "yes 1", True),
        ("no 1.0", "yes 1", False),
        ("1.0\n2.0", "1 2", False),
    ],
)
def test_tolerance(written, expected, same):
    assert agrees(written, expected, "lines", 1e-6, 1e-6) is same


def calls(entry_point, tests, **fields):
    made = [{"arguments": arguments, "expected": expected} for arguments, expected in tests]
    return {"task_id": "c", "prompt": "", "entry_point": entry_point, "calls": made, **fields}


REVERSE = """
class Solution:
    def reverse(self, head: Optional[ListNode]) -> Optional[ListNode]:
        before = None
        while head:
            head.next, before, head = before, head, head.next
        return before
"""
MIRROR = """
class Solution:
    def mirror(self, root):
        if root:
            root.left, root.right = self.mirror(root.right), self.mirror(root.left)
        return root
"""
ONCE = """
class Solution:
    def __init__(self):
        self.n = 0

    def once(self, x):
        self.n += x
        return self.n
"""
LISTS = {"arguments": ["ListNode"], "result": "ListNode"}
TREES = {"arguments": ["TreeNode"], "result": "TreeNode"}


@pytest.mark.parametrize(
    ("task", "code", "passed"),
    [
        (
            calls("Solution", [([[1, 2, 3]], [3, 2, 1]), ([[]], [])], method="reverse", shapes=LISTS,
                  prelude="from typing import *"),
            REVERSE, 2,
        ),
        (calls("Solution", [([[1, 2, 3, None, 4]], [1, 3, 2, None, None, 4])], method="mirror", shapes=TREES), MIRROR, 1),
        (calls("Solution", [([[1, None, 2]], [1, 2]), ([[]], [])], method="mirror", shapes=TREES), MIRROR, 2),
        (calls("f", [([2, 3], 5), ([0, 0], 0)]), "def f(a, b): return a + b", 2),
        (calls("f", [([], [[1, 2], [3]])]), "def f(): return [(1, 2), (3,)]", 1),
        (calls("Solution", [([], [[1, 2]])], comparison="livecodebench", method="f"), "def f(): return ([1, 2],)", 1),
        (calls("Solution", [([], [[1, 2]])], comparison="livecodebench", method="f"), "def f(): return [(1, 2)]", 0),
        (calls("f", [([], 0.3)]), "def f(): return 0.1 + 0.2", 0),
        (calls("f", [([], [0.3])], atol=1e-9), "def f(): return [0.1 + 0.2]", 1),
        (calls("f", [([], None)]), "def f(): pass", 1),
        (calls("f", [([[3, 1]], [1, 3])]), "class A(list):\n    def __eq__(self, o): return True\ndef f(x): return A()", 0),
        (calls("Solution", [([1], 1), ([1], 1)], method="once"),
         ONCE, 2),
        (calls("f", [([], 1)]), "class E:\n    def __eq__(self, o): return True\ndef f(): return E()", 0),
    ],
)  # fmt: skip
def test_calls(sandbox, task, code, passed):
    assert sandbox.run([(task, code)])[0].tests_passed == passed


def test_a_cyclic_list_is_a_wrong_answer(sandbox):
    code = "class Solution:\n    def loop(self, head):\n        head.next = head\n        return head"
    task = calls("Solution", [([[1]], [1])], method="loop", shapes=LISTS)
    assert sandbox.run([(task, code)])[0].status in ("failed", "timeout")


def test_a_class_without_the_method_is_told(sandbox):
    verdict = sandbox.run([(calls("Solution", [([1], 1)], method="f"), "class Solution:\n    pass")])[0]
    assert verdict.status == "failed"
    assert "no attribute 'f'" in verdict.error
