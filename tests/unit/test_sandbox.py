"""What a submission can be asked, what verdict it gets, and what happens where a layer is missing."""

import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import get_type_hints

import pytest

from jobs.common.errors import JobError
from jobs.plumbing import params
from jobs.sandbox import Sandbox
from jobs.sandbox.settings import Settings
from tests.submissions import task, verdict

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=5) as sandbox:
        yield sandbox


CLASS = """
class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def total(self):
        return self.a + self.b

"""


@pytest.mark.parametrize(
    ("tests", "code", "passed"),
    [
        (["assert f([3, 1]) == [1, 3]"], "def f(x): return sorted(x)", 1),
        (["assert f(1) == 2", "assert f(2) == 3", "assert f(3) == 0"], "def f(x): return x + 1", 2),
        (["x = [3, 1]\nf(x)\nassert x == [1, 3]"], "def f(x): x.sort()", 1),
        (
            ["x = {'a': [1]}; y = x['a']; f(x); assert y == [1, 2] and x == {'a': [1, 2], 'b': 0}"],
            "def f(x): x['a'].append(2); x['b'] = 0",
            1,
        ),
        (["x = {1}; f(x); assert x == {1, 2}"], "def f(x): x.add(2)", 1),
        (["x = [2]; f(k=x); assert x == []"], "def f(k): k.clear()", 1),
        (["assert list(f(3)) == [0, 1, 2]"], "def f(n): yield from range(n)", 1),
        (
            ["import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]"],
            "import itertools\ndef f(): return itertools.count()",
            1,
        ),
        (["assert 2 in f()", "assert 9 not in f()"], "def f(): return iter([1, 2])", 2),
        (["assert f('b')", "assert not f('a')"], "import re\ndef f(s): return re.match('b', s)", 2),
        (["assert f(1, 2).total() == 3", "assert f(1, 2).a == 1"], CLASS + "def f(a, b): return Pair(a, b)", 2),
        (["assert f([Pair(1, 2), Pair(3, 4)]) == 10"], CLASS + "def f(pairs): return sum(p.total() for p in pairs)", 1),
        (
            ["assert f((4, 'x', 7), int) == ['x']"],
            "def f(t, kind): return [x for x in t if not isinstance(x, kind)]",
            1,
        ),
        (["assert f((1, 2)) == sys.getsizeof((1, 2))"], "import sys\ndef f(t): return sys.getsizeof(t)", 1),
        (["assert abs(f(1.33) - 0.33) < 1e-6"], "def f(x): return x % 1", 1),
        (["assert f({1: (2, {3})}) == {1: (2, {3})}"], "def f(x): return x", 1),
        (["assert type(f(1)) is tuple"], "def f(x): return (x,)", 1),
        (["assert f(2) is None"], "def f(x): pass", 1),
        (
            ["try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'negative'\nelse:\n    assert 0"],
            "class Own(ValueError): pass\ndef f(x): raise Own('negative')",
            1,
        ),
        (["assert f(a=1, b=2) == 3"], "def f(a, b): return a + b", 1),
        (["assert f(10) == 3628800", "assert f(1000) % 10 == 0"], "import math\nf = math.factorial", 2),
        (["assert f('\\ud800') == '\\ud800'"], "def f(s): return s", 1),
        (["assert f() == 'é☃'"], "def f(): return 'é☃'", 1),
    ],
)
def test_tests_in_the_judge_calls_in_the_child(sandbox, tests, code, passed):
    found = verdict(sandbox, task(*tests), code)
    assert (found.tests_passed, found.tests_total) == (passed, len(tests)), found
    assert found.status == ("passed" if passed == len(tests) else "failed")


def test_a_function_called_sum_is_the_submissions(sandbox):
    assert verdict(sandbox, task("assert sum(10, 15) == 6", entry_point="sum"), "def sum(a, b): return 6").passed


def test_setup_runs_after_the_submission_and_on_its_classes(sandbox):
    setup = "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)"
    code = (
        "class Node:\n    def __init__(self, x):\n        self.x, self.left = x, None\n"
        "def f(n): return 0 if n is None else 1 + f(n.left)"
    )
    assert verdict(sandbox, task("assert f(root) == 3", setup=setup), code).passed


