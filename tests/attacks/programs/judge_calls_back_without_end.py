"""Calls functions of the test's that do not exist, for ever, without reading what the judge answers."""
import sys

agent = sys.modules["jobs.sandbox.agent"]


def f(x):
    while True:
        agent.send({"n": agent.CURRENT["n"], "c": [0, [[1] * 1000], {}]})
