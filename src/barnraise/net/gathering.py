"""The receiving end's side of opening streams: gathers the connections of each, hands it over whole. In trio's thread."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from barnraise.errors import PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.blocking import in_thread
from barnraise.net.channel import Channel
from barnraise.net.seam import StreamSink
from barnraise.net.streams import SealedStream, StreamAnnouncement, read_announcement
from barnraise.net.transfer import Refused, Reply, answer


@dataclass(eq=False, slots=True)
class _Gathering:
    """A stream some of whose connections have come."""

    num_connections: int
    header: bytes
    channels: dict[int, Channel] = field(default_factory=dict)
    done: trio.Event = field(default_factory=trio.Event)
    was_taken: bool = False

    @property
    def is_complete(self) -> bool:
        return len(self.channels) == self.num_connections

    def end(self) -> None:
        """Let nobody wait for it any more; free the channels that no stream has taken over."""
        self.done.set()
        for channel in self.channels.values():
            channel.close()
        self.channels = {}


class Gatherer:
    """The streams that one peer opens to us."""

    def __init__(self, peer: PeerId, sink: StreamSink | None, max_streams: int, patience_s: float) -> None:
        """Give ``sink`` at most ``max_streams`` at a time; wait ``patience_s`` for all connections of one."""
        self._peer = peer
        self._sink = sink
        self._max_streams = max_streams
        self._patience_s = patience_s
        self._begun: dict[bytes, _Gathering] = {}
        self._open: set[SealedStream] = set()
        self._is_over = False

    async def take(self, channel: Channel, limiter: trio.CapacityLimiter) -> None:
        """Take over a connection whose next frame is a STREAM; return once its stream was handed over.

        Raises:
            PeerError: the peer breaks the protocol.
            Unavailable: it is gone, has too many streams, or the stream's other connections did not come. The connection is closed.
        """
        try:
            announcement = await in_thread(limiter, channel, read_announcement, channel)
            gathering = self._join(channel, announcement)
        except Refused as refusal:
            with contextlib.closing(channel):
                await in_thread(limiter, channel, answer, channel, Reply("refused", str(refusal)))
            raise
        except BaseException:
            channel.close()
            raise
        try:
            if gathering.is_complete:
                await self._hand_over(gathering, limiter)
            else:
                with trio.move_on_after(self._patience_s):
                    await gathering.done.wait()
        finally:
            if self._begun.get(announcement.id) is gathering:
                del self._begun[announcement.id]
            gathering.end()
        if not gathering.was_taken:
            raise Unavailable(f"peer {self._peer}: a stream's connections did not all come, or it was not wanted")

    def interrupt(self) -> None:
        """End every stream and what is to become one, and take no more; who owns a stream still has to close it."""
        self._is_over = True
        for gathering in self._begun.values():
            gathering.end()
        for stream in self._open:
            stream.interrupt()

    def _join(self, channel: Channel, announcement: StreamAnnouncement) -> _Gathering:
        if self._is_over:
            raise Unavailable(f"peer {self._peer}: was forgotten while it opened a stream")
        gathering = self._begun.get(announcement.id)
        if gathering is None:
            if len(self._open) + len(self._begun) >= self._max_streams:
                raise Refused(f"over {self._max_streams} streams")
            gathering = _Gathering(announcement.num_connections, announcement.header)
            self._begun[announcement.id] = gathering
        known = (gathering.num_connections, gathering.header)
        if known != (announcement.num_connections, announcement.header) or announcement.index in gathering.channels:
            gathering.end()
            raise PeerError(self._peer, "two connections of a stream contradict each other")
        gathering.channels[announcement.index] = channel
        return gathering

    async def _hand_over(self, gathering: _Gathering, limiter: trio.CapacityLimiter) -> None:
        channels = [gathering.channels[index] for index in range(gathering.num_connections)]
        gathering.channels = {}
        stream = SealedStream(channels, gauge=None, closed=leaving(self._open))
        self._open.add(stream)
        gathering.was_taken = await in_thread(limiter, stream, stream.hand_over, gathering.header, self._sink)


def leaving(streams: set[SealedStream]) -> Callable[[SealedStream], None]:
    """Return what takes a closed stream out of ``streams``: called in any thread, done in trio's."""
    token = trio.lowlevel.current_trio_token()

    def leave(stream: SealedStream) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(streams.discard, stream)

    return leave
