"""Has the judge itself raise StopIteration while it reads a result: a test's loop over results would end as if all were well."""
import sys

agent = sys.modules["jobs.sandbox.agent"]
FORGED = [
    {"u": [7, "NoneType", "X", [], None]},
    {"u": [8, "bool", "X", [], True]},
    {"u": [9, "range", "X", [], {"r": [0, 1, 1]}]},
    {"u": [10, "X", "Y", [], {"o": [11, 0, "X"]}]},
]
agent.pack_result = lambda value, parts: FORGED[agent.CURRENT["n"] % len(FORGED)]


def f(x):
    return 0