@pytest.mark.parametrize(
    "code",
    [
        "def f(x): return 0\ndef set(x): return 0",
        "def f(x): return 0\ndef helper(x): return 0",
        "class math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return 0",
        "import builtins\nbuiltins.set = lambda x: 0\ndef f(x): return 0",
    ],
)
def test_what_a_test_relies_on_cannot_be_shadowed(sandbox, code):
    prompt = "def helper(x):\n    return [x]\n\ndef f(x):\n    '''To do.'''\n"
    tests = [
        "assert set(f(1)) == set((4, 5))",
        "assert helper(f(1)) == [7]",
        "import math\nassert math.isclose(f(1), 7)",
    ]
    assert verdict(sandbox, task(*tests, prompt=prompt), code).tests_passed == 0


def test_a_stop_iteration_does_not_end_the_tests_loop(sandbox):
    found = verdict(
        sandbox,
        task("assert all(map(f, [1, 2]))", "assert [f(x) for x in [1]] == [1]"),
        "def f(x): raise StopIteration",
    )
    assert found.tests_passed == 0


def test_an_assert_of_a_check_function_is_a_test_and_a_constant_is_none(sandbox):
    check = """
def check(candidate):
    assert True, "This prints if this assert fails"
    assert candidate(1) == 1
    assert candidate(2) == 0
    for i in range(3):
        assert candidate(i) == i
    try:
        assert candidate("x") == "x"
    finally:
        pass
"""
    found = verdict(sandbox, task(check=check), "def f(x): return x")
    assert (found.status, found.tests_passed, found.tests_total, found.error) == (
        "failed",
        3,
        4,
        "test 2: a wrong answer",
    )


@pytest.mark.parametrize(
    ("code", "status", "passed"),
    [
        ("def f(x): return 1 / (x - 2)", "failed", 0),
        ("def f(:", "invalid", 0),
        ("def g(x): return x", "invalid", 0),
        ("x = '\0'", "invalid", 0),
        ("f = 5", "failed", 0),
        ("raise ValueError('no')\ndef f(x): return x", "failed", 0),
        ("import no_such_module", "failed", 0),
        ("import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x", "crashed", 1),
        ("def f(x):\n    while x == 2: pass\n    return x", "timeout", 1),
        ("import time\ndef f(x):\n    if x == 2: time.sleep(60)\n    return x", "timeout", 1),
    ],
)
def test_statuses_and_what_had_passed_before(code, status, passed):
    with Sandbox(workers=1, timeout=1) as sandbox:
        found = verdict(sandbox, task("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"), code)
    assert (found.status, found.tests_passed, found.tests_total) == (status, passed, 3)
    assert not found.passed
    assert found.error
    assert "\n" not in found.error


def test_inputs_are_judged_as_evalplus_does(sandbox):
    record = task(base_input=[[1.0], [2.0]], plus_input=[[3.0]], atol=0, reference="def f(x): return x / 3")
    close = verdict(sandbox, record, "def f(x): return x / 3 + 1e-8")
    assert (close.status, close.base_passed, close.plus_passed) == ("passed", True, True)
    wrong = verdict(sandbox, record, "def f(x): return x / 3 if x < 3 else 0")
    assert (wrong.status, wrong.base_passed, wrong.plus_passed, wrong.tests_passed) == ("failed", True, False, 2)
    assert verdict(sandbox, record, "def f(x): return str(x / 3)").tests_passed == 0


def test_a_reference_that_fails_is_no_verdict(sandbox):
    record = task(base_input=[[1]], plus_input=[], atol=0, reference="def f(x): return 1 / 0")
    found = verdict(sandbox, record, "def f(x): return 1")
    assert (found.status, found.tests_total) == ("infrastructure_error", 0)
    assert "t: the reference" in found.error
    assert verdict(sandbox, {"task_id": "t", "entry_point": "f"}, "f = 1").status == "infrastructure_error"
    assert verdict(sandbox, task("assert f(1"), "f = 1").status == "infrastructure_error"
    assert verdict(sandbox, task(), "f = 1").status == "infrastructure_error"


