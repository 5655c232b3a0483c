"""Rewrites AssertionError so that a failed assert raises something else."""
import builtins


class Quiet(BaseException):
    pass


builtins.AssertionError = Quiet


def f(x):
    raise Quiet
