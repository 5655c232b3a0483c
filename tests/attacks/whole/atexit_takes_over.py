"""Does its work at the end of the process: in atexit, in a destructor, in an excepthook."""

import atexit, os, sys, threading


def late(*_):
    os.write(1, b"")
    os._exit(0)


class D:
    __del__ = late


sys.excepthook = threading.excepthook = late
atexit.register(late)
d = D()
threading._shutdown = lambda: os._exit(0)
raise KeyboardInterrupt
