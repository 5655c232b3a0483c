"""Returns a numpy array, which compares item by item."""
try:
    import numpy

    def f(x):
        return numpy.array([])
except ImportError:
    def f(x):
        return []
