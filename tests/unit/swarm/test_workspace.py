"""A peer's tensors through a round: what is sent, what is kept, what comes of it; the same on every peer."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from barnraise.codec.codec import PIECE, Codec, codec_of
from barnraise.codec.grid import Float32
from barnraise.codec.grid16 import Grid16
from barnraise.codec.int8 import MAX_SHIFT, Int8
from barnraise.collective import shards
from barnraise.config import OuterConfig, RoundConfig, RunConfig
from barnraise.errors import LocalError
from barnraise.ids import PeerId
from barnraise.swarm.workspace import Roots, Workspace, root_of

PEERS = tuple(PeerId(f"peer-{number}") for number in range(3))
SIZE = 3 * PIECE + 777
BLOCKS = ((0, 5), (5, 5), (5, 2000), (2000, PIECE + 1), (PIECE + 1, SIZE))
EXPONENTS = (16, 16, 14, 17, 15)
CODECS: list[Codec] = [Grid16(), Int8()]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
DILOCO, LOCAL_SGD = RunConfig(), RunConfig(strategy="local_sgd")


def space_of(codec: Codec, theta: Float32 | None = None, num_parameters: int | None = None) -> Workspace:
    theta = np.linspace(-1, 1, SIZE, dtype=np.float32) if theta is None else theta
    zeros = np.zeros_like(theta)
    return Workspace(BLOCKS, theta, zeros, zeros.copy(), codec=codec, num_parameters=num_parameters)


def updates_of(seed: int, scale: float = 0.02) -> list[Float32]:
    generator = np.random.default_rng(seed)
    return [(generator.standard_t(3, SIZE) * scale).astype(np.float32) for _ in PEERS]


def exchange(
    spaces: Sequence[Workspace],
    updates: Sequence[Float32],
    num_shards: int,
    config: RunConfig,
    exponents: Sequence[int] = EXPONENTS,
    round_: int = 0,
) -> list[Roots]:
    """Do a round of all peers: shard s belongs to peer s modulo their number."""
    for space, update in zip(spaces, updates, strict=True):
        space.encode(update.copy(), exponents, num_shards)
    weights = [(peer, 2 + number) for number, peer in enumerate(PEERS)]
    for shard in range(num_shards):
        owner = shard % len(PEERS)
        for number, space in enumerate(spaces):
            if number != owner:
                place = spaces[owner].incoming_update(PEERS[number], shard, num_shards)
                place[:] = space.outgoing(shard, num_shards)
        spaces[owner].aggregate(shard, num_shards, 0, weights, PEERS[owner])
        finished = spaces[owner].incoming_aggregate(0, shard, num_shards)
        for number, space in enumerate(spaces):
            if number != owner:
                space.incoming_aggregate(0, shard, num_shards)[:] = finished
    return [space.step(0, exponents, config, round_, num_shards) for space in spaces]


def units() -> Float32:
    """Return each element's grid unit."""
    found = np.empty(SIZE, np.float32)
    for (start, stop), exponent in zip(BLOCKS, EXPONENTS, strict=True):
        found[start:stop] = 2.0**-exponent
    return found


def sent(space: Workspace, num_shards: int) -> Float32:
    """Return what our update decodes to."""
    values = np.empty(SIZE, np.float32)
    for shard, (start, stop) in enumerate(shards.bounds(SIZE, num_shards)):
        data = np.asarray(space.outgoing(shard, num_shards))
        for first in range(0, stop - start, PIECE):
            last = min(first + PIECE, stop - start)
            piece = space.codec.decode(data, first, last, np.empty(PIECE, np.int16))
            values[start + first : start + last] = piece
    return values * units()


@every_codec
@pytest.mark.parametrize("num_shards", [1, 3, 16])
def test_all_replicas_come_to_the_same_bits(codec: Codec, num_shards: int) -> None:
    spaces = [space_of(codec) for _ in PEERS]
    roots = exchange(spaces, updates_of(1), num_shards, DILOCO)
    assert roots[0] == roots[1] == roots[2]
    assert roots[0].theta == root_of(spaces[1].pending()[0])
    assert roots[0].momentum == root_of(spaces[2].pending()[1])


