"""Probes on idle TCP connections, so that a machine that vanished is noticed in half a minute; nothing else."""

import contextlib
import socket
from typing import Final, Protocol

IDLE_S: Final = 15
INTERVAL_S: Final = 5
NUM_PROBES: Final = 3

_OPTIONS: Final = (
    ("TCP_KEEPIDLE", IDLE_S),  # Linux, and macOS from Python 3.13's headers on
    ("TCP_KEEPALIVE", IDLE_S),  # macOS's own name for the same
    ("TCP_KEEPINTVL", INTERVAL_S),
    ("TCP_KEEPCNT", NUM_PROBES),
)


class _Settable(Protocol):
    """A socket, trio's or the standard library's."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def keep_alive(sock: _Settable) -> None:
    """Have the kernel probe a connection that was idle for 15 s, and give it up 15 s later; where it can."""
    # macOS refuses options of a connection that the other side has reset; its next use fails in any case.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
