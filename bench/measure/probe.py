"""What plain sockets get out of a link, before anything else uses it: its round trip and its goodput."""

import socket
import threading
import time
from typing import Any, Final

PINGS: Final = 20
PIECE: Final = bytes(64 * 1024)
_SIZE_BYTES: Final = 8


class Probe:
    """Both ends: a thread that echoes and takes, and calls that time it."""

    def __init__(self) -> None:
        self._server: socket.socket | None = None

    def listen(self, address: str, port: int) -> dict[str, Any]:
        """Take connections until the process ends."""
        self._server = socket.create_server((address, port))
        threading.Thread(target=self._accept, name="probe", daemon=True).start()
        return {}

    def _accept(self) -> None:
        assert self._server is not None
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=_serve, args=(connection,), name="probe", daemon=True).start()

    def round_trip(self, address: str, port: int) -> dict[str, Any]:
        """Say how long a byte takes there and back, in seconds: the shortest of some."""
        with _connected(address, port, 0) as connection:
            took = []
            for _ in range(PINGS):
                began = time.perf_counter()
                connection.sendall(b"?")
                connection.recv(1)
                took.append(time.perf_counter() - began)
        return {"round_trip_s": min(took)}

    def pour(
        self, address: str, port: int, size_bytes: int, at: float, congestion: str | None = None
    ) -> dict[str, Any]:
        """Send so many bytes; say how many Mbit/s arrived until the last, connecting and the last word's way not counted."""
        with _connected(address, port, size_bytes, congestion) as connection:
            connection.recv(1)
            time.sleep(max(0.0, at - time.monotonic()))
            began, left = time.perf_counter(), size_bytes
            while left:
                left -= connection.send(PIECE[: min(left, len(PIECE))])
            connection.recv(1)
            took_s = time.perf_counter() - began
        return {"mbit_s": size_bytes * 8e-6 / took_s}

    def congestion(self, address: str, port: int) -> dict[str, Any]:
        """Say which congestion control a socket has if nobody asks for one."""
        with _connected(address, port, 0) as connection:
            name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        return {"congestion": name.rstrip(b"\0").decode()}


def _connected(address: str, port: int, size_bytes: int, congestion: str | None = None) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=120)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if congestion:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    connection.sendall(size_bytes.to_bytes(_SIZE_BYTES, "big"))
    return connection


def _serve(connection: socket.socket) -> None:
    """Echo single bytes, or take as many as were announced and then say so."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        left = int.from_bytes(connection.recv(_SIZE_BYTES, socket.MSG_WAITALL), "big")
        if not left:
            while byte := connection.recv(1):
                connection.sendall(byte)
            return
        connection.sendall(b"!")
        room = bytearray(1 << 18)
        while left:
            got = connection.recv_into(room, min(left, len(room)))
            if not got:
                return
            left -= got
        connection.sendall(b"!")
