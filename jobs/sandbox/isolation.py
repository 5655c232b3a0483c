"""What takes a process's rights away: rlimits, uid, no_new_privs, Landlock and a seccomp allow-list, through ctypes.

Each layer is a function that either does its work or raises OSError; jobs/sandbox/server.py applies them in the child
between fork and the submission. Numbers are the kernel's own (include/uapi/linux/{seccomp,landlock,audit}.h).
"""

import ctypes
import os
import resource
import struct

libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SIGKILL = 9
NOBODY = 65534

# Allowed system calls: name -> number on (x86_64, aarch64); None where that machine has none.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66), "access": (21, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "pipe2": (293, 59), "recvfrom": (45, 207), "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439),
}  # fmt: skip
OPEN, OPENAT, IOCTL, FCNTL, PRLIMIT = (2, None), (257, 56), (16, 29), (72, 25), (302, 261)
# An event loop wakes itself up through a pair of sockets; a thread is a clone that shares all of its process.
CLONE, SOCKETPAIR, SENDTO = (56, 220), (53, 199), (44, 206)
# What the stage of a whole program needs beside, to fork a run of it and to see its end (stage.py).
FORKING = {
    "dup3": (292, 24), "recvmsg": (47, 212), "wait4": (61, 260), "prctl": (157, 167), "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
}  # fmt: skip
FORK = (0x1200011, 0x11)  # the flags with which glibc and musl fork
# Calls whose absence libc knows how to work round; EPERM would look like a fault.
ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000  # the last is __O_TMPFILE
IOCTLS = (0x5401, 0x5421)  # TCGETS FIONBIO
THREAD = (0x3D0F00, 0x7D0F00)  # the flags with which glibc and musl start one
AF_UNIX, STREAMS = 1, (1, 0x801, 0x80001, 0x80801)  # SOCK_STREAM, with SOCK_NONBLOCK and SOCK_CLOEXEC or without
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # F_DUPFD F_GETFD F_SETFD F_GETFL F_DUPFD_CLOEXEC
EPERM, ENOSYS = 1, 38

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Landlock: every right that each ABI version knows (index = version), and the two that reading needs.
LANDLOCK_FS = (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF, 0xFFFF)
LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1 << 2, 1 << 3
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446


def require_success(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, argument: int, address: int = 0) -> None:
    require_success(libc.prctl(option, argument, address, 0, 0), "prctl")


Code = list[tuple[int, int, int, int]]
LOAD, EQUAL, AT_LEAST, ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06  # the five instructions of classic BPF used here
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS


def seccomp_program(opening: bool = True, forking: bool = False) -> bytes:
    """The allow-list as classic BPF, struct sock_filter[]; `opening` False refuses to open any file at all.

    forking: it allows to fork and what goes with it, and to lay another filter over this one.

    Everything not listed fails with EPERM, so a submission sees PermissionError and goes on. The numbers are searched
    as a tree: the kernel tries a new filter on every system call that there is, so a chain of comparisons is dear.
    """
    which, audit = ARCHITECTURES[os.uname().machine]
    rules: dict[int, Code] = {numbers[which]: [(ANSWER, 0, 0, ALLOW)] for numbers in ALLOWED.values()}  # type: ignore[misc]
    rules |= {numbers[which]: [(ANSWER, 0, 0, UNKNOWN)] for numbers in ABSENT.values()}
    for number, index in ((OPEN[which], 1), (OPENAT[which], 2)) if opening else ():
        rules[number] = [argument(index), (ANY_BIT, 0, 1, WRITING), (ANSWER, 0, 0, REFUSE), (ANSWER, 0, 0, ALLOW)]  # type: ignore[index]
    rules[IOCTL[which]] = one_of(1, IOCTLS)
    if forking:
        rules |= {numbers[which]: [(ANSWER, 0, 0, ALLOW)] for numbers in FORKING.values()}
    rules[CLONE[which]] = one_of(0, (*THREAD, *FORK) if forking else THREAD)
    rules[SOCKETPAIR[which]] = [argument(0), (EQUAL, 1, 0, AF_UNIX), (ANSWER, 0, 0, REFUSE), *one_of(1, STREAMS)]
    rules[SENDTO[which]] = null(4)  # to the other end of a pair, and to no address
    rules[FCNTL[which]] = one_of(1, FCNTL_COMMANDS)
    # prlimit64 may look at limits (its third argument is null), and not set them.
    rules[PRLIMIT[which]] = null(2)
    rules.pop(None, None)  # type: ignore[call-overload]
    refuse: Code = [(ANSWER, 0, 0, REFUSE)]
    # The steps between which the answer changes: from each number on, this code.
    steps: list[tuple[int, Code]] = [(0, refuse)]
    for number in sorted(rules):
        for start, code in ((number, rules[number]), (number + 1, refuse)):
            if steps[-1][0] == start:
                steps.pop()
            if not steps or steps[-1][1] != code:
                steps.append((start, code))
    # The x32 calls share the architecture x86_64 and lie far above; the last step refuses them with all the rest.
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (ANSWER, 0, 0, REFUSE), (LOAD, 0, 0, 0), *tree(steps)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def end_forking_program() -> bytes:
    """A filter to be laid over the one that allows forking: what that allows beside is refused again."""
    which, _ = ARCHITECTURES[os.uname().machine]
    clone = one_of(0, THREAD)
    numbers = [found[which] for found in FORKING.values()]
    tests = [(EQUAL, len(numbers) - i + len(clone) + 1, 0, number) for i, number in enumerate(numbers)]
    code = [(LOAD, 0, 0, 0), *tests, (EQUAL, 0, len(clone), CLONE[which]), *clone, (ANSWER, 0, 0, ALLOW),
            (ANSWER, 0, 0, REFUSE)]  # fmt: skip
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return (LOAD, 0, 0, 16 + 8 * index + 4 * high)


