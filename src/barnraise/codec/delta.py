"""Sends parameters as what has changed since the state that the receiver acknowledged; pure.

Theory of operation. Both sides keep one state: the sender what the receiver has put together (not what it wanted to
send, so no error adds up), the receiver that too, and a number and BLAKE3 of it. A message is one of two:

    full    the whole state, losslessly; while nothing was acknowledged, and after a gap
    delta   numbers the state it builds on, with its hash; of the entries that differ from it by more than a relative
            threshold, |new - old| > threshold |old|, the places and the values

Entries within the threshold stay as they are and are compared again next time: what is held back is bounded by the
threshold, it does not add up. With a lossless codec the changed entries' new values travel; with another one their
differences, and what that loses is part of the next difference.

    sender     encode(values) -> message, acknowledge(applied), resynchronise()
    receiver   apply(message) -> Applied(version, digest) | Gap(...)

The receiver builds on nothing but the very state that a delta names: if it holds another one it answers with a gap and
keeps what it has, and the sender's next message is full. A message is checked against the hash of what it should come to
before it replaces anything. For parameters, buffers and checkpoints; updates have error feedback instead.
"""

from dataclasses import dataclass
from typing import Final

import blake3
import msgspec
import numpy as np

from barnraise.codec import indices
from barnraise.codec.chain import MAX_SPEC_LENGTH, codec_of
from barnraise.codec.codec import Codec, Malformed, Place
from barnraise.codec.grid import Float32
from barnraise.codec.scattered import decoded
from barnraise.errors import ConfigError, LocalError
from barnraise.ids import DIGEST_BYTES

