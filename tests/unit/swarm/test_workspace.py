"""A peer's tensors through a round: what is sent, what is kept, what comes of it; the same on every peer."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import PIECE, Malformed
from barnraise.codec.grid import Float32
from barnraise.collective import shards
from barnraise.config import OuterConfig, RunConfig
from barnraise.errors import LocalError
from barnraise.ids import PeerId
from barnraise.swarm.workspace import Part, Roots, Workspace, root_of

PEERS = tuple(PeerId(f"peer-{number}") for number in range(3))
SIZE = 3 * PIECE + 777
BLOCKS = ((0, 5), (5, 5), (5, 2000), (2000, PIECE + 1), (PIECE + 1, SIZE))
EXPONENTS = (16, 16, 14, 17, 15)
CODECS = ["grid16", "int8", "int4", "int2", "bf16", "topk:0.05+int8+zstd", "powersgd:2", "randomk:0.1"]
every_codec = pytest.mark.parametrize("codec", CODECS)
DILOCO, LOCAL_SGD = RunConfig(), RunConfig(strategy="local_sgd")


def space_of(codec: str, theta: Float32 | None = None, num_parameters: int | None = None) -> Workspace:
    theta = np.linspace(-1, 1, SIZE, dtype=np.float32) if theta is None else theta
    zeros = np.zeros_like(theta)
    made = codec_of(codec, np.int16)
    return Workspace(BLOCKS, theta, zeros, zeros.copy(), codec=made, num_parameters=num_parameters)


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
        space.encode(update.copy(), exponents, round_, num_shards)
    weights = [(peer, 2 + number) for number, peer in enumerate(PEERS)]
    for shard in range(num_shards):
        owner, part = shard % len(PEERS), Part(round_, shard, num_shards)
        for number, space in enumerate(spaces):
            if number != owner:
                spaces[owner].keep_update(PEERS[number], part, np.array(space.outgoing(part)))
        spaces[owner].aggregate(part, 0, weights, PEERS[owner])
        finished = np.array(spaces[owner].aggregated(part, 0))
        for number, space in enumerate(spaces):
            if number != owner:
                space.keep_aggregate(part, 0, len(PEERS), finished)
    return [space.step(0, exponents, config, round_, num_shards) for space in spaces]


def units() -> Float32:
    """Return each element's grid unit."""
    found = np.empty(SIZE, np.float32)
    for (start, stop), exponent in zip(BLOCKS, EXPONENTS, strict=True):
        found[start:stop] = 2.0**-exponent
    return found


def sent(space: Workspace, num_shards: int, round_: int = 0) -> Float32:
    """Return what our update decodes to."""
    values = np.empty(SIZE, np.int16)
    for shard, (start, stop) in enumerate(shards.bounds(SIZE, num_shards)):
        part = Part(round_, shard, num_shards)
        reader = space.codec.reader(np.array(space.outgoing(part)), stop - start, part.place)
        for first in range(0, stop - start, PIECE):
            last = min(first + PIECE, stop - start)
            reader.read(first, last, values[start + first : start + last])
    return values * units()


@every_codec
@pytest.mark.parametrize("num_shards", [1, 3, 16])
def test_all_replicas_come_to_the_same_bits(codec: str, num_shards: int) -> None:
    spaces = [space_of(codec) for _ in PEERS]
    roots = exchange(spaces, updates_of(1), num_shards, DILOCO)
    assert roots[0] == roots[1] == roots[2]
    assert roots[0].theta == root_of(spaces[1].pending()[0])
    assert roots[0].momentum == root_of(spaces[2].pending()[1])


def test_on_the_plain_grid_the_shards_change_nothing() -> None:
    found = {exchange([space_of("grid16") for _ in PEERS], updates_of(1), count, DILOCO)[0] for count in (1, 3, 16)}
    assert len(found) == 1


@pytest.mark.parametrize(("codec", "largest_step"), [("grid16", 1), ("int8", 259), ("int4", 4682), ("bf16", 256)])
def test_the_step_is_that_of_the_updates_mean(codec: str, largest_step: int) -> None:
    spaces, updates = [space_of(codec) for _ in PEERS], [update.clip(-0.2, 0.2) for update in updates_of(2)]
    exchange(spaces, updates, 3, LOCAL_SGD)
    expected = spaces[0].theta - sum(update * weight for update, weight in zip(updates, (2, 3, 4), strict=True)) / 9
    # Off by half of a codec's largest step for each update, hence for their mean, and once more, by one of int8, for the
    # aggregate; and by the grid's rounding of either.
    allowed = units() * (1.5 + largest_step / 2 + 259 / 2)
    assert (np.abs(spaces[0].pending()[0] - expected) < allowed).all()


