"""Connects to a listener on this machine, by TCP, UDP and a unix socket."""
import socket


def f(x):
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 47123)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 47123)),
        (socket.AF_UNIX, socket.SOCK_STREAM, "/tmp/sandbox-attack-listener"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "\0sandbox-attack-listener"),
    ):
        try:
            with socket.socket(family, kind) as connection:
                connection.settimeout(0.2)
                connection.connect(address)
                connection.send(b"stolen")
        except OSError:
            pass
    return 0
