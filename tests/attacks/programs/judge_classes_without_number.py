"""Sends instances of two hundred thousand classes: the judge makes a class of its own for each name."""
import sys

agent = sys.modules["jobs.sandbox.agent"]
agent.pack_result = lambda value, parts: [
    {"u": [i, "int", f"Class{i}", [], i]} if i % 2 else {"o": [i, 0, f"Other{i}"]} for i in range(200_000)
]


def f(x):
    return 0