@pytest.mark.parametrize("codec", ["grid16", "int8", "bf16", "topk:0.05+int8+zstd"])
@pytest.mark.parametrize("num_shards", [1, 7])
def test_what_is_sent_and_what_is_kept_make_up_the_update_exactly(codec: str, num_shards: int) -> None:
    space, (update, residual, _) = space_of(codec), updates_of(3)
    space.residual = residual
    space.encode(update.copy(), EXPONENTS, 0, num_shards)
    assert space.residual_after is not None
    wanted, values, kept = update + residual, sent(space, num_shards), space.residual_after
    assert np.abs(kept).max() > 0
    for place in [*range(0, SIZE, 997), *range(1024 - 4, 1024 + 4), *range(PIECE - 4, PIECE + 4)]:
        assert Fraction(float(values[place])) + Fraction(float(kept[place])) == Fraction(float(wanted[place]))
    assert np.abs(values.astype(np.float64) + kept - wanted).max() == 0


@every_codec
def test_over_many_rounds_nothing_is_lost(codec: str) -> None:
    space, total, arrived = space_of(codec), np.zeros(SIZE), np.zeros(SIZE)
    for round_ in range(8):
        update = updates_of(round_, scale=1e-3)[0]
        total += update
        space.encode(update, EXPONENTS, round_, 2)
        arrived += sent(space, 2, round_)
        space.settle(space.residual_behind(contributed=True))
    # What is still owed is one round's remainder, not eight.
    assert np.abs(arrived + space.residual - total).max() < 1e-6


def test_who_was_not_in_keeps_the_residual_it_had() -> None:
    space = space_of("int8")
    space.encode(updates_of(4)[0], EXPONENTS, 0, 2)
    assert space.residual_behind(contributed=True) is space.residual_after
    assert not space.residual_behind(contributed=False).any()


@every_codec
def test_no_shard_is_longer_than_it_may_be(codec: str) -> None:
    spaces = [space_of(codec) for _ in PEERS]
    leaves = spaces[0].encode(updates_of(5)[0], EXPONENTS, 0, 5)
    for shard in range(5):
        part = Part(0, shard, 5)
        data = spaces[0].outgoing(part)
        assert 0 < data.nbytes <= spaces[0].update_bound_bytes(part)
        assert leaves[shard] == shards.leaf(data)
    exchange(spaces, updates_of(5), 5, DILOCO)
    for space in spaces:
        for shard in range(5):
            part = Part(0, shard, 5)
            assert 0 < space.aggregated(part, 0).nbytes <= space.aggregate_bound_bytes(part, len(PEERS))


def test_a_step_that_holds_the_momentum_leaves_it_and_names_it_as_it_was() -> None:
    space = space_of("grid16", np.ones(SIZE, np.float32))
    space.encode(np.full(SIZE, 2.0**-10, np.float32), EXPONENTS, 0, 3)
    for shard in range(3):
        space.aggregate(Part(0, shard, 3), 0, [(PEERS[0], 1)], PEERS[0])
    before = space.momentum.copy()
    held = space.step(0, EXPONENTS, DILOCO, 0, 3, holds_momentum=True)
    assert held.momentum == root_of(before)
    assert held.theta != root_of(space.theta)
    plain = space.step(0, EXPONENTS, DILOCO, 0, 3)
    assert (plain.momentum, plain.theta) != (held.momentum, held.theta)
    assert plain.aggregate == held.aggregate


@pytest.mark.parametrize(
    ("codec", "share"),
    [("int8", 0.5), ("int4", 0.25), ("int2", 0.125), ("topk:0.05+int8+zstd", 0.042), ("randomk:0.1", 0.1)],
)
def test_a_codecs_share_of_the_bytes(codec: str, share: float) -> None:
    space = space_of(codec)
    space.encode(updates_of(5)[0], EXPONENTS, 0, 4)
    used = sum(space.outgoing(Part(0, shard, 4)).nbytes for shard in range(4))
    assert used / (2 * SIZE) == pytest.approx(share, rel=0.1)


def test_the_next_grid_follows_from_the_aggregate() -> None:
    space = space_of("grid16", np.zeros(SIZE, np.float32))
    update = np.zeros(SIZE, np.float32)
    update[2001], update[-1] = 300 * 2.0**-17, -(2.0**-15)
    space.encode(update, EXPONENTS, 0, 3)
    for shard in range(3):
        space.aggregate(Part(0, shard, 3), 0, [(PEERS[0], 1)], PEERS[0])
    assert space.step(0, EXPONENTS, DILOCO, 0, 3).exponents == (18, 18, 16, 17 + 12 - 9, 15 + 12 - 1)


