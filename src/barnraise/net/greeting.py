"""Carries the messages of one admission over a stream; what they say is `admission`'s."""

from contextlib import suppress
from typing import Final

import trio

from barnraise.net.admission import MAX_ADMISSION_BYTES, Admission
from barnraise.net.links import frame, receive_frame

FAREWELL_DEADLINE_S: Final = 1.0
"""How long a refused peer may take to read why."""


async def exchange(stream: trio.abc.Stream, admission: Admission) -> None:
    """Run one side of an admission to its end; the caller bounds it in time.

    Raises:
        NotAdmitted, PeerError: see `Admission.receive`.
        EOFError, ValueError, trio.BrokenResourceError: the stream ended, or what came is no frame.
    """
    if admission.initiator:
        await stream.send_all(frame(admission.start()))
    while not admission.done:
        reply = admission.receive(await receive_frame(stream, MAX_ADMISSION_BYTES))
        if reply:
            await stream.send_all(frame(reply))


async def say_farewell(stream: trio.abc.Stream, farewell: bytes) -> None:
    """Tell a peer why not, if it did not say so itself."""
    if not farewell:
        return
    with trio.move_on_after(FAREWELL_DEADLINE_S), suppress(trio.BrokenResourceError):
        await stream.send_all(frame(farewell))
        # Closing at once would throw the words away at the other side, which closes when it has them.
        await stream.receive_some(1)
