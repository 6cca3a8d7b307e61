"""A sum of our own values and of others' encodings, encoded: in one pass where the codec has one, else step by step; pure."""

from collections.abc import Sequence

import numpy as np

from barnraise.codec.blockwise import Blockwise
from barnraise.codec.codec import PIECE, Codec, Place, Reader
from barnraise.codec.grid import Bytes, Float32
from barnraise.codec.plain import Terms, finish, note_loss, start


def encode_sum(codec: Codec, terms: Terms, others: Sequence[Reader], out: Bytes, place: Place, room: Bytes) -> int:
    """Write the encoding of ((own + owed) weight + others) / divisor, added up in this order, and return its length.

    Args:
        codec: float32.
        terms: what we bring in, and what becomes of the sum.
        others: readers of as many elements.
        out: uint8[codec.bound_bytes(n)], written.
        place: which part of the vector that is.
        room: uint8[4 n], used meanwhile.

    Raises:
        LocalError: what is not to be cut off is too large for the codec.
    """
    if isinstance(codec, Blockwise):
        size = codec.encode_sum(terms, others, out)
        if size is not None:
            return size
    values = terms.own
    if others or not terms.is_own:
        values = room[: 4 * len(values)].view(np.float32)
        add_up(terms, others, values)
        finish(terms, values)
    size = codec.encode(values, out, place)
    if terms.lost is not None:
        reader = codec.reader(out[:size], len(values), place)
        for first in range(0, len(values), PIECE):
            last = min(first + PIECE, len(values))
            reader.read(first, last, terms.lost[first:last])
        note_loss(terms, values)
    return size


def add_up(terms: Terms, others: Sequence[Reader], out: Float32) -> None:
    """Write (own + owed) weight + others, which may overflow."""
    if terms.owed is None and terms.weight == 1.0 and others:
        others[0].add(0, len(out), terms.own, out)
        others = others[1:]
    else:
        start(terms, out)
    for other in others:
        other.add(0, len(out), out, out)
