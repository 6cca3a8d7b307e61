"""Blocking work on connections, in worker threads that trio can cancel; and the listening socket they come from."""

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final, Protocol, TypeVar, TypeVarTuple

import structlog
import trio

from barnraise.errors import ConfigError, PeerError, Unavailable

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

EVERY_INTERFACE: Final = ("", "0.0.0.0", "::")  # noqa: S104  # to refuse them
ACCEPT_PAUSE_S: Final = 0.1
"""After the system ran out of descriptors."""

_log = structlog.get_logger()


class Interruptible(Protocol):
    """What a thread may block on."""

    def interrupt(self) -> None:
        """Make the thread's call fail."""
        ...


class Connecting:
    """A socket in its handshake."""

    def __init__(self, sock: socket.socket) -> None:
        """Watch over a socket that somebody else frees."""
        self._sock = sock

    def interrupt(self) -> None:
        """Make the handshake fail."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


async def in_thread(
    limiter: trio.CapacityLimiter,
    channel: Interruptible,
    work: Callable[[*Arguments], T],
    *arguments: *Arguments,
) -> T:
    """Run ``work`` in a worker thread and return when the thread is done with it, come what may.

    Cancellation interrupts the channel that the thread blocks on. Other errors than these two are our defects and
    reach the caller in an exception group.

    Raises:
        PeerError, Unavailable: what ``work`` raised.
    """
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_interrupt_when_cancelled, channel, done)
        try:
            return await trio.to_thread.run_sync(work, *arguments, limiter=limiter)
        except (PeerError, Unavailable) as error:
            failure = error
        finally:
            done.set()
    raise failure


async def _interrupt_when_cancelled(channel: Interruptible, done: trio.Event) -> None:
    try:
        await done.wait()
    finally:
        if not done.is_set():
            channel.interrupt()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening, non-blocking socket.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if host in EVERY_INTERFACE:
        raise ConfigError(f"bulk_listen on {host} would be told to others as it is. Name one address of this machine.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}). Change bulk_listen.") from error
    listener.setblocking(False)
    return listener


async def accept(listener: socket.socket) -> socket.socket:
    """Return the next connection; wait out what the system is short of."""
    while True:
        await trio.lowlevel.wait_readable(listener.fileno())
        try:
            return listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            continue
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                raise
            _log.warning("bulk.accept_failed", reason=error.strerror)
            await trio.sleep(ACCEPT_PAUSE_S)
