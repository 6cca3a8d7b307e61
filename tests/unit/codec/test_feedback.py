"""Error feedback: nothing that a codec takes is lost for good, and nothing is owed twice."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Place
from barnraise.codec.feedback import Feedback
from barnraise.codec.grid import Float32
from barnraise.errors import LocalError

from .through import decoded

SIZE = 1500
CODECS = ["fp16", "bf16", "int8", "int4", "int2", "int8s", "int4s", "topk:0.1+int8", "randomk:0.2", "powersgd:2"]
every_codec = pytest.mark.parametrize("name", CODECS)


def update_of(seed: int, scale: float = 0.01) -> Float32:
    return (np.random.default_rng(seed).standard_t(3, SIZE) * scale).astype(np.float32)


def sent(feedback: Feedback, update: Float32, place: Place | None = None) -> Float32:
    """Return what arrives of an update."""
    out = np.empty(feedback.codec.bound_bytes(len(update)), np.uint8)
    size = feedback.encode(update, out, place or Place())
    found = decoded(feedback.codec, out[:size], len(update), place)
    assert found.dtype == np.float32
    return found.astype(np.float32)


@every_codec
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1 << 32))
def test_what_is_sent_and_what_is_kept_make_up_what_was_owed(name: str, seed: int) -> None:
    feedback = Feedback(codec_of(name, np.float32), SIZE)
    sent(feedback, update_of(seed))
    feedback.commit()
    owed, update = feedback.residual.copy(), update_of(seed + 1)
    arrived = sent(feedback, update)
    feedback.commit()
    wanted = owed + update
    for whole, there, kept in zip(wanted.tolist(), arrived.tolist(), feedback.residual.tolist(), strict=True):
        off = Fraction(there) + Fraction(kept) - Fraction(whole)
        if there == 0 or 0.5 <= whole / there <= 2:
            assert off == 0  # Sterbenz: the difference of floats so near each other is one
        else:
            assert abs(off) <= Fraction(abs(kept)) / 2**24


@every_codec
def test_over_many_rounds_one_residual_is_all_that_is_owed(name: str) -> None:
    feedback, total, arrived = Feedback(codec_of(name, np.float32), SIZE), np.zeros(SIZE), np.zeros(SIZE)
    norms = []
    for round_ in range(60):
        update = update_of(round_)
        total += update
        arrived += sent(feedback, update, Place(seed=round_))
        feedback.commit()
        norms.append(float(np.linalg.norm(feedback.residual)))
    assert np.abs(arrived + feedback.residual - total).max() < 1e-5
    # It does not grow without end: what is owed after 60 rounds is about what is owed after 30.
    assert norms[-1] < 1.5 * max(norms[:30])


@every_codec
def test_a_round_that_was_not_taken_in_leaves_the_residual_as_it_was(name: str) -> None:
    feedback = Feedback(codec_of(name, np.float32), SIZE)
    sent(feedback, update_of(1))
    feedback.commit()
    before = feedback.residual.copy()
    sent(feedback, update_of(2))
    assert np.array_equal(feedback.residual, before)
    feedback.restore()
    assert np.array_equal(feedback.residual, before)
    feedback.commit()  # there is nothing to take up any more
    assert np.array_equal(feedback.residual, before)


def test_a_part_that_is_encoded_again_is_encoded_as_if_for_the_first_time() -> None:
    feedback = Feedback(codec_of("int4", np.float32), SIZE)
    first, again = sent(feedback, update_of(1)), sent(feedback, update_of(1))
    assert np.array_equal(first, again)
    feedback.commit()
    assert np.array_equal(feedback.residual, update_of(1) - first)


def test_parts_make_up_the_whole_and_those_left_out_stay_owed() -> None:
    update = update_of(3)
    whole, parts = (Feedback(codec_of("int8", np.float32), SIZE) for _ in range(2))
    for feedback in (whole, parts):
        sent(feedback, update_of(2))
        feedback.commit()
    before = parts.residual.copy()
    sent(whole, update)
    out = np.empty(2000, np.uint8)
    parts.encode(update[:1024], out)
    whole.commit()
    parts.commit()
    assert np.array_equal(parts.residual[:1024], whole.residual[:1024])
    assert np.array_equal(parts.residual[1024:], before[1024:])
    parts.encode(update[1024:], out, Place(index=1), start=1024)
    parts.commit()
    assert np.array_equal(parts.residual[1024:], whole.residual[1024:])


def test_misuse_is_ours() -> None:
    with pytest.raises(LocalError, match="is of int16"):
        Feedback(codec_of("int8", np.int16), SIZE)
    feedback = Feedback(codec_of("int8", np.float32), SIZE)
    with pytest.raises(LocalError, match="elements 1 to 1501 of a vector of 1500"):
        feedback.encode(update_of(1), np.empty(4000, np.uint8), start=1)