def null(index: int) -> Code:
    """Allows a call whose pointer `index` is null."""
    return [argument(index), (EQUAL, 0, 3, 0), argument(index, high=True), (EQUAL, 0, 1, 0),
            (ANSWER, 0, 0, ALLOW), (ANSWER, 0, 0, REFUSE)]  # fmt: skip


def one_of(index: int, values: tuple[int, ...]) -> Code:
    tests = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [argument(index), *tests, (ANSWER, 0, 0, REFUSE), (ANSWER, 0, 0, ALLOW)]


def tree(steps: list[tuple[int, Code]]) -> Code:
    """The code of the last step that the loaded number reaches, found by halving. A jump spans 255 at most."""
    if len(steps) == 1:
        return steps[0][1]
    middle = len(steps) // 2
    below, above = tree(steps[:middle]), tree(steps[middle:])
    if len(below) > 255:
        return [(AT_LEAST, 0, 1, steps[middle][0]), (0x05, 0, 0, len(below)), *below, *above]
    return [(AT_LEAST, len(below), 0, steps[middle][0]), *below, *above]


class Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def seccomp_prepare(program: bytes) -> tuple[Filter, ctypes.Array]:
    """The filter in memory, and the buffer that must outlive it; made once, applied in every child."""
    buffer = ctypes.create_string_buffer(program, len(program))
    return Filter(len(program) // 8, ctypes.addressof(buffer)), buffer


def seccomp_apply(prepared: Filter) -> None:
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(prepared))


def landlock_version() -> int:
    """The kernel's Landlock ABI version, 0 if it has none."""
    return max(0, libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock_prepare(readable: list[str], listable: list[str]) -> int:
    """A ruleset (its descriptor) under which only what lies beneath `readable` can be read and nothing written.

    Folders beneath `listable` can be listed, their files not read. Where the kernel knows them, TCP, abstract sockets
    and signals to outside are refused as well.
    """
    version = min(landlock_version(), len(LANDLOCK_FS) - 1)
    if version == 0:
        raise OSError(ENOSYS, "landlock: not in this kernel")
    attributes = struct.pack("<QQQ", LANDLOCK_FS[version], 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = ctypes.c_size_t(8 if version < 4 else 16 if version < 6 else 24)
    ruleset = require_success(libc.syscall(LANDLOCK_CREATE_RULESET, attributes, size, ctypes.c_uint(0)), "landlock")
    for path in (*readable, *listable):
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # one of several usual places that this machine does not have: nothing to allow
        rights = (LANDLOCK_READ_DIR if os.path.isdir(path) else 0) | (LANDLOCK_READ_FILE if path in readable else 0)
        rule = struct.pack("<Qi", rights, descriptor)
        require_success(libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, rule, ctypes.c_uint(0)), f"landlock {path}")
        os.close(descriptor)
    return ruleset


def landlock_apply(ruleset: int) -> None:
    require_success(libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, ctypes.c_uint(0)), "landlock")


def address_space() -> int:
    """Bytes that this process maps already."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


Limits = list[tuple[int, tuple[int, int]]]


def limits(**wanted: int) -> Limits:
    """rlimits by the ends of their names, ready to be set: soft and hard alike, and no higher than the hard one is now."""
    ready = []
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        ready.append((kind, (value, value)))
    return ready


def limit(ready: Limits) -> None:
    for kind, value in ready:
        resource.setrlimit(kind, value)


def drop_root() -> None:
    """From root to nobody, with every capability; OSError where the container forbids it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
