"""What a submission can import and read: the standard library and the packages that the params name, nothing else.

The environment also holds packages that know right answers (evalplus's oracles), so the folder of installed packages
is closed. Landlock draws the line, by files; the folder of links that `Packages` makes is merely how a named package is
found. What may be listed is more than what may be read: the importer lists the library's folder, which often holds that
of the installed packages.
"""

import glob
import os
import re
import sys
import sysconfig
from pathlib import Path

NUMPY = ["numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.polynomial", "numpy.ma"]
OTHERS = ("site-packages", "dist-packages")
DESCRIPTOR = (
    20  # and the next: a server's open folders of packages, by which the links lead past closed parents (/root)
)


class Packages:
    """The named packages that are installed here, and the folder of links through which a child finds them.

    folder: where the links are made. places: the folders of packages they lead to, by the server's own descriptors.
    modules: what a server may import before it forks. missing: names that are not here.
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []
        self.missing: list[str] = []
        self.readable: list[str] = []
        self.places = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        for name in names:
            found = {path: i for i, place in enumerate(self.places) for path in parts(Path(place), name)}
            if not any(path.name.partition(".")[0] == name for path in found):
                self.missing.append(name)
                continue
            self.modules += NUMPY if name == "numpy" else [name]
            for path, i in found.items():
                self.readable.append(str(path))
                (folder / path.name).symlink_to(f"/proc/self/fd/{DESCRIPTOR + i}/{path.name}")
        self.readable.append(str(folder))
        folder.chmod(0o755)


def parts(place: Path, name: str) -> list[Path]:
    """The entries of a folder of packages that belong to one: the package or module, its libraries, its description."""
    spelled = re.sub(r"[-_.]+", "_", name)
    patterns = (name, f"{name}.py", f"{name}.*.so", f"{name}.libs", f"{spelled}-*.dist-info")
    return [path for pattern in patterns for path in sorted(place.glob(pattern))]


def library() -> tuple[list[str], list[str]]:
    """(readable, listable): paths of the interpreter's library, shared libraries, time zones; no installed package."""
    places = {
        sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib"),
        "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib",
    }  # fmt: skip
    readable = {"/usr/share/zoneinfo", "/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime"}
    closed = {
        os.path.realpath(path)
        for place in places
        for other in OTHERS
        for depth in ("", "*/", "*/*/")
        for path in glob.glob(f"{glob.escape(place)}/{depth}{other}")
    }
    for place in places:
        readable.update(without(os.path.realpath(place), closed))
    return sorted(readable), sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


def without(place: str, closed: set[str]) -> list[str]:
    """The fewest paths that hold all of `place` but the folders `closed`."""
    if place in closed or not os.path.exists(place):
        return []
    if not any(folder.startswith(place + "/") for folder in closed):
        return [place]
    entries = [f"{place}/{entry}" for entry in os.listdir(place)]
    return [path for entry in entries if not os.path.islink(entry) for path in without(entry, closed)]


def open_places(places: list[str]) -> None:
    """In a server: makes the links lead somewhere, in it and in all its children."""
    for i, place in enumerate(places):
        if os.path.isdir(place):
            opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
            os.dup2(opened, DESCRIPTOR + i, inheritable=False)
            os.close(opened)
