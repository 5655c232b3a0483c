"""The pre-forked server of children that run whole programs: each has files for its standard input and output.

As server.py, with the same layers of isolation. With a child's socket the judge gets the other ends: a file in memory
that is the child's standard input, and pipes of its standard output and error. On a byte `w` the server tells how the
child in use has ended, a wait status, once it has; a byte `n` meanwhile ends it.
"""

import contextlib
import os
import select
import signal
import socket
from typing import NoReturn

from jobs.sandbox import agent, stage
from jobs.sandbox.protocol import NEXT, PID, SOCKET, STATUS, WAIT
from jobs.sandbox.server import Layers, fork, prepared


def main() -> None:
    serve(*prepared())


def serve(control: socket.socket, layers: Layers) -> NoReturn:
    server, child = os.getpid(), 0
    while True:
        command = received(control)
        if command == WAIT and child:
            status, command = ended(child, control)
            child = 0
            with contextlib.suppress(OSError):
                control.sendall(STATUS.pack(status))
            if command == WAIT:
                continue
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        if command != NEXT:  # the judge is gone
            os._exit(0)
        child = hand_over(control, layers, server)


def received(control: socket.socket) -> bytes:
    try:
        return control.recv(1)
    except ConnectionResetError:  # the judge is gone, and has not taken the last child's socket
        return b""


def ended(child: int, control: socket.socket) -> tuple[int, bytes]:
    """The child's wait status, and the judge's next word if it has ended the child by that, else WAIT."""
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(control, select.POLLIN)
    ready = {number for number, _ in poll.poll()}
    os.close(descriptor)
    command = WAIT
    if control.fileno() in ready:
        command = received(control)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], command


def hand_over(control: socket.socket, layers: Layers, server: int) -> int:
    """Forks a child that waits for a program, and gives the judge its own ends of all that the child has."""
    ours, theirs = socket.socketpair()
    file = os.memfd_create("stdin")
    reader = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    out, error = os.pipe(), os.pipe()
    layers.count_processes()
    child = fork()
    if child == 0:
        try:
            for number, descriptor in enumerate((reader, out[1], error[1], theirs.fileno())):
                os.dup2(descriptor, number, inheritable=False)  # the last over the control socket
            assert SOCKET == 3
            control.detach()
            for descriptor in (file, reader, *out, *error, ours.detach(), theirs.detach()):
                os.close(descriptor)
            layers.apply(server)
            agent.send({"n": 0, "r": True})
            stage.run()
        finally:
            os._exit(1)
    with contextlib.suppress(BrokenPipeError):  # the next turn ends it
        socket.send_fds(control, [PID.pack(child)], [ours.fileno(), file, out[0], error[0]])
    for descriptor in (file, reader, *out, *error):
        os.close(descriptor)
    ours.close()
    theirs.close()
    return child
