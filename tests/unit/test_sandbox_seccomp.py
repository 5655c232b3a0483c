"""The sandbox's seccomp filter, interpreted: against its own list, and against libseccomp's of the same rules."""

import ctypes
import itertools
import os
import platform
import struct

import pytest

from jobs.sandbox import isolation

if platform.machine() not in isolation.ARCHITECTURES:
    pytest.skip(f"no table of system calls for {platform.machine()}", allow_module_level=True)
WHICH, AUDIT = isolation.ARCHITECTURES[platform.machine()]
NOTHING = (0,) * 6
SPECIAL = {"open": isolation.OPEN, "openat": isolation.OPENAT, "ioctl": isolation.IOCTL, "fcntl": isolation.FCNTL,
           "prlimit64": isolation.PRLIMIT, "clone": isolation.CLONE, "socketpair": isolation.SOCKETPAIR,
           "sendto": isolation.SENDTO}  # fmt: skip


def outcome(program, number, arguments=NOTHING, architecture=AUDIT):
    """What a classic BPF program returns for a system call."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, *arguments)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        kind, yes, no, value = code[at]
        at += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x06:
            return value
        elif kind == 0x05:
            at += value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[kind]
            at += yes if holds else no


def test_the_filter_allows_what_is_listed_and_nothing_else():
    """For every system call number, open flag and foreign architecture."""
    program = isolation.seccomp_program()
    listed = {numbers[WHICH] for numbers in isolation.ALLOWED.values()} - {None}
    opening = {isolation.OPEN[WHICH], isolation.OPENAT[WHICH]} - {None}
    for number in range(1024):
        expected = number in listed or number in opening or number == isolation.PRLIMIT[WHICH]
        # F_DUPFD is command 0, and no address is a null pointer
        expected = expected or number in (isolation.FCNTL[WHICH], isolation.SENDTO[WHICH])
        assert (outcome(program, number) == isolation.ALLOW) == expected, number
        assert outcome(program, number, architecture=0x40000003) != isolation.ALLOW
        assert outcome(program, number | 0x40000000) != isolation.ALLOW
        assert (outcome(isolation.seccomp_program(opening=False), number) == isolation.ALLOW) == (
            expected and number not in opening
        )
    openat = isolation.OPENAT[WHICH]
    for flags, allowed in (
        (os.O_RDONLY, True),
        (os.O_CLOEXEC | os.O_DIRECTORY, True),
        (os.O_WRONLY, False),
        (os.O_RDWR, False),
        (os.O_CREAT, False),
        (os.O_TRUNC, False),
        (os.O_TMPFILE, False),
    ):
        assert (outcome(program, openat, (0, 0, flags, 0, 0, 0)) == isolation.ALLOW) == allowed, flags
    prlimit = isolation.PRLIMIT[WHICH]
    assert outcome(program, prlimit, (0, 0, 1, 0, 0, 0)) != isolation.ALLOW
    assert outcome(program, prlimit, (0, 0, 1 << 32, 0, 0, 0)) != isolation.ALLOW
    assert outcome(program, isolation.IOCTL[WHICH], (0, 0x5412, 0, 0, 0, 0)) != isolation.ALLOW
    for flags in isolation.THREAD:
        assert outcome(program, isolation.CLONE[WHICH], (flags, 0, 0, 0, 0, 0)) == isolation.ALLOW
    for flags in (0, 17, 0x1200011, 0x4111, 0x3D0F00 | 0x10000000, 0x3D0F00 & ~0x10000):
        assert outcome(program, isolation.CLONE[WHICH], (flags, 0, 0, 0, 0, 0)) != isolation.ALLOW
    for family, kind, allowed in ((1, 1, True), (1, 0x80001, True), (1, 2, False), (2, 1, False), (16, 3, False)):
        assert (outcome(program, isolation.SOCKETPAIR[WHICH], (family, kind, 0, 0, 0, 0)) == isolation.ALLOW) == allowed
    for address in (1, 1 << 32):
        assert outcome(program, isolation.SENDTO[WHICH], (0, 0, 0, 0, address, 0)) != isolation.ALLOW
    assert outcome(program, isolation.IOCTL[WHICH], (0, 0x5401, 0, 0, 0, 0)) == isolation.ALLOW


def test_a_stage_may_fork_and_what_it_forks_may_not():
    """The filter of a stage allows a few calls more; the one laid over it in a run takes just these back."""
    plain, stage = isolation.seccomp_program(), isolation.seccomp_program(forking=True)
    last = isolation.end_forking_program()
    more = {numbers[WHICH] for numbers in isolation.FORKING.values()}
    clone = isolation.CLONE[WHICH]
    for number in range(1024):
        assert (outcome(stage, number) == isolation.ALLOW) == (
            number in more or outcome(plain, number) == isolation.ALLOW
        ), number
        assert (outcome(last, number) == isolation.ALLOW) == (number not in more and number != clone), number
    for flags in (*isolation.FORK, *isolation.THREAD, 0, 0x4111, 0x10000000 | 17):
        arguments = (flags, 0, 0, 0, 0, 0)
        allowed = {program: outcome(program, clone, arguments) == isolation.ALLOW for program in (plain, stage, last)}
        thread = flags in isolation.THREAD
        assert allowed == {plain: thread, stage: thread or flags in isolation.FORK, last: thread}, flags


@pytest.fixture(scope="module")
def libseccomp():
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp.so.2 is not installed")
    library.seccomp_init.restype = ctypes.c_void_p
    return library


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


EQUAL, MASKED_EQUAL, ACT_BADARCH = 4, 7, 2


def theirs(library, opening):
    """The same rules as libseccomp compiles them."""
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(isolation.REFUSE)))
    assert library.seccomp_attr_set(context, ACT_BADARCH, ctypes.c_uint32(isolation.REFUSE)) == 0

    def rule(action, name, *comparisons):
        number = library.seccomp_syscall_resolve_name(name.encode())
        array = (Comparison * len(comparisons))(*comparisons)
        done = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(comparisons), array)
        assert done == 0, (name, done)

    for name, numbers in isolation.ALLOWED.items():
        if numbers[WHICH] is not None:
            rule(isolation.ALLOW, name)
    for name in isolation.ABSENT:
        rule(isolation.UNKNOWN, name)
    if opening:
        if isolation.OPEN[WHICH] is not None:
            rule(isolation.ALLOW, "open", Comparison(1, MASKED_EQUAL, isolation.WRITING, 0))
        rule(isolation.ALLOW, "openat", Comparison(2, MASKED_EQUAL, isolation.WRITING, 0))
    for command in isolation.IOCTLS:
        rule(isolation.ALLOW, "ioctl", Comparison(1, EQUAL, command, 0))
    for threads in isolation.THREAD:
        rule(isolation.ALLOW, "clone", Comparison(0, EQUAL, threads, 0))
    for kind in isolation.STREAMS:
        rule(isolation.ALLOW, "socketpair", Comparison(0, EQUAL, isolation.AF_UNIX, 0), Comparison(1, EQUAL, kind, 0))
    rule(isolation.ALLOW, "sendto", Comparison(4, EQUAL, 0, 0))
    for command in isolation.FCNTL_COMMANDS:
        rule(isolation.ALLOW, "fcntl", Comparison(1, EQUAL, command, 0))
    rule(isolation.ALLOW, "prlimit64", Comparison(2, EQUAL, 0, 0))
    with open(os.memfd_create("filter"), "w+b") as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        library.seccomp_release(context)
        file.seek(0)
        return file.read()


def test_the_numbers_are_libseccomps_on_both_machines(libseccomp):
    for name, numbers in (isolation.ALLOWED | isolation.FORKING | isolation.ABSENT | SPECIAL).items():
        for (_, token), ours in zip(isolation.ARCHITECTURES.values(), numbers, strict=True):
            found = libseccomp.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name.encode())
            assert (found if found >= 0 else None) == ours, (name, hex(token))


@pytest.mark.parametrize("opening", [True, False])
def test_the_filter_decides_as_libseccomps(libseccomp, opening):
    ours, oracle = isolation.seccomp_program(opening), theirs(libseccomp, opening)
    flags = [
        0,
        os.O_CLOEXEC,
        *(1 << bit for bit in range(24)),
        isolation.WRITING,
        *isolation.IOCTLS,
        *isolation.THREAD,
        1030,
        1031,
        2**31,
    ]
    for number in (*range(512), 0x40000000, 0x40000001, 0xFFFFFFFF):
        signed = number - (1 << 32) if number >> 31 else number
        for flag, place in itertools.product(flags, (0, 1, 2, 4)):
            arguments = tuple(flag if i == place else 0 for i in range(6))
            assert outcome(ours, signed, arguments) == outcome(oracle, signed, arguments), (number, arguments)
        assert outcome(ours, signed, NOTHING, 0x40000003) == outcome(oracle, signed, NOTHING, 0x40000003)
