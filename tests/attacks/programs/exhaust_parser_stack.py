"""Compiles an expression nested too deeply."""
def f(x):
    return eval('(' * 100000 + ')' * 100000)