def test_on_the_plain_grid_the_shards_change_nothing() -> None:
    found = {exchange([space_of(Grid16()) for _ in PEERS], updates_of(1), count, DILOCO)[0] for count in (1, 3, 16)}
    assert len(found) == 1


@every_codec
def test_the_step_is_that_of_the_updates_mean(codec: Codec) -> None:
    spaces, updates = [space_of(codec) for _ in PEERS], [update.clip(-0.2, 0.2) for update in updates_of(2)]
    exchange(spaces, updates, 3, LOCAL_SGD)
    expected = spaces[0].theta - sum(update * weight for update, weight in zip(updates, (2, 3, 4), strict=True)) / 9
    # Off by less than a codec's largest step for each update, hence for their mean, and once more for the aggregate.
    allowed = units() * (1.5 if codec.is_exact else 2 * 2**MAX_SHIFT + 1.5)
    assert (np.abs(spaces[0].pending()[0] - expected) < allowed).all()


@every_codec
@pytest.mark.parametrize("num_shards", [1, 7])
def test_what_is_sent_and_what_is_kept_make_up_the_update_exactly(codec: Codec, num_shards: int) -> None:
    space, (update, residual, _) = space_of(codec), updates_of(3)
    space.residual = residual
    space.encode(update.copy(), EXPONENTS, num_shards)
    assert space.residual_after is not None
    wanted, values, kept = update + residual, sent(space, num_shards), space.residual_after
    assert np.abs(kept).max() > 0
    for place in [*range(0, SIZE, 997), *range(1024 - 4, 1024 + 4), *range(PIECE - 4, PIECE + 4)]:
        assert Fraction(float(values[place])) + Fraction(float(kept[place])) == Fraction(float(wanted[place]))
    assert np.abs(values.astype(np.float64) + kept - wanted).max() == 0


@every_codec
def test_over_many_rounds_nothing_is_lost(codec: Codec) -> None:
    space, total, arrived = space_of(codec), np.zeros(SIZE), np.zeros(SIZE)
    for round_ in range(8):
        update = updates_of(round_, scale=1e-3)[0]
        total += update
        space.encode(update, EXPONENTS, 2)
        arrived += sent(space, 2)
        space.settle(space.residual_behind(contributed=True))
    # What is still owed is one round's remainder, not eight.
    assert np.abs(arrived + space.residual - total).max() < 1e-6


def test_who_was_not_in_keeps_the_residual_it_had() -> None:
    space = space_of(Int8())
    space.encode(updates_of(4)[0], EXPONENTS, 2)
    assert space.residual_behind(contributed=True) is space.residual_after
    assert not space.residual_behind(contributed=False).any()


@every_codec
def test_a_shard_is_as_long_as_it_was_announced(codec: Codec) -> None:
    space = space_of(codec)
    leaves = space.encode(updates_of(5)[0], EXPONENTS, 5)
    for shard in range(5):
        data = space.outgoing(shard, 5)
        assert data.nbytes == space.shard_bytes(shard, 5) == space.incoming_update(PEERS[1], shard, 5).nbytes
        assert data.nbytes == space.incoming_aggregate(0, shard, 5).nbytes
        assert leaves[shard] == shards.leaf(data)


def test_int8_takes_half_the_bytes() -> None:
    one, other = (sum(space_of(codec).shard_bytes(shard, 4) for shard in range(4)) for codec in CODECS)
    assert other / one == pytest.approx(0.5, abs=0.002)


