"""The run's endless, shuffled stream of samples: every peer computes the same bytes for the same sample number.

Sample ``i`` belongs to epoch ``i // n`` of a text of ``n`` windows. An epoch cuts the text into windows from an offset
of its own, and visits them in an order given by a permutation that is computed, never stored: a Feistel network over
the smallest even number of bits that holds ``n``, walked until it lands below ``n`` (format-preserving encryption,
Black and Rogaway 2002). Integers only, so machines cannot disagree.
"""

from typing import Final

import blake3
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.uint64]

_ROUNDS: Final = 8
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


def num_windows(text_bytes: int, length: int) -> int:
    """Return how many samples an epoch over a text of ``text_bytes`` has; ``length`` is the context in bytes."""
    return max(1, (text_bytes - length) // length)


def batch(text: Bytes, seed: int, sample_ids: NDArray[np.int64], length: int) -> tuple[Bytes, Bytes]:
    """Return inputs and targets of the given samples.

    Args:
        text: uint8[m], at least ``length + 1`` bytes.
        seed: the run's.
        sample_ids: int64[n], each >= 0.
        length: bytes of context.

    Returns:
        uint8[n, length] twice; the targets are the inputs moved on by one byte.
    """
    windows = num_windows(len(text), length)
    num_offsets = min(length, len(text) - windows * length)
    epochs, positions = np.divmod(sample_ids, windows)
    starts = np.empty_like(sample_ids)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        keys = _keys(seed, int(epoch))
        offset = int(keys[-1]) % num_offsets
        starts[chosen] = permute(positions[chosen].astype(np.uint64), windows, keys).astype(np.int64) * length + offset
    return cut(text, starts, length)


def validation_batch(text: Bytes, windows: NDArray[np.int64], length: int) -> tuple[Bytes, Bytes]:
    """Return inputs and targets, uint8[n, length], of windows of the text in reading order; numbers wrap around."""
    return cut(text, windows % num_validation_windows(len(text), length) * length, length)


def num_validation_windows(text_bytes: int, length: int) -> int:
    """Return how many whole windows, each with its target byte, a text read in order has."""
    return (text_bytes - 1) // length


def cut(text: Bytes, starts: NDArray[np.int64], length: int) -> tuple[Bytes, Bytes]:
    """Return inputs and targets, uint8[n, length], of the windows that begin at ``starts``."""
    rows = text[starts[:, None] + np.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


def shuffled(seed: int, sample_ids: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return which item of ``size`` each sample is, int64[n]: an epoch visits every item once, in an order of its own."""
    epochs, positions = np.divmod(sample_ids, size)
    items = np.empty_like(sample_ids)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        items[chosen] = permute(positions[chosen].astype(np.uint64), size, _keys(seed, int(epoch))).astype(np.int64)
    return items


def permute(positions: Numbers, size: int, keys: Numbers) -> Numbers:
    """Map positions below ``size`` one-to-one onto numbers below ``size``; the keys choose the permutation."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _feistel(positions, half_bits, keys)
    while (outside := result >= size).any():
        result[outside] = _feistel(result[outside], half_bits, keys)
    return result


def _feistel(numbers: Numbers, half_bits: int, keys: Numbers) -> Numbers:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys[:_ROUNDS]:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(numbers: Numbers) -> Numbers:
    """Scramble 64-bit integers: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX_1
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX_2
    return numbers ^ (numbers >> np.uint64(31))


def _keys(seed: int, epoch: int) -> Numbers:
    """Return one key per Feistel round and one number for the epoch's offset."""
    hasher = blake3.blake3(derive_key_context="barnraise 1 sample order")
    hasher.update(f"{seed} {epoch}".encode("ascii"))
    return np.frombuffer(hasher.digest(length=8 * (_ROUNDS + 1)), dtype="<u8").astype(np.uint64)
