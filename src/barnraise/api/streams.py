"""The streams between this rank and the others, and what is said on them besides data; knows no collectives' arithmetic.

A stream goes one way, is opened when it is first needed, and kept. Data frames carry no mark of what they are, so that
they can be opened straight into place. What they belong to was said before, in a frame of our own: `Begin` before the
first one of each attempt at a collective, `Halt` behind the last one of an attempt that was stopped. Frames of our own
begin with a secret that the opener drew for this stream, so no data looks like one.
"""

import secrets
import threading
from collections.abc import Callable, Iterable
from typing import Annotated, Final, Literal

import msgspec

from barnraise.errors import PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.seam import Stream
from barnraise.swarm.records import Count, Decoder

SECRET_BYTES: Final = 16
MAX_CONTROL_BYTES: Final = 512
FOREVER_S: Final = 3600.0 * 24
"""Patience of streams: `mesh` watches over what moves, and interrupts."""
CLOSE_PATIENCE_S: Final = 1.0

Operation = Literal["mean", "sum", "reduce_scatter mean", "reduce_scatter sum", "all_gather", "broadcast", "barrier"]


class Call(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the user asked for: all ranks must ask for the same."""

    operation: Operation
    dtype: Literal["float32", "float64"]
    size: Count
    codec: Annotated[str, msgspec.Meta(max_length=64)] = "fp32"
    schedule: Annotated[str, msgspec.Meta(max_length=64)] = "auto"
    root: Count = 0
    is_weighted: bool = False

    def __str__(self) -> str:
        """Say it as the user did."""
        if self.operation == "barrier":
            return "barrier()"
        name, _, op = self.operation.rpartition(" ")
        shown = [f"op={op!r}"] if op in ("mean", "sum") else []
        shown += [f"codec={self.codec!r}"] if self.codec != "fp32" else []
        shown += [f"schedule={self.schedule!r}"] if self.schedule != "auto" else []
        shown += [f"root={self.root}"] if self.operation == "broadcast" else []
        shown += ["weight=..."] if self.is_weighted else []
        what = (
            f"{name or ('all_reduce' if shown and op in ('mean', 'sum') else op)} of {self.size} {self.dtype} elements"
        )
        return ", ".join([what, *shown])


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """What follows on this stream belongs to this attempt at this collective."""

    sequence: Count
    epoch: Count
    """Which attempt it is: those of a later epoch come later, whatever their sequence."""
    digest: Annotated[bytes, msgspec.Meta(max_length=32)]
    """Of who takes part and how."""
    call: Call
    weight: float = 1.0
    """Of the sender's input."""

    @property
    def number(self) -> tuple[int, int]:
        """Return its place among all attempts of a group."""
        return self.epoch, self.sequence


class Halt(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """No more of this attempt follows: somebody stopped it."""

    sequence: Count
    epoch: Count


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """All that I had to do in this attempt is done."""

    sequence: Count
    epoch: Count


Control = Begin | Halt | Done

_encode = msgspec.msgpack.Encoder().encode
_controls: Decoder[Control] = Decoder(msgspec.msgpack.Decoder(Control))


class Outgoing:
    """Our end of a stream on which we send."""

    def __init__(self, stream: Stream, secret: bytes) -> None:
        stream.patience(FOREVER_S)
        self.stream = stream
        self._secret = secret

    def say(self, control: Control) -> None:
        """Send a frame of our own. Raises like `Stream.send`."""
        self.stream.send(self._secret + _encode(control))


class Incoming:
    """Our end of a stream on which a peer sends."""

    def __init__(self, stream: Stream, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise Unavailable(f"a stream is opened with {SECRET_BYTES} bytes, not {len(secret)}")
        stream.patience(FOREVER_S)
        self.stream = stream
        self._secret = secret
        self.begun: Begin | None = None
        """The last one that came."""

    def control(self, frame: memoryview) -> Control | None:
        """Return what a frame of the peer's own says; None: it is data.

        Raises:
            PeerError: it says nothing.
        """
        if len(frame) > MAX_CONTROL_BYTES or frame[:SECRET_BYTES] != self._secret:
            return None
        try:
            return _controls.decode(bytes(frame[SECRET_BYTES:]))
        except msgspec.DecodeError as error:
            raise PeerError(self.stream.peer, f"said on a stream what makes no sense: {error}") from error


Open = Callable[[dict[PeerId, bytes], Callable[[], bool]], dict[PeerId, Stream | Unavailable]]


class Streams:
    """All streams of this rank. Methods may be called in any thread, unless they say otherwise.

    Args:
        open_streams: opens one to each peer, with this header, and returns it, or why there is none; blocks until the
            function says that it is stopped.
    """

    def __init__(self, open_streams: Open) -> None:
        self._open_streams = open_streams
        self._changed = threading.Condition()
        self._outgoing: dict[PeerId, Outgoing] = {}
        self._incoming: dict[PeerId, Incoming] = {}
        self._retired: list[Stream] = []
        self._is_closed = False

    def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
        """Take over a stream that a peer opened; it replaces its last one."""
        incoming = Incoming(stream, header)
        with self._changed:
            if self._is_closed:
                raise Unavailable("this context is closed")
            self._retire(self._incoming.pop(peer, None))
            self._incoming[peer] = incoming
            self._changed.notify_all()

    def outgoing(
        self, peers: Iterable[PeerId], is_stopped: Callable[[], bool] = lambda: False
    ) -> dict[PeerId, Outgoing | Unavailable]:
        """Return streams to these peers, or why there is none; opens what is not there. For the sending thread."""
        with self._changed:
            found: dict[PeerId, Outgoing | Unavailable] = {}
            for peer in peers:
                if peer in self._outgoing and self._outgoing[peer].stream.is_alive():
                    found[peer] = self._outgoing[peer]
                else:
                    self._retire(self._outgoing.pop(peer, None))
        missing = {peer: secrets.token_bytes(SECRET_BYTES) for peer in peers if peer not in found}
        if missing:
            for peer, stream in self._open_streams(missing, is_stopped).items():
                found[peer] = stream if isinstance(stream, Unavailable) else Outgoing(stream, missing[peer])
            with self._changed:
                self._outgoing |= {peer: end for peer in missing if isinstance(end := found[peer], Outgoing)}
        return found

    def incoming(self, peer: PeerId, is_stopped: Callable[[], bool]) -> Incoming | None:
        """Wait for a peer's stream; None: stopped. For the receiving thread."""
        with self._changed:
            while peer not in self._incoming and not is_stopped() and not self._is_closed:
                self._changed.wait()
            return None if is_stopped() else self._incoming.get(peer)

    def discard(self, peer: PeerId, incoming: Incoming) -> None:
        """Let go of a peer's stream that has ended, if the peer has not replaced it yet."""
        with self._changed:
            if self._incoming.get(peer) is incoming:
                self._retire(self._incoming.pop(peer))

    def has_begun(self, peer: PeerId, sequence: int) -> bool:
        """Tell whether a peer has begun this collective, as far as its stream was read."""
        incoming = self._incoming.get(peer)
        return incoming is not None and incoming.begun is not None and incoming.begun.sequence >= sequence

    def wake(self) -> None:
        """Let who waits for a stream look at whether it is stopped."""
        with self._changed:
            self._changed.notify_all()

    def drop(self, peer: PeerId, *, outgoing: bool = True, incoming: bool = True) -> None:
        """Interrupt a peer's streams; they are opened again when they are needed."""
        with self._changed:
            if outgoing:
                self._retire(self._outgoing.pop(peer, None))
            if incoming:
                self._retire(self._incoming.pop(peer, None))

    def close(self, join: Callable[[], None], *, is_busy: bool) -> None:
        """Free all streams, after ``join`` has waited until no thread uses one.

        Unless a thread is busy on them, the peers are told that this is their proper end.
        """
        with self._changed:
            self._is_closed = True
            outgoing, self._outgoing = list(self._outgoing.values()), {}
            for incoming in self._incoming.values():
                self._retire(incoming)
            self._incoming.clear()
            for end in outgoing:
                if is_busy:
                    self._retire(end)
                else:
                    end.stream.patience(CLOSE_PATIENCE_S)
                    self._retired.append(end.stream)
            self._changed.notify_all()
        join()
        self.bury()

    def _retire(self, end: Outgoing | Incoming | None) -> None:
        if end is not None:
            end.stream.interrupt()
            self._retired.append(end.stream)

    def bury(self) -> None:
        """Free streams that were interrupted; only while no thread is in a call on one."""
        with self._changed:
            retired, self._retired = self._retired, []
        for stream in retired:
            stream.close()
