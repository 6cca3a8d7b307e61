"""What counting alone reaches on the validation text, so that a reader sees what the model has learned beyond it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_TRAIN_BYTES: Final = 16 * 1024**2
"""Only the first so many bytes are counted: sorting them takes seconds and 0.5 GB."""
MAX_ORDER: Final = 8
"""An n-gram is packed in one 64-bit integer."""

Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Baselines:
    """Bits per byte on the validation text."""

    unigram: float
    five_gram: float


def baselines(train: Bytes, validation: Bytes) -> Baselines:
    """Return what a unigram and a 5-gram model of ``train`` score on ``validation``, both uint8[n]."""
    bits = bits_per_byte(train, validation, order=5)
    return Baselines(unigram=bits[0], five_gram=bits[4])


def bits_per_byte(train: Bytes, validation: Bytes, order: int) -> list[float]:
    """Score interpolated n-gram models with Witten-Bell weights (Witten and Bell 1991).

        p_k(w | c) = (count(c w) + distinct(c) p_{k-1}(w | c')) / (count(c) + distinct(c)),   p_0 = 1 / 256

    where c is the last k - 1 bytes, c' all but the oldest of them, and distinct(c) how many bytes were seen after c.

    Args:
        train: uint8[n], counted up to ``MAX_TRAIN_BYTES``.
        validation: uint8[m]; its first ``order - 1`` bytes are context only.
        order: the longest n-gram, at most ``MAX_ORDER``.

    Returns:
        Bits per byte of orders 1, 2, ... ``order``.
    """
    train = train[:MAX_TRAIN_BYTES]
    probability = np.full(max(0, len(validation) - order + 1), 1 / 256)
    bits = []
    for k in range(1, order + 1):
        asked = _codes(validation, k)[order - k :]
        grams, gram_counts = np.unique(_codes(train, k), return_counts=True)
        contexts, first, distinct = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
        context_counts = np.add.reduceat(gram_counts, first)
        seen = _look_up(grams, gram_counts, asked)
        context_seen = _look_up(contexts, context_counts, asked >> np.uint64(8))
        kinds = _look_up(contexts, distinct, asked >> np.uint64(8))
        with_context = context_seen > 0
        mixed = (seen + kinds * probability) / np.maximum(context_seen + kinds, 1)
        probability = np.where(with_context, mixed, probability)
        bits.append(float(-np.log2(probability).mean()))
    return bits


def _codes(text: Bytes, order: int) -> Codes:
    """Return each run of ``order`` bytes as one integer, the last byte lowest."""
    codes = np.zeros(max(0, len(text) - order + 1), dtype=np.uint64)
    for position in range(order):
        codes = (codes << np.uint64(8)) | text[position : position + len(codes)]
    return codes


def _look_up(keys: Codes, values: NDArray[np.intp], asked: Codes) -> NDArray[np.intp]:
    """Return the value beside each asked key, 0 where it is missing; ``keys`` are sorted."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], 0)
