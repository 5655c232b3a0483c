"""Our own functions that read untrusted text, which `Sandbox.call` runs in a child with limits and without rights.

The list is closed: a name stands for a function of ours, which takes one JSON value and returns one. Its module is
imported before the child takes its rights away, so whatever the function needs must be imported at the module's top.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

# Name: (module, function).
TOOLS: dict[str, tuple[str, str]] = {
    "syntax_errors": ("jobs.sandbox.tools", "syntax_errors"),
}
MODULES = sorted({module for module, _ in TOOLS.values()})


def tool(name: str) -> Callable[[Any], Any]:
    """The function of that name. Errors: KeyError."""
    module, function = TOOLS[name]
    return getattr(importlib.import_module(module), function)


def syntax_errors(programs: list[str]) -> list[str]:
    """Why each text is no Python program, "" where it is one. One that exhausts memory ends in an error of its own."""
    found = []
    for program in programs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in regular expressions
                compile(program, "<program>", "exec", dont_inherit=True)
            found.append("")
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            found.append(f"{type(error).__name__}: {error}"[:200])
    return found
