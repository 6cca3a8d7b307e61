"""Error feedback: what a lossy codec takes from one update is added to the next; pure.

Seide et al. 2014; Karimireddy et al. 2019 (arXiv 1901.09847), who show that it makes up for any codec whose error is
smaller than its input. With e the residual and D the update,

    u = e + D        s = decoded(encoded(u))        e' = u - s

so what was sent and what is kept add up to u, and over all rounds the sum of s trails the sum of D by one residual.
In float32 u is rounded once. The difference is exact where u/2 <= s <= 2u (Sterbenz 1974), which is where a block codec
rounds to the nearest of its levels but zero, and of course where s is zero; elsewhere it is off by half of its last bit.

The new residual is pending until the round is over: an update that was not taken in must not have reduced it. What has
arrived at others and was not taken in is as good as not sent.

The swarm does not use `Feedback`: its residual is of what the grid *and* the codec took, written to disk before the
round commits, and of a model's tensors with a grid each (`swarm.workspace`). The arithmetic is the same.
"""

import numpy as np

from barnraise.codec.codec import PIECE, Codec, Place
from barnraise.codec.grid import Bytes, Float32
from barnraise.errors import LocalError


class Residual:
    """What encodings have lost of one vector so far, which the next ones make good.

    It changes when what was encoded has been taken in, and not before. Within a collective (`collective.buffers`) that
    holds for each hop and for finished parts as well: what is lost of a sum with our input in it is added to our input.

    Args:
        size: elements of the vector.
    """

    def __init__(self, size: int) -> None:
        self.kept = np.zeros(size, np.float32)
        """float32[d], to be added to what is encoded next."""
        self.staged = np.zeros(size, np.float32)
        """float32[d], written meanwhile."""

    def commit(self) -> None:
        """Take up what was lost last: it is what counts."""
        self.kept, self.staged = self.staged, self.kept


class Feedback:
    """A float32 codec that makes good later what it loses.

    >>> feedback = Feedback(codec_of("int4", np.float32), 1000)
    >>> size = feedback.encode(update, out)  # what it decodes to is sent, the rest is pending
    >>> feedback.commit()
    """

    def __init__(self, codec: Codec, size: int) -> None:
        """Begin without a residual.

        Args:
            codec: of type float32.
            size: elements of the vector that is encoded each round, at once or in parts.

        Raises:
            LocalError: the codec is of another type.
        """
        if codec.dtype != np.float32:
            raise LocalError(f"error feedback here is for float32, and {codec.name} is of {codec.dtype}")
        self.codec = codec
        self._residual = Residual(size)
        self._is_pending = False

    @property
    def residual(self) -> Float32:
        """Return what is owed, float32[d]."""
        return self._residual.kept

    def encode(self, update: Float32, out: Bytes, place: Place = Place(), *, start: int = 0) -> int:
        """Encode ``update`` and what is owed of its elements; what is lost is pending.

        A part that is encoded again before `commit` or `restore` is encoded as if for the first time.

        Args:
            update: float32[n], finite; the elements from ``start`` on. Left as it is.
            out: uint8[codec.bound_bytes(n)], written.
            place: which part of the vector that is.
            start: 0 unless the vector is encoded in parts.

        Returns:
            The length of the encoding.

        Raises:
            LocalError: the vector is shorter.
        """
        count = len(update)
        kept, staged = self._residual.kept, self._residual.staged
        owed = kept[start : start + count]
        if len(owed) != count:
            raise LocalError(f"elements {start} to {start + count} of a vector of {len(kept)}")
        if not self._is_pending:
            np.copyto(staged, kept)  # what is not encoded stays owed
            self._is_pending = True
        wanted = staged[start : start + count]
        np.add(owed, update, out=wanted)
        size = self.codec.encode(wanted, out, place)
        reader, decoded = self.codec.reader(out[:size], count, place), np.empty(min(count, PIECE), np.float32)
        for first in range(0, count, PIECE):
            last = min(first + PIECE, count)
            reader.read(first, last, decoded)
            wanted[first:last] -= decoded[: last - first]
        return size

    def commit(self) -> None:
        """Take the new residual up: the update was taken in."""
        if self._is_pending:
            self._residual.commit()
        self._is_pending = False

    def restore(self) -> None:
        """Keep the residual as it was before: the update was not taken in."""
        self._is_pending = False