def test_results_too_large_to_carry_are_compared_by_digest():
    reference = "from itertools import combinations_with_replacement as c\ndef f(n): return list(c('abcde', n))"
    record = task(base_input=[[30]], plus_input=[[2]], atol=0, reference=reference)
    with Sandbox(workers=1, benchmark=True) as sandbox:
        assert verdict(sandbox, record, reference).passed
        wrong = verdict(sandbox, record, reference.replace("list(c('abcde', n))", "list(c('abcde', n))[::-1]"))
    assert (wrong.tests_passed, wrong.status) == (0, "failed")


def test_numpy_in_a_submission(sandbox):
    pytest.importorskip("numpy")
    tests = ["assert f([1, 2], 1) == 3", "assert f([1, 2], 0).tolist() == [2, 4]"]
    code = "import numpy as np\ndef f(x, total): return np.sum(x) if total else np.array(x) * 2"
    assert verdict(sandbox, task(*tests), code).passed


def test_order_counts_and_statuses_do_not_depend_on_the_number_of_workers():
    programs = [
        "def f(x): return x",
        "def f(x): return 1",
        "def f(:",
        "import os\nos._exit(3)",
        "def f(x): return {x: 1, 'b': {2, 1}}",
    ]
    batch = [(task("assert f(1) == 1", "assert f(2) == 2", task_id=f"t{i % 7}"), programs[i % 5]) for i in range(60)]
    results = []
    for workers in (1, 3):
        with Sandbox(workers=workers) as sandbox:
            results.append([(v.status, v.tests_passed, v.tests_total, v.error) for v in sandbox.run(batch)])
    assert results[0] == results[1]
    assert [status for status, *_ in results[0][:5]] == ["passed", "failed", "invalid", "crashed", "failed"]


BURN = """
import time

def f(x):
    while time.process_time() < x:
        pass
    return x
"""


def test_a_fifth_of_a_second_of_work_is_never_timed_out_at_eight_workers_a_core():
    """The limit is of wall time, but what a submission waited for a core does not count."""
    cores = os.sched_getaffinity(0)
    two = set(sorted(cores)[:2])
    os.sched_setaffinity(0, two)  # inherited by all below
    try:
        with Sandbox(workers=8 * len(two), timeout=1.0) as sandbox:
            verdicts = sandbox.run([(task("assert f(0.2) == 0.2"), BURN)] * (24 * len(two)))
    finally:
        os.sched_setaffinity(0, cores)
    assert [v.status for v in verdicts] == ["passed"] * len(verdicts)
    assert max(v.seconds for v in verdicts) > 1.0, "the cores were not contended, so nothing was shown"


