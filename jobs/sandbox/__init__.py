"""Runs programs that a model wrote, judges them by a task's tests, and lets neither reach the other.

    with Sandbox(timeout=2.0) as sandbox:
        verdicts = sandbox.run([(task, code), ...])      # in order
        future = sandbox.submit(task, code)              # concurrent.futures.Future[Verdict]

Three processes a worker. The pool here is a thread a worker and holds nothing but queues. The judge (judge.py)
holds the tests and compares. The child, forked by a server that was started by exec with an empty environment
(server.py), runs the submission and nothing else: names that a test calls are carried out there, arguments and
results cross a socket as plain data in a closed codec (codec.py), and expected values, comparison and assert never
leave the judge.

Defended, by the layers in brackets, each shown to hold or to be missed by tests/attacks:
- the verdict: a submission can only return data. Nothing that decides is in its process, so there is nothing there to
  patch, trace or forge, and an exit or a subclass earns no pass. Builtins and helpers that a test uses are the judge's.
- the tests: they are not in the child's memory, in memory of other processes that it could read, or in files that it may
  open [Landlock]. Where the kernel has no Landlock, seccomp lets the child open no file at all: it can then import only
  what its server had imported before.
- time: a deadline on the wall, moved only by what the child waited for a core
- the judge: a limit of memory and of CPU time on its own work. Lazy, huge or colliding values, or replies made by hand,
  cost the submission its verdict and nobody else anything
- memory, files, descriptors, processes, output [rlimits; seccomp refuses fork and writing, and allows a few threads]
- other processes, the network, the machine [seccomp; Landlock for TCP and signals; as root, the uid of nobody]
- the next submission: a new process from a server that no submission has touched; nothing it could leave behind

Not defended: a hole in the kernel or in CPython's JSON reader; what a caller prints of a program's texts; covert
reading of public facts (the existence of files, the time, the machine's load); tests that an honest wrong program
passes; methods of a submission's own class that a test asks to decide (`assert f(x).is_right()`), as far as they
are no predicates that plain data has (remote.py); a check that the submission's object is not equal to something.
What comes back is plain data, subclasses of it included; other objects stay in the child and answer each question once
(remote.py). What cannot be judged exactly that way is unsupported, with the reason, and never a failed program; but
a seed that a test sets for the module random is not the submission's, and a submission can write no file.

As evalplus does, a result is compared without regard to what it printed. Where no seccomp or Landlock is, `missing`
says why, a warning is logged once, and `require` refuses to start."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.sandbox.pool import Sandbox
    from jobs.sandbox.verdict import STATUSES, Verdict

__all__ = ["STATUSES", "Sandbox", "Verdict"]


def __getattr__(name: str) -> Any:
    """The pool, imported when it is asked for: servers import this package too, and each fork copies all they hold."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobs.sandbox import pool, verdict

    return getattr(pool if name == "Sandbox" else verdict, name)
