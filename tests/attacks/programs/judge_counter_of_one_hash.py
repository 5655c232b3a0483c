"""The same with a Counter within a list, and with the keys of a view."""
import sys

agent = sys.modules["jobs.sandbox.agent"]
PAIRS = [[i * (2**61 - 1), 1] for i in range(1, 60_000)]
agent.pack_result = lambda value, parts: [{"C": PAIRS}, {"v": ["keys", [key for key, _ in PAIRS]]}]
agent.pack = lambda value, *more: [{"C": PAIRS}, {"s": [key for key, _ in PAIRS]}]


def f(x):
    return 0
