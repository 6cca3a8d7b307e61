"""The shuffled stream of samples: a bijection, the same everywhere, every byte of the text in each epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.data import samples
from barnraise.data.samples import batch, num_validation_windows, num_windows, permute, validation_batch

GOLDEN_ORDER = [15, 10, 11, 14, 8, 6, 12, 3, 4, 13, 0, 2, 5, 7, 1, 9]
GOLDEN_SAMPLES = [137, 249, 113, 244]
TEXT = np.arange(1000).astype(np.uint8)


def order(size: int, seed: int, epoch: int = 0) -> list[int]:
    found: list[int] = permute(np.arange(size, dtype=np.uint64), size, samples._keys(seed, epoch)).tolist()
    return found


def test_permutation_is_a_bijection_for_every_size() -> None:
    keys = samples._keys(7, 0)
    for size in range(1, 2001):
        found = permute(np.arange(size, dtype=np.uint64), size, keys)
        assert np.array_equal(np.sort(found), np.arange(size, dtype=np.uint64)), size


@given(size=st.integers(1, 5000), seed=st.integers(-(2**63), 2**63), epoch=st.integers(0, 2**40))
def test_permutation_is_a_bijection_for_every_seed(size: int, seed: int, epoch: int) -> None:
    assert sorted(order(size, seed, epoch)) == list(range(size))


def test_permutation_is_golden() -> None:
    assert order(16, seed=1) == GOLDEN_ORDER
    assert order(16, seed=1, epoch=1) != GOLDEN_ORDER
    assert order(16, seed=2) != GOLDEN_ORDER


def test_permutation_leaves_few_numbers_in_place() -> None:
    size = 4096
    fixed = sum(index == number for index, number in enumerate(order(size, seed=1)))
    neighbours = sum(abs(a - b) == 1 for a, b in zip(order(size, 1), order(size, 1)[1:], strict=False))
    # A random permutation has 1 fixed point and 2 neighbouring pairs on average.
    assert fixed < 10
    assert neighbours < 15


def test_huge_sizes_stay_in_range() -> None:
    size = 2**50 + 1
    found = permute(np.arange(1000, dtype=np.uint64), size, samples._keys(1, 0))
    assert len(set(found.tolist())) == 1000
    assert max(found.tolist()) < size
    assert max(found.tolist()) > size // 2


def test_targets_are_the_inputs_moved_on_by_one() -> None:
    x, y = batch(TEXT, 1, np.arange(50), 16)
    assert x.shape == y.shape == (50, 16)
    assert x.dtype == np.uint8
    assert np.array_equal(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_visits_each_window_once(epoch: int) -> None:
    text, length = np.arange(251, dtype=np.uint8), 10
    count = num_windows(len(text), length)
    x, _ = batch(text, 1, np.arange(epoch * count, (epoch + 1) * count), length)
    covered = np.sort(x.ravel())
    assert np.array_equal(covered, np.arange(covered[0], covered[0] + count * length))
    assert len(covered) >= len(text) - 2 * length


def test_epochs_cut_the_text_at_different_places() -> None:
    text = np.arange(256).astype(np.uint8)
    count = num_windows(len(text), 16)
    first_bytes = {int(batch(text, 1, np.arange(e * count, (e + 1) * count), 16)[0].min()) for e in range(8)}
    assert len(first_bytes) > 3


def test_a_sample_does_not_depend_on_its_batch() -> None:
    ids = np.array([5, 700, 3, 5, 64])
    together, _ = batch(TEXT, 3, ids, 16)
    for row, number in zip(together, ids, strict=True):
        assert np.array_equal(row, batch(TEXT, 3, np.array([number]), 16)[0][0])


def test_samples_are_golden() -> None:
    x, _ = batch(TEXT, 1, np.array([0, 1, 61, 10**12]), 16)
    assert x[:, 0].tolist() == GOLDEN_SAMPLES


@given(length=st.integers(1, 40), extra=st.integers(1, 200), first=st.integers(0, 2**40))
def test_any_text_of_one_window_or_more_will_do(length: int, extra: int, first: int) -> None:
    text = np.zeros(length + extra, dtype=np.uint8)
    x, y = batch(text, 1, np.arange(first, first + 5), length)
    assert x.shape == y.shape == (5, length)


def test_validation_windows_are_in_reading_order_and_wrap() -> None:
    text = np.arange(35, dtype=np.uint8)
    assert num_validation_windows(35, 10) == 3
    x, y = validation_batch(text, np.array([0, 1, 2, 3]), 10)
    assert x[:, 0].tolist() == [0, 10, 20, 0]
    assert y[:, -1].tolist() == [10, 20, 30, 10]