def test_submit_from_threads_and_asyncio(sandbox):
    async def some():
        futures = [sandbox.submit(task(f"assert f({i}) == {i}"), "def f(x): return x") for i in range(10)]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    assert all(v.passed for v in asyncio.run(some()))
    seen = []
    threads = [
        threading.Thread(
            target=lambda: seen.extend(sandbox.run([(task("assert f(1) == 1"), "def f(x): return x")] * 5))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 20
    assert all(v.passed for v in seen)


def test_closing_cancels_what_waits_and_a_closed_sandbox_refuses():
    sandbox = Sandbox(workers=1, timeout=30)
    futures = [sandbox.submit(task("assert f(1) == 1"), "def f(x):\n    while True: pass") for _ in range(5)]
    time.sleep(0.2)
    start = time.monotonic()
    sandbox.close()
    assert time.monotonic() - start < 10
    assert futures[-1].cancelled()
    assert futures[0].result().status == "infrastructure_error"
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.submit(task("assert f(1) == 1"), "f = 1")


def test_a_missing_layer_is_said_and_can_be_refused(caplog):
    with Sandbox(workers=1, without=["landlock"]) as sandbox:
        assert sandbox.layers == {
            "seccomp": True,
            "landlock": False,
            "unprivileged": os.geteuid() == 0 or os.getuid() != 0,
        }
    assert "without landlock" in caplog.text
    with pytest.raises(JobError, match="no landlock"):
        Sandbox(workers=1, require=["seccomp", "landlock"], without=["landlock"])


READ = """
def f(x):
    try:
        return len(open({!r}).read()) > 0
    except OSError as error:
        return error.errno
"""
FORK = """
import os

def f(x):
    try:
        pid = os.fork()
    except OSError:
        return "refused"
    if pid == 0:
        os._exit(0)
    return "forked"
"""
SOCKET = """
import socket

def f(x):
    try:
        socket.socket()
        return "opened"
    except OSError:
        return "refused"
"""
WRITE = (
    "def f(x):\n    try:\n        open(x, 'w')\n        return 'written'\n    except OSError:\n        return 'refused'"
)


@pytest.mark.parametrize("without", [(), ("landlock",), ("seccomp",), ("seccomp", "landlock")])
def test_what_gets_through_with_a_layer_missing(without, tmp_path):
    """Only sockets without seccomp; and files that everyone may read or write, once both are gone."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    for path in (*list(tmp_path.parents)[:-2], tmp_path):
        if os.access(path, os.W_OK) and path.owner() == secret.owner() and path != Path("/tmp"):
            path.chmod(0o777)
    secret.chmod(0o666)

    def answer(sandbox, code, argument="0"):
        seen = [
            w
            for w in ("True", "1", "13", "refused", "forked", "opened", "written")
            if verdict(sandbox, task(f"assert str(f({argument})) == {w!r}"), code).passed
        ]
        return seen[0]

    with Sandbox(workers=1, without=without) as sandbox:
        found = {
            "read": answer(sandbox, READ.format(str(secret))),
            "fork": answer(sandbox, FORK),
            "socket": answer(sandbox, SOCKET),
            "write": answer(sandbox, WRITE, repr(str(tmp_path / "new"))),
        }
    assert found["read"] == ("True" if len(without) == 2 else "1" if without == ("landlock",) else "13")
    assert found["fork"] == "refused"  # RLIMIT_NPROC is a second lock on it
    assert found["socket"] == ("opened" if "seccomp" in without else "refused")
    assert found["write"] == ("written" if len(without) == 2 else "refused")


def test_importing_and_starting_is_cheap_and_needs_no_torch():
    code = (
        "import sys\nfrom jobs.sandbox import Sandbox\nSandbox(workers=1).close()\n"
        "assert not {'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)


def test_the_judge_and_all_below_end_with_their_owner():
    code = (
        "import json, time\nfrom jobs.sandbox import Sandbox\ns = Sandbox(workers=1, timeout=60)\n"
        "t = {'task_id': 't', 'entry_point': 'f', 'tests': ['assert f(1)']}\n"
        "s.submit(t, 'def f(x):\\n    while True: pass')\ntime.sleep(0.5)\n"
        "print(s.judges[0].process.pid, flush=True)\ntime.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    judge = int(owner.stdout.readline())
    children = Path(f"/proc/{judge}/task/{judge}/children")
    server = int(children.read_text().split()[0])
    child = int(Path(f"/proc/{server}/task/{server}/children").read_text().split()[0])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in (judge, server, child)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in (judge, server, child))


def test_nothing_is_left_for_an_init_to_reap():
    """In a container whose first process is the job, nobody would: this one takes in what its children leave."""
    code = """
import ctypes, os, time
from pathlib import Path
from jobs.sandbox import Sandbox
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
task = {"task_id": "t", "entry_point": "f", "setup": "", "tests": ["assert f(1) == 1"]}
with Sandbox(workers=2) as sandbox:
    programs = ["def f(x): return x", "import decimal\\ndef f(x): return x", "def f(x): 1 / 0"]
    assert [v.passed for v in sandbox.run([(task, program) for program in programs])] == [True, True, False]
time.sleep(0.5)
print(Path(f"/proc/self/task/{os.getpid()}/children").read_text())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_no_leak_over_many_submissions():
    """Descriptors and memory of pool and judge after a thousand submissions are what they were after two hundred."""

    def state(pid):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(fields["VmRSS"].split()[0])

    batch = [(task("assert f(1) == 1", json.dumps([1])), "def f(x): return x")] * 100
    with Sandbox(workers=1) as sandbox:
        sandbox.run(batch * 2)
        judge = sandbox.judges[0].process.pid
        before = [state(judge), state(os.getpid())]
        sandbox.run(batch * 8)
        after = [state(judge), state(os.getpid())]
    for (descriptors, memory), (descriptors_after, memory_after) in zip(before, after, strict=True):
        assert descriptors_after <= descriptors
        assert memory_after < memory + 4096


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's interpreter can lie where nobody may not read")
def test_a_library_in_a_folder_closed_to_others_can_be_imported_and_nothing_beside_it_read(tmp_path, monkeypatch):
    library = tmp_path / "closed" / "library"
    (library / "package").mkdir(parents=True)
    (library / "package/__init__.py").write_text("")
    (library / "package/inner.py").write_text("VALUE = 7")
    (tmp_path / "closed/secret").write_text("secret")
    tmp_path.chmod(0o700)
    get_path = sysconfig.get_path
    own = ("purelib", "platlib")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library) if name in own else get_path(name))
    code = """
import os, sys
def f(way):
    if way == "import":
        from package import inner
        return inner.VALUE
    folders = [*sys.path, *(f"/proc/self/fd/{n}" for n in range(40))]
    for folder in folders:
        for way in ("..", "../.."):
            try:
                return open(f"{folder}/{way}/secret").read()
            except OSError:
                pass
    return "nothing"
"""
    tests = ["assert f('import') == 7", "assert f('read') == 'nothing'"]
    with Sandbox(workers=1, timeout=5, require=["landlock", "unprivileged"], packages=["package"]) as sandbox:
        result = verdict(sandbox, task(*tests), code)
    assert result.passed, result