def test_the_next_grid_follows_from_the_aggregate() -> None:
    space = space_of(Grid16(), np.zeros(SIZE, np.float32))
    update = np.zeros(SIZE, np.float32)
    update[2001], update[-1] = 300 * 2.0**-17, -(2.0**-15)
    space.encode(update, EXPONENTS, 3)
    for shard in range(3):
        space.aggregate(shard, 3, 0, [(PEERS[0], 1)], PEERS[0])
    assert space.step(0, EXPONENTS, DILOCO, 0, 3).exponents == (18, 18, 16, 17 + 12 - 9, 15 + 12 - 1)


@every_codec
def test_buffers_are_averaged_whatever_the_strategy_does_with_parameters(codec: Codec) -> None:
    border = BLOCKS[2][1]
    fast = replace(DILOCO, outer=OuterConfig(lr=0.3, momentum=0.9))
    mixed = [space_of(codec, num_parameters=border) for _ in PEERS]
    averaged, stepped = [space_of(codec) for _ in PEERS], [space_of(codec) for _ in PEERS]
    for spaces, config in ((mixed, fast), (averaged, LOCAL_SGD), (stepped, fast)):
        exchange(spaces, updates_of(6), 3, config)
    theta, momentum = mixed[0].pending()
    assert np.array_equal(theta[:border], stepped[0].pending()[0][:border])
    assert np.array_equal(theta[border:], averaged[0].pending()[0][border:])
    assert not momentum[border:].any()
    assert not np.array_equal(theta[border:], stepped[0].pending()[0][border:])


def test_a_tensor_on_both_sides_of_the_border_is_refused() -> None:
    with pytest.raises(LocalError, match="where the buffers begin"):
        space_of(Grid16(), num_parameters=3)


def test_the_round_reaches_the_strategy() -> None:
    ramp = replace(DILOCO, outer=OuterConfig(momentum_rounds=10))
    first, second = ([space_of(Grid16()) for _ in PEERS] for _ in range(2))
    for space in (*first, *second):
        space.momentum = np.ones(SIZE, np.float32)
    assert exchange(first, updates_of(7), 3, ramp)[0] != exchange(second, updates_of(7), 3, ramp, round_=5)[0]


def test_a_step_to_what_is_not_finite_is_not_proposed() -> None:
    spaces = [space_of(Grid16()) for _ in PEERS]
    spaces[0].momentum = np.full(SIZE, 3e38, np.float32)
    strong = replace(DILOCO, outer=OuterConfig(lr=10.0, momentum=0.9))
    with np.errstate(over="ignore"), pytest.raises(LocalError, match="parameters that are not finite"):
        exchange(spaces, updates_of(8), 3, strong)
    with pytest.raises(LocalError, match="no step"):
        spaces[0].pending()


def test_an_update_that_is_not_finite_is_not_sent() -> None:
    space, update = space_of(Int8()), updates_of(8)[0]
    update[PIECE + 9] = np.nan
    with pytest.raises(LocalError, match="update is not finite"):
        space.encode(update, EXPONENTS, 3)


def test_who_has_nothing_encoded_says_so() -> None:
    space = space_of(Grid16())
    with pytest.raises(LocalError, match="not encoded"):
        space.outgoing(0, 3)
    space.encode(updates_of(8)[0], EXPONENTS, 4)
    with pytest.raises(LocalError, match="not encoded"):
        space.outgoing(0, 3)
    with pytest.raises(LocalError, match="no step"):
        space.pending()


def test_a_shard_that_arrives_late_does_not_disturb_a_round_of_other_members() -> None:
    # 1. A thread finds the round at hand, of four shards; 2. the round ends and with it the buffers;
    # 3. the thread makes room for a shard of four in a round of three.
    spaces = [space_of(Int8()) for _ in PEERS]
    for space in spaces:
        space.incoming_aggregate(0, 1, 4)
        space.incoming_update(PEERS[1], 1, 4)
    assert len(set(exchange(spaces, updates_of(9), 3, DILOCO))) == 1


def test_a_workspaces_codec_is_the_runs() -> None:
    assert isinstance(codec_of(RunConfig(round=RoundConfig(codec="int8"))), Int8)