FORMAT_VERSION: Final = 1
THRESHOLD: Final = 1e-6
"""Relative; float32 itself has 6e-8."""
WHOLE_STATE: Final = "fp32+zstd:3"
CONTEXT: Final = "barnraise 1 delta state"
HEADER_BYTES: Final = 256
"""The most that a message has beyond its payload."""
NO_BASE: Final = 0
"""The number of no state; the first one is 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """What the receiver holds after a message; `DeltaSender.acknowledge` takes it."""

    version: int
    digest: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """The message builds on a state that the receiver does not hold; `DeltaSender.resynchronise`."""

    held: int
    """The number of the state that it does hold; 0: none."""
    wanted: int


class _Message(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    format: int
    codec: str
    count: int
    version: int
    digest: bytes
    base: int
    base_digest: bytes
    num_changed: int
    payload: bytes


class DeltaSender:
    """Encodes states for one receiver. One message at a time is on its way: a later one replaces it."""

    def __init__(self, codec: str = WHOLE_STATE, threshold: float = THRESHOLD) -> None:
        """Send changes beyond ``threshold`` (relative, 0 or more) by a float32 codec.

        Raises:
            ConfigError: there is no such codec, or the threshold is no such number.
        """
        if not 0 <= threshold < 1:
            raise ConfigError(f"a threshold of {threshold} is outside 0 .. 1. Choose one such as 1e-6.")
        self._codec, self._threshold = codec_of(codec, np.float32), threshold
        self._last = NO_BASE
        self._acknowledged: _State | None = None
        self._sent: _State | None = None

    def encode(self, values: Float32) -> bytes:
        """Return a message that brings the receiver to ``values``, float32[n], all but the threshold and the codec's loss.

        Raises:
            LocalError: a value is not finite.
        """
        if not np.isfinite(values).all():
            raise LocalError("the state is not finite; it is not sent")
        base = self._acknowledged
        if base is not None and len(base.values) != len(values):
            base = None
        self._last += 1
        values = np.ascontiguousarray(values, np.float32)
        if base is None:
            codec, places, changed = codec_of(WHOLE_STATE, np.float32), np.arange(len(values)), values
        else:
            codec, places, changed = self._codec, *self._changed(base.values, values)
        payload = _payload(codec, places, changed, len(values))
        state = _State(self._last, _rebuilt(base, codec, payload, len(values), len(places)))
        self._sent = state
        message = _Message(
            format=FORMAT_VERSION,
            codec=codec.name,
            count=len(values),
            version=state.version,
            digest=state.digest,
            base=NO_BASE if base is None else base.version,
            base_digest=b"" if base is None else base.digest,
            num_changed=len(places),
            payload=payload,
        )
        return msgspec.msgpack.encode(message)

    def acknowledge(self, applied: Applied) -> None:
        """Build on what the receiver says it holds; news of a message that was replaced since are passed over."""
        sent = self._sent
        if sent is not None and (sent.version, sent.digest) == (applied.version, applied.digest):
            self._acknowledged, self._sent = sent, None

    def resynchronise(self) -> None:
        """Send the whole state next: the receiver found a gap, or is another one."""
        self._acknowledged = self._sent = None

    def _changed(self, old: Float32, new: Float32) -> tuple[indices.Indices, Float32]:
        """Return the places of what changed, and what travels of it: new values, or differences."""
        with np.errstate(over="ignore", under="ignore"):
            difference = new - old
            mask = np.abs(difference) > np.float32(self._threshold) * np.abs(old)
        places = np.flatnonzero(mask)
        if self._codec.is_lossless:
            return places, new[places]
        largest = np.finfo(np.float32).max / 4
        return places, np.clip(difference[places], -largest, largest)


class DeltaReceiver:
    """Puts states together from one sender's messages, which are hostile until they were checked."""

    def __init__(self, max_elements: int) -> None:
        """Take states of at most so many entries."""
        self._max_elements = max_elements
        self._state: _State | None = None

    @property
    def values(self) -> Float32:
        """The state, float32[n]; empty before the first message. Not to be written to."""
        return self._state.values if self._state is not None else np.empty(0, np.float32)

    def apply(self, data: bytes) -> Applied | Gap:
        """Take a message; the state is replaced by a whole one or stays.

        Raises:
            Malformed: no sender made it.
        """
        message = self._checked(data)
        base: _State | None = None
        if message.base != NO_BASE:
            base = self._state
            held = (base.version, base.digest, len(base.values)) if base is not None else (NO_BASE, b"", 0)
            if held != (message.base, message.base_digest, message.count):
                return Gap(held=held[0], wanted=message.base)
        try:
            codec = codec_of(message.codec, np.float32)
        except ConfigError as error:
            raise Malformed(str(error)) from error
        values = _rebuilt(base, codec, message.payload, message.count, message.num_changed)
        state = _State(message.version, values)
        if state.digest != message.digest:
            raise Malformed("what it comes to has another hash than it says")
        self._state = state
        return Applied(version=state.version, digest=state.digest)

    def _checked(self, data: bytes) -> _Message:
        if len(data) > HEADER_BYTES + 9 * self._max_elements:
            raise Malformed(f"{len(data)} bytes are more than {self._max_elements} elements can take")
        try:
            message = msgspec.msgpack.decode(data, type=_Message)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"it is no message: {error}") from error
        if message.format != FORMAT_VERSION:
            raise Malformed(f"it is of format {message.format}, and {FORMAT_VERSION} is known")
        is_full = message.base == NO_BASE
        if (
            not 0 <= message.num_changed <= message.count <= self._max_elements
            or message.version < 1
            or message.base < 0
        ):
            raise Malformed(
                f"it changes {message.num_changed} of {message.count} elements; at most {self._max_elements}"
            )
        if is_full and (message.num_changed != message.count or message.base_digest):
            raise Malformed("it builds on nothing and is not the whole state")
        if len(message.codec) > MAX_SPEC_LENGTH or len(message.digest) != DIGEST_BYTES:
            raise Malformed("a name or a hash has the wrong length")
        return message


class _State:
    def __init__(self, version: int, values: Float32) -> None:
        self.version, self.values = version, values
        self.digest = blake3.blake3(
            values.astype("<f4", copy=False).view(np.uint8).data, derive_key_context=CONTEXT
        ).digest()


def _payload(codec: Codec, places: indices.Indices, values: Float32, count: int) -> bytes:
    """Return places and values."""
    out = np.empty(indices.size_bytes(count, len(places)) + codec.bound_bytes(len(places)), np.uint8)
    used = indices.write(places, count, out)
    return out[: used + codec.encode(values, out[used:])].tobytes()


def _rebuilt(base: _State | None, codec: Codec, payload: bytes, count: int, num_changed: int) -> Float32:
    """Return the state that a payload leads to: the one function by which both sides come to it. Raises `Malformed`."""
    data = np.frombuffer(payload, np.uint8)
    size = indices.size_bytes(count, num_changed)
    places = indices.read(data[:size], count, num_changed)
    found = decoded(codec, data[size:], num_changed, Place())
    if base is None:
        return np.ascontiguousarray(found, np.float32)
    values = base.values.copy()
    if codec.is_lossless:
        values[places] = found
        return values
    with np.errstate(over="ignore"):
        values[places] += found
    if not np.isfinite(values).all():
        raise Malformed("what it comes to is not finite")
    return values
