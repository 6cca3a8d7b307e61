"""Deltas: sender and receiver hold the same state whatever is lost on the way, and strangers' messages change nothing."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.codec import Malformed
from barnraise.codec.delta import Applied, DeltaReceiver, DeltaSender, Gap
from barnraise.codec.grid import Float32
from barnraise.errors import ConfigError, LocalError

SIZE = 500
CODECS = ["fp32+zstd", "fp32", "int8", "bf16+zstd", "topk:0.2+int4"]


def states(count: int, seed: int = 1) -> list[Float32]:
    """Return parameters that a few entries of change at a time."""
    generator = np.random.default_rng(seed)
    found = [generator.standard_normal(SIZE).astype(np.float32)]
    for _ in range(count - 1):
        step = generator.standard_normal(SIZE) * 0.01 * (generator.random(SIZE) < 0.1)
        found.append((found[-1] + step).astype(np.float32))
    return found


def exchanged(sender: DeltaSender, receiver: DeltaReceiver, values: Float32) -> int:
    """Bring the receiver up to date; return the size of what was sent."""
    message = sender.encode(values)
    answer = receiver.apply(message)
    assert isinstance(answer, Applied)
    sender.acknowledge(answer)
    return len(message)


@pytest.mark.parametrize("codec", ["fp32", "fp32+zstd:9", "fp32+lz4"])
def test_a_lossless_delta_without_threshold_is_exact_and_small(codec: str) -> None:
    sender, receiver = DeltaSender(codec, threshold=0), DeltaReceiver(SIZE)
    sizes = []
    for values in states(5):
        sizes.append(exchanged(sender, receiver, values))
        assert np.array_equal(receiver.values, values)
    assert max(sizes[1:]) < sizes[0] / 4


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None, max_examples=30)
@given(fates=st.lists(st.sampled_from(["arrives", "lost", "unanswered", "restarted"]), min_size=1, max_size=12))
def test_whatever_is_lost_the_receiver_holds_what_the_sender_thinks(codec: str, fates: list[str]) -> None:
    sender, receiver = DeltaSender(codec, threshold=1e-6), DeltaReceiver(SIZE)
    for fate, values in zip(fates, states(len(fates)), strict=True):
        message = sender.encode(values)
        if fate == "lost":
            continue
        if fate == "restarted":
            receiver = DeltaReceiver(SIZE)
        answer = receiver.apply(message)
        if isinstance(answer, Gap):
            assert answer.held != answer.wanted
            sender.resynchronise()
            assert isinstance(receiver.apply(sender.encode(values)), Applied)
            assert np.array_equal(receiver.values, values), "a whole state is exact"
        elif fate != "unanswered":
            sender.acknowledge(answer)
    last = states(len(fates))[-1]
    for _ in range(60):  # what a lossy codec owes is in the next difference
        answer = receiver.apply(sender.encode(last))
        if isinstance(answer, Gap):
            sender.resynchronise()
        else:
            sender.acknowledge(answer)
    assert np.abs(receiver.values - last).max() <= 1e-3


@given(threshold=st.sampled_from([0.0, 1e-6, 1e-3, 0.1]), seed=st.integers(0, 1 << 20))
@settings(deadline=None, max_examples=30)
def test_what_is_held_back_is_within_the_threshold_however_long(threshold: float, seed: int) -> None:
    sender, receiver = DeltaSender("fp32", threshold), DeltaReceiver(SIZE)
    values = states(1, seed)[0]
    for _ in range(10):
        exchanged(sender, receiver, values)
        assert (np.abs(values - receiver.values) <= threshold * np.abs(receiver.values) * (1 + 1e-6)).all()
        values = (values * np.float32(1 + 0.4 * threshold)).astype(np.float32)


def test_what_has_not_changed_costs_a_header() -> None:
    sender, receiver = DeltaSender(), DeltaReceiver(SIZE)
    values = states(1)[0]
    exchanged(sender, receiver, values)
    assert exchanged(sender, receiver, values) < 120


def test_another_size_is_a_whole_state() -> None:
    sender, receiver = DeltaSender(), DeltaReceiver(SIZE)
    exchanged(sender, receiver, states(1)[0])
    exchanged(sender, receiver, np.ones(3, np.float32))
    assert receiver.values.tolist() == [1, 1, 1]
    exchanged(sender, receiver, np.empty(0, np.float32))
    assert len(receiver.values) == 0


def test_news_of_a_replaced_message_are_passed_over() -> None:
    sender, receiver = DeltaSender(), DeltaReceiver(SIZE)
    first, second = states(2)
    answer = receiver.apply(sender.encode(first))
    assert isinstance(answer, Applied)
    later = sender.encode(second)
    sender.acknowledge(answer)
    assert isinstance(receiver.apply(later), Applied), "it was a whole one: nothing had been acknowledged"


def test_a_delta_on_another_state_is_a_gap() -> None:
    first, second = states(2)
    sender, receiver = DeltaSender(), DeltaReceiver(SIZE)
    exchanged(sender, receiver, first)
    delta = sender.encode(second)
    other = DeltaReceiver(SIZE)
    assert other.apply(delta) == Gap(held=0, wanted=1)
    exchanged(DeltaSender(), other, first + 1)  # number 1, too, and another hash
    assert other.apply(delta) == Gap(held=1, wanted=1)
    assert np.array_equal(other.values, first + 1)
    assert receiver.apply(delta) == Applied(version=2, digest=hash_of_next(sender, second))


def hash_of_next(sender: DeltaSender, values: Float32) -> bytes:
    """Return the hash of what the sender's next message comes to."""
    return bytes(msgspec.msgpack.decode(sender.encode(values))[4])


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        (0, 2, "of format 2"),
        (1, "gzip", "no stage 'gzip'"),
        (1, "int8+" * 40, "wrong length"),
        (2, SIZE + 1, "at most 500"),
        (2, -1, "changes"),
        (3, 0, "changes"),
        (4, bytes(32), "another hash"),
        (4, b"", "wrong length"),
        (5, -1, "at most 500"),
        (6, b"x", "builds on nothing"),
        (7, SIZE - 1, "not the whole state"),
        (7, -1, "at most 500"),
        (8, b"", "no room for a length"),
        (8, "text", "no message"),
    ],
)
def test_a_message_that_no_sender_made_is_refused(field: int, value: object, complaint: str) -> None:
    receiver = DeltaReceiver(SIZE)
    parts = msgspec.msgpack.decode(DeltaSender().encode(states(1)[0]))
    parts[field] = value
    with pytest.raises(Malformed, match=complaint):
        receiver.apply(msgspec.msgpack.encode(parts))
    assert len(receiver.values) == 0


def test_more_bytes_than_the_elements_can_take_are_refused_unread() -> None:
    with pytest.raises(Malformed, match="more than 10 elements can take"):
        DeltaReceiver(10).apply(bytes(1000))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="threshold of -1"):
        DeltaSender(threshold=-1)
    with pytest.raises(ConfigError, match="no stage 'gzip'"):
        DeltaSender("gzip")
    with pytest.raises(LocalError, match="not finite"):
        DeltaSender().encode(np.array([np.nan], np.float32))
