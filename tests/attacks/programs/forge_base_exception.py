"""Raises a BaseException that no `except Exception` catches."""
class Out(BaseException):
    pass


def f(x):
    raise Out("passed")