@every_codec
def test_buffers_are_averaged_whatever_the_strategy_does_with_parameters(codec: str) -> None:
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
        space_of("grid16", num_parameters=3)


def test_the_round_reaches_the_strategy() -> None:
    ramp = replace(DILOCO, outer=OuterConfig(momentum_rounds=10))
    first, second = ([space_of("grid16") for _ in PEERS] for _ in range(2))
    for space in (*first, *second):
        space.momentum = np.ones(SIZE, np.float32)
    assert exchange(first, updates_of(7), 3, ramp)[0] != exchange(second, updates_of(7), 3, ramp, round_=5)[0]


def test_a_step_to_what_is_not_finite_is_not_proposed() -> None:
    spaces = [space_of("grid16") for _ in PEERS]
    spaces[0].momentum = np.full(SIZE, 3e38, np.float32)
    strong = replace(DILOCO, outer=OuterConfig(lr=10.0, momentum=0.9))
    with np.errstate(over="ignore"), pytest.raises(LocalError, match="parameters that are not finite"):
        exchange(spaces, updates_of(8), 3, strong)
    with pytest.raises(LocalError, match="no step"):
        spaces[0].pending()


def test_an_update_that_is_not_finite_is_not_sent() -> None:
    space, update = space_of("int8"), updates_of(8)[0]
    update[PIECE + 9] = np.nan
    with pytest.raises(LocalError, match="update is not finite"):
        space.encode(update, EXPONENTS, 0, 3)


def test_who_has_nothing_encoded_says_so() -> None:
    space = space_of("grid16")
    with pytest.raises(LocalError, match="not encoded"):
        space.outgoing(Part(0, 0, 3))
    space.encode(updates_of(8)[0], EXPONENTS, 0, 4)
    with pytest.raises(LocalError, match="not encoded"):
        space.outgoing(Part(0, 0, 3))
    with pytest.raises(LocalError, match="shard 2 of round 0 is not here"):
        space.aggregated(Part(0, 2, 3), 0)
    with pytest.raises(LocalError, match="no step"):
        space.pending()


def test_a_shard_that_arrives_late_does_not_disturb_the_next_round() -> None:
    # 1. A thread finds round 0 at hand; 2. the round ends, and what was kept with it; 3. the thread keeps a shard of
    # round 0, and another one of four shards, in round 1, of three.
    spaces = [space_of("int8") for _ in PEERS]
    late = np.zeros(spaces[0].update_bound_bytes(Part(0, 1, 4)), np.uint8)
    again = np.zeros(spaces[0].update_bound_bytes(Part(0, 1, 3)), np.uint8)
    for space in spaces:
        for part, data in ((Part(0, 1, 4), late), (Part(0, 1, 3), again)):
            space.keep_aggregate(part, 0, len(PEERS), data)
            space.keep_update(PEERS[1], part, data)
    assert len(set(exchange(spaces, updates_of(9), 3, DILOCO, round_=1))) == 1
    assert np.array(spaces[0].aggregated(Part(1, 1, 3), 0)).any()


@every_codec
@pytest.mark.parametrize("kind", ["update", "aggregate"])
def test_a_shard_that_cannot_be_decoded_is_not_kept(codec: str, kind: str) -> None:
    spaces = [space_of(codec) for _ in PEERS]
    exchange(spaces, updates_of(9), 3, DILOCO)
    space, part = spaces[0], Part(0, 1, 3)
    good = np.array(space.outgoing(part) if kind == "update" else space.aggregated(part, 0))

    def keep(data: np.ndarray) -> None:
        if kind == "update":
            space.keep_update(PEERS[0], part, data)
        else:
            space.keep_aggregate(part, 0, len(PEERS), data)

    keep(good)
    for bad in (good[:-1], good[:0], np.append(good, good[:1])):
        with pytest.raises(Malformed):
            keep(bad.copy())
    assert space.step(0, EXPONENTS, DILOCO, 0, 3) == spaces[1].step(0, EXPONENTS, DILOCO, 0, 3)


def test_a_workspaces_codec_is_one_of_integers() -> None:
    zeros = np.zeros(SIZE, np.float32)
    with pytest.raises(LocalError, match="int8 is of float32"):
        Workspace(BLOCKS, zeros, zeros, zeros, codec=codec_of("int8", np.float32))
