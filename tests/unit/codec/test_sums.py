"""Sums that are encoded in one pass: the bits of one step after the other, and what an encoding loses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.blockwise import Blockwise
from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Codec, Place, Reader, Values
from barnraise.codec.grid import Bytes, Float32
from barnraise.codec.plain import MOST, Terms
from barnraise.codec.sums import add_up, encode_sum
from barnraise.errors import LocalError

FLOAT32 = np.dtype(np.float32)


class StepByStep:
    """A codec that has no pass of its own for sums, as most have none."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.name, self.dtype = codec.name, codec.dtype
        self.is_exact, self.is_lossless = codec.is_exact, codec.is_lossless

    def bound_bytes(self, count: int) -> int:
        return self._codec.bound_bytes(count)

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        return self._codec.encode(values, out, place)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Reader:
        return self._codec.reader(data, count, place)

    def for_aggregate(self, num_updates: int) -> Codec:
        return self._codec.for_aggregate(num_updates)


def normal(seed: int, size: int) -> Float32:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def encoded(codec: Codec, values: Float32) -> Reader:
    out = np.empty(codec.bound_bytes(len(values)), np.uint8)
    return codec.reader(out[: codec.encode(values, out)], len(values))


def both_ways(codec: Codec, terms: Terms, others: list[Reader]) -> tuple[bytes, bytes]:
    """Return the encoding, and what it lost, of which either way makes the same."""
    found = []
    for chosen in (codec, StepByStep(codec)):
        if terms.lost is not None:
            terms.lost[:] = np.nan
        out, room = np.zeros(codec.bound_bytes(len(terms.own)), np.uint8), np.empty(4 * len(terms.own), np.uint8)
        size = encode_sum(chosen, terms, others, out, Place(), room)
        found.append((out[:size].tobytes(), b"" if terms.lost is None else terms.lost.tobytes()))
    assert found[0] == found[1]
    return found[0]


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([0, 1, 5, 1023, 1024, 1025, 5000]),
    num_others=st.integers(0, 5),
    weight=st.sampled_from([1.0, 0.5, 3.0, 0.1]),
    divisor=st.sampled_from([1.0, 4.0, 3.0, 8.5]),
    is_fed=st.booleans(),
    cuts_off=st.booleans(),
)
def test_one_pass_comes_to_what_steps_come_to(
    size: int, num_others: int, weight: float, divisor: float, is_fed: bool, cuts_off: bool
) -> None:
    codec = codec_of("int8", np.float32)
    terms = Terms(own=normal(1, size), weight=weight, divisor=divisor, cuts_off=cuts_off)
    if is_fed:
        terms.owed, terms.lost, terms.share = normal(2, size), np.empty(size, np.float32), weight / divisor
    both_ways(codec, terms, [encoded(codec, normal(3 + other, size)) for other in range(num_others)])


def test_what_is_sent_and_what_is_lost_add_up_to_the_sum() -> None:
    codec, size = codec_of("int8", np.float32), 3000
    terms = Terms(own=normal(1, size), owed=normal(2, size), weight=2.0, divisor=4.0, share=0.5)
    terms.lost = np.empty(size, np.float32)
    other = encoded(codec, normal(3, size))
    sums = np.empty(size, np.float32)
    add_up(terms, [other], sums)
    data, lost = both_ways(codec, terms, [other])
    decoded = np.empty(size, np.float32)
    codec.reader(np.frombuffer(data, np.uint8), size).read(0, size, decoded)
    assert np.allclose(decoded + 0.5 * np.frombuffer(lost, np.float32), sums / 4, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.2e30, -1.3e30, 3e38, -3e38])
def test_sums_are_cut_off_where_that_is_wanted_and_refused_elsewhere(value: float) -> None:
    codec, own = codec_of("int8", np.float32), normal(1, 2100)
    own[[0, 1500, 2099]] = value
    terms = Terms(own=own, cuts_off=True)
    data, _ = both_ways(codec, terms, [encoded(codec, np.zeros(2100, np.float32))])
    decoded = np.empty(2100, np.float32)
    codec.reader(np.frombuffer(data, np.uint8), 2100).read(0, 2100, decoded)
    expected = 0.0 if np.isnan(value) else np.clip(value, -MOST, MOST)
    assert np.allclose(decoded[[0, 1500, 2099]], expected, rtol=1e-6)
    if not abs(value) < 2.0**127:
        terms.cuts_off = False
        for chosen in (codec, StepByStep(codec)):
            with pytest.raises(LocalError, match="not finite"):
                encode_sum(chosen, terms, [], np.empty(9000, np.uint8), Place(), np.empty(8400, np.uint8))


@pytest.mark.parametrize("spec", ["int4", "int2", "int8s", "bf16", "topk:0.1", "int8+zstd"])
def test_sums_of_other_codecs_go_step_by_step(spec: str) -> None:
    codec, size = codec_of(spec, np.float32), 2000
    terms = Terms(own=normal(1, size), owed=normal(2, size), lost=np.empty(size, np.float32))
    others = [encoded(codec, normal(3, size)), encoded(codec_of("int8", np.float32), normal(4, size))]
    both_ways(codec, terms, others)
    finishing = codec.for_aggregate(3)
    both_ways(finishing, terms, others)
    if not spec.startswith("int8"):  # whose encodings are int8's in the end
        assert Blockwise(8, FLOAT32).encode_sum(terms, others, np.empty(9000, np.uint8)) is None


def test_our_own_values_as_they_are_need_no_room() -> None:
    for spec in ("int8", "bf16"):
        codec, own = codec_of(spec, np.float32), normal(1, 2000)
        out, expected = np.empty(9000, np.uint8), np.empty(9000, np.uint8)
        size = encode_sum(codec, Terms(own=own), [], out, Place(), np.empty(0, np.uint8))
        assert out[:size].tobytes() == expected[: codec.encode(own, expected)].tobytes()
