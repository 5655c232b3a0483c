"""Returns numpy arrays whose items are 40 MB wide each, though none holds more than a letter."""
import sys

agent = sys.modules["jobs.sandbox.agent"]
agent.pack_result = lambda value, parts: [{"a": ["<U9999999", [1], ["x"]]}] * 60
agent.pack = lambda value, *more: [{"a": ["<U9999999", [1], ["x"]]}] * 60


def f(x):
    return 0