@pytest.mark.parametrize("name", ["_strptime", "unittest.mock", "encodings.rot_13", "concurrent.futures", "graphlib"])
def test_every_part_of_the_standard_library_can_be_imported(sandbox, name):
    if not sandbox.layers["landlock"] and name != "_strptime":
        pytest.skip("without Landlock no file can be opened, so only what is loaded before can be imported")
    result = verdict(sandbox, task("assert f() == 1"), f"def f():\n    import {name}\n    return 1")
    assert result.passed, result


def test_dates_are_parsed_which_imports_a_module_behind_the_scenes(sandbox):
    code = "from datetime import datetime\ndef f(x): return datetime.strptime(x, '%m-%d-%Y').day"
    assert verdict(sandbox, task("assert f('03-11-2000') == 11"), code).passed


MODULES_AND_TESTS = {
    "a program's own": ([], ["assert f(3) == '3'"], "import \\\n  decimal\ndef f(x): return str(decimal.Decimal(x))"),
    "a test's own": (
        ["import datetime"],
        ["assert f(datetime.date(2024, 2, 28), 2).day == 1", "assert f(datetime.timedelta(1), 2) == 3"],
        "def f(x, n): return n + 1 if hasattr(x, 'seconds') else x.replace(month=3, day=1)",
    ),
    "a module that no line names": (
        [],
        ["assert f(2) == 4"],
        "m = __import__('frac' + 'tions')\ndef f(x): return x * m.Fraction(2)",
    ),
}


@pytest.mark.parametrize("name", MODULES_AND_TESTS)
def test_modules_are_there_for_programs_and_for_what_tests_hand_over(name):
    """Where no file can be opened, they must have been imported before; where files are guarded, any can be imported."""
    setup, tests, code = MODULES_AND_TESTS[name]
    for without in ([], ["landlock"]):
        with Sandbox(workers=1, timeout=5, without=without) as sandbox:
            found = verdict(sandbox, task(*tests) | {"setup": "\n".join(setup)}, code)
            reachable = sandbox.layers["landlock"] or "no line names" not in name
        assert found.passed == reachable, (name, without, found)


def test_what_params_can_set_are_arguments_of_the_sandbox_and_what_it_passes_on_is_documented():
    arguments = inspect.signature(Sandbox.__init__).parameters
    assert set(params.Sandbox.model_fields) <= set(arguments)
    told = set(get_type_hints(Settings))
    assert {"timeout", "memory_mib", "limit_factor", "min_limit", "packages", "without", "benchmark"} <= told & set(
        arguments
    )
    commented = re.findall(r"^    (\w+): .*  # \S", inspect.getsource(Settings), re.MULTILINE)
    assert set(commented) == told
    with Sandbox(workers=1) as sandbox:
        assert set(sandbox.config) == told
