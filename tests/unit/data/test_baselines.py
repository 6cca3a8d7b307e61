"""The n-gram baselines against a counter that a reader can follow."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from barnraise.config import DataConfig
from barnraise.data.baselines import baselines, bits_per_byte
from barnraise.data.corpus import load


def naive_bits(train: bytes, validation: bytes, order: int) -> float:
    following: dict[bytes, Counter[int]] = defaultdict(Counter)
    for k in range(1, order + 1):
        for end in range(k, len(train) + 1):
            following[train[end - k : end - 1]][train[end - 1]] += 1

    def probability(context: bytes, byte: int, k: int) -> float:
        if k == 0:
            return 1 / 256
        suffix = context[len(context) - (k - 1) :]
        # The last context of the text is followed by nothing, as in any count.
        lower = probability(context, byte, k - 1)
        counts = following.get(suffix)
        if not counts:
            return lower
        return (counts[byte] + len(counts) * lower) / (counts.total() + len(counts))

    bits = [
        -math.log2(probability(validation[end - order : end - 1], validation[end - 1], order))
        for end in range(order, len(validation) + 1)
    ]
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_matches_the_naive_counter(order: int) -> None:
    text = load(DataConfig()).train[:6000]
    train, validation = text[:5000], text[5000:]
    found = bits_per_byte(train, validation, order)
    assert len(found) == order
    assert found[-1] == pytest.approx(naive_bits(train.tobytes(), validation.tobytes(), order), rel=1e-9)


def test_bytes_never_seen_cost_a_finite_amount() -> None:
    train = np.frombuffer(b"abababab", dtype=np.uint8)
    validation = np.frombuffer(b"zzzzzzzz", dtype=np.uint8)
    assert all(8 < bits < 20 for bits in bits_per_byte(train, validation, 5))


def test_bundled_figures_are_golden() -> None:
    corpus = load(DataConfig())
    found = baselines(corpus.train, corpus.validation)
    assert found.unigram == pytest.approx(4.77566, abs=1e-5)
    assert found.five_gram == pytest.approx(2.31344, abs=1e-5)
