"""What the courier lets in: hostile and stale bulk headers are refused before anything is allocated for them."""

import random
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Codec
from barnraise.codec.grid import Bytes
from barnraise.collective.exchange import SendUpdate
from barnraise.collective.shards import leaf
from barnraise.config import InnerConfig, RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.errors import PeerError, Unavailable
from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.net.memory import open_medium
from barnraise.peer.courier import MAX_LOG_BYTES, Courier, FetchedState, Header
from barnraise.swarm.effects import Effect, Report, Transfer
from barnraise.swarm.member import Member
from barnraise.swarm.records import Contribution, Cut
from barnraise.swarm.state import State, genesis
from barnraise.swarm.workspace import Part, Workspace, root_of

SIZE = 1000
NUM_SHARDS = 3
MEMBERS = tuple(PeerId(f"peer-{number}") for number in range(3))
ME, OTHER, DONOR = MEMBERS
STRANGER = PeerId("stranger")
SHARD_BYTES = 2 * 384
"""1000 elements in three shards, aligned to 64."""
encode = msgspec.msgpack.Encoder().encode


def state_of(founders: tuple[PeerId, ...] = MEMBERS, **changes: int) -> State:
    config = RunConfig(
        founders=founders, inner=InnerConfig(batch_size=1), round=RoundConfig(rounds=5, steps=2, codec="grid16")
    )
    zeros = np.zeros(SIZE, np.float32)
    return replace(genesis(config, 1, root_of(zeros), root_of(zeros)), cut=CUT, **changes)  # type: ignore[arg-type]


CUT = Cut(
    run=bytes(32),
    epoch=0,
    round=2,
    attempt=0,
    previous=bytes(32),
    contributions=tuple(Contribution(member, bytes(32), 2) for member in MEMBERS),
)


class Watched(Workspace):
    """Notes what it was given to keep."""

    def __init__(self, codec: Codec) -> None:
        zeros = np.zeros(SIZE, np.float32)
        super().__init__(((0, SIZE),), zeros.copy(), zeros.copy(), zeros.copy(), codec=codec)
        self.kept: list[tuple[object, ...]] = []

    def keep_update(self, sender: PeerId, part: Part, data: Bytes) -> None:
        super().keep_update(sender, part, data)
        self.kept.append(("update", sender, part, data.tobytes()))

    def keep_aggregate(self, part: Part, attempt: int, num_updates: int, data: Bytes) -> None:
        super().keep_aggregate(part, attempt, num_updates, data)
        self.kept.append(("aggregate", part, attempt, num_updates, data.tobytes()))


class Elsewhere:
    """Notes what is none of the courier's business."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def sink(self, sender: PeerId, data: bytes, size_bytes: int) -> memoryview | None:
        self.seen.append(data)
        return None

    def arrived(self, sender: PeerId, data: bytes) -> None:
        self.seen.append(data)


class Desk:
    """A courier with what surrounds it; it posts into a list."""

    def __init__(self, state: State | None = None) -> None:
        self.member = Member(
            me=ME,
            state=state or state_of(round=2),
            sign=lambda context, message: b"",
            verify=lambda *vote: True,
            now=0.0,
            peer_timeout_s=10.0,
        )
        self.workspace = Watched(codec_of(self.member.state.config.round.codec, np.int16))
        self.posted: list[Callable[[float], list[Effect]]] = []
        self.fetched: list[FetchedState] = []
        self.elsewhere = Elsewhere()
        self.courier = Courier(self.member, self.workspace, self.posted.append, self.fetched.append, self.elsewhere)


def header(**changes: object) -> bytes:
    fields: dict[str, object] = {"kind": "update", "round": 2, "attempt": 0, "shard": 0}
    return encode(list((fields | changes).values()))


def test_a_members_shard_of_this_round_is_taken() -> None:
    desk = Desk()
    buffer = desk.courier.sink(OTHER, header(), SHARD_BYTES)
    assert buffer is not None
    assert (buffer.nbytes, buffer.readonly) == (SHARD_BYTES, False)
    buffer[:] = bytes(range(256)) * 3
    desk.courier.arrived(OTHER, header())
    (post,) = desk.posted
    post(0.0)
    assert desk.member.work.updates_arrived == {(OTHER, 0): leaf(memoryview(bytes(range(256)) * 3))}


@pytest.mark.parametrize(
    ("sender", "data", "size"),
    [
        pytest.param(OTHER, header(round=1), SHARD_BYTES, id="an older round"),
        pytest.param(OTHER, header(round=3), SHARD_BYTES, id="a round to come"),
        pytest.param(OTHER, header(round=-1), SHARD_BYTES, id="no round"),
        pytest.param(OTHER, header(shard=NUM_SHARDS), SHARD_BYTES, id="a shard too far"),
        pytest.param(OTHER, header(shard=1 << 62), SHARD_BYTES, id="a shard much too far"),
        pytest.param(OTHER, header(shard=-1), SHARD_BYTES, id="a negative shard"),
        pytest.param(OTHER, header(), SHARD_BYTES + 1, id="a byte too many"),
        pytest.param(OTHER, header(), 0, id="nothing"),
        pytest.param(OTHER, header(), 1 << 50, id="a petabyte"),
        pytest.param(OTHER, header(shard=2), SHARD_BYTES, id="the size of another shard"),
        pytest.param(STRANGER, header(), SHARD_BYTES, id="not a member"),
        pytest.param(OTHER, header(kind="aggregate", attempt=1), SHARD_BYTES, id="an attempt to come"),
        pytest.param(OTHER, header(kind="aggregate", attempt=-1), SHARD_BYTES, id="no attempt"),
        pytest.param(STRANGER, header(kind="aggregate"), SHARD_BYTES, id="an aggregate of a stranger"),
        pytest.param(OTHER, header(kind="aggregate"), SHARD_BYTES + 2, id="an aggregate too long"),
        pytest.param(DONOR, header(kind="state", round=0, shard=64), 64, id="a state not asked for"),
        pytest.param(DONOR, header(kind="log", round=0, shard=64), 64, id="a log not asked for"),
        pytest.param(OTHER, header(kind="model"), SHARD_BYTES, id="an unknown kind"),
        pytest.param(OTHER, header()[:-1], SHARD_BYTES, id="a header cut short"),
        pytest.param(OTHER, header(shard=0.0), SHARD_BYTES, id="a float for a shard"),
        pytest.param(OTHER, encode(["update", 2, 0, 0, 0]), SHARD_BYTES, id="a field too many"),
        pytest.param(OTHER, b"\x94\xa2\xff\xfe\x02\x00\x00", SHARD_BYTES, id="a kind that is not UTF-8"),
        pytest.param(OTHER, b"", SHARD_BYTES, id="no header"),
    ],
)
def test_what_was_not_asked_for_is_refused_before_anything_is_allocated(sender: PeerId, data: bytes, size: int) -> None:
    desk = Desk()
    assert desk.courier.sink(sender, data, size) is None
    assert desk.courier.shard_bytes == 0
    desk.courier.arrived(sender, data)
    assert (desk.posted, desk.workspace.kept) == ([], [])


@settings(deadline=None)
@given(data=st.binary(max_size=40), size=st.integers(0, 1 << 60))
def test_no_header_raises_anything(data: bytes, size: int) -> None:
    desk = Desk()
    assert desk.courier.sink(OTHER, data, size) is None
    desk.courier.arrived(OTHER, data)
    assert desk.posted == []


INT8_BYTES = 384 + 2
"""An element is a byte, and the step of a block of at most 1024 two."""
INT4_BYTES = 384 // 2 + 3 * 2


def desk_of(codec: str, founders: tuple[PeerId, ...] = MEMBERS) -> Desk:
    state = state_of(founders, round=2)
    return Desk(replace(state, config=replace(state.config, round=replace(state.config.round, codec=codec))))


@pytest.mark.parametrize(
    ("codec", "kind", "bound"),
    [
        ("int8", "update", INT8_BYTES),
        ("int8", "aggregate", INT8_BYTES),
        ("int4", "update", INT4_BYTES),
        ("int4", "aggregate", INT8_BYTES),
    ],
)
def test_a_shard_is_no_longer_than_its_codec_can_make_it(codec: str, kind: str, bound: int) -> None:
    desk = desk_of(codec)
    assert desk.courier.sink(OTHER, header(kind=kind), bound + 1) is None
    assert desk.courier.shard_bytes == 0
    buffer = desk.courier.sink(OTHER, header(kind=kind), bound)
    assert buffer is not None
    assert buffer.nbytes == desk.courier.shard_bytes == bound


@pytest.mark.parametrize("codec", ["grid16", "int8", "int2", "topk:0.1+int4", "randomk:0.1", "powersgd:2", "int8+zstd"])
@pytest.mark.parametrize("kind", ["update", "aggregate"])
def test_a_shard_without_elements_arrives_as_well(codec: str, kind: str) -> None:
    five = (*MEMBERS, PeerId("peer-3"), PeerId("peer-4"))  # 1000 elements in fives of 256: the last shard has none
    desk, part = desk_of(codec, five), Part(2, 4, 5)
    assert desk.workspace.count(part) == 0
    desk.workspace.encode(np.ones(SIZE, np.float32), desk.member.state.exponents, 2, 5)
    data = bytes(desk.workspace.outgoing(part))
    if kind == "aggregate":
        desk.workspace.aggregate(part, 0, [(ME, 1)], ME)
        data = bytes(desk.workspace.aggregated(part, 0))
    buffer = desk.courier.sink(OTHER, header(kind=kind, shard=4), len(data))
    assert buffer is not None
    buffer[:] = data
    desk.courier.arrived(OTHER, header(kind=kind, shard=4))
    assert len(desk.workspace.kept) == len(desk.posted) == 1


def test_before_the_cut_nobody_knows_how_long_an_aggregate_may_be() -> None:
    desk = Desk(replace(state_of(round=2), cut=None))
    assert desk.courier.sink(OTHER, header(kind="aggregate"), SHARD_BYTES) is None
    assert desk.courier.sink(OTHER, header(kind="update"), SHARD_BYTES) is not None


@pytest.mark.parametrize("kind", ["update", "aggregate"])
def test_a_shard_has_a_length_of_its_own(kind: str) -> None:
    desk, codec = desk_of("grid16+zstd"), codec_of("grid16+zstd", np.int16)
    part, values = Part(2, 0, NUM_SHARDS), np.arange(384, dtype=np.int16) % 7
    room = np.empty(codec.bound_bytes(384), np.uint8)
    data = room[: codec.encode(values, room, part.place)].tobytes()
    assert len(data) < SHARD_BYTES // 2
    buffer = desk.courier.sink(OTHER, header(kind=kind), len(data))
    assert buffer is not None
    buffer[:] = data
    desk.courier.arrived(OTHER, header(kind=kind))
    expected = ("update", OTHER, part, data) if kind == "update" else ("aggregate", part, 0, len(MEMBERS), data)
    assert desk.workspace.kept == [expected]
    desk.courier.arrived(OTHER, header(kind=kind))
    assert len(desk.workspace.kept) == len(desk.posted) == 1, "one room is one arrival"


@pytest.mark.parametrize("kind", ["update", "aggregate"])
@pytest.mark.parametrize("shortfall", [0, 1])
def test_a_shard_that_cannot_be_decoded_counts_as_not_arrived_and_its_sender_is_named(
    kind: str, shortfall: int
) -> None:
    desk = desk_of("int8")
    for step, arrives in ((260, False), (259, not shortfall)):
        buffer = desk.courier.sink(OTHER, header(kind=kind), INT8_BYTES - shortfall)
        assert buffer is not None
        buffer[:2] = step.to_bytes(2, "little")
        desk.courier.arrived(OTHER, header(kind=kind))
        post = desk.posted.pop()
        reports = post(0.0)
        assert bool(desk.member.work.updates_arrived or desk.member.work.aggregates_arrived) is arrives
        complaint = (
            f"{INT8_BYTES - 1} bytes instead of" if shortfall else "a block's scale of 260 (int8) is out of range"
        )
        refused = [report.fields for report in reports if isinstance(report, Report) and report.event == "peer.refused"]
        assert bool(refused) is not arrives
        for fields in refused:
            assert fields["peer"] == OTHER
            assert str(fields["reason"]).startswith(f"shard 0 of round 2 ({kind}): {complaint}")


def test_a_room_that_two_transfers_may_share_is_copied_before_it_is_used() -> None:
    desk = Desk()
    first, second = (desk.courier.sink(OTHER, header(), SHARD_BYTES) for _ in range(2))
    assert first is not None
    assert second is not None
    first[:] = bytes([1]) * SHARD_BYTES
    second[:] = bytes([2]) * SHARD_BYTES
    desk.courier.arrived(OTHER, header())
    second[:] = bytes([3]) * SHARD_BYTES
    ((*_, data),) = desk.workspace.kept
    assert data == bytes([2]) * SHARD_BYTES
    stored = np.empty(384, np.int16)
    desk.workspace._updates[OTHER, Part(2, 0, NUM_SHARDS)].reader.read(0, 384, stored)
    assert set(stored.tolist()) == {0x0202}


def test_an_aggregate_that_is_here_is_not_overwritten() -> None:
    desk = Desk()
    desk.member.work.aggregates_arrived.add((0, 1))
    assert desk.courier.sink(OTHER, header(kind="aggregate", shard=1), SHARD_BYTES) is None
    assert desk.courier.sink(OTHER, header(kind="aggregate", shard=0), SHARD_BYTES) is not None


def test_an_update_that_is_here_is_not_overwritten() -> None:
    desk = Desk()
    desk.member.work.updates_arrived[OTHER, 1] = bytes(32)
    assert desk.courier.sink(OTHER, header(shard=1), SHARD_BYTES) is None
    assert desk.courier.sink(OTHER, header(shard=0), SHARD_BYTES) is not None


@pytest.mark.parametrize("kind", ["update", "aggregate"])
def test_a_shard_whose_round_ended_on_the_way_is_dropped(kind: str) -> None:
    desk = Desk()
    last = header(kind=kind, shard=2)
    assert desk.courier.sink(OTHER, last, 2 * (SIZE - 2 * 384)) is not None
    members = desk.member.state.members[:2]
    desk.member.caught_up(1.0, replace(desk.member.state, round=3, height=9, members=members))
    desk.courier.arrived(OTHER, last)
    assert (desk.posted, desk.workspace.kept) == ([], [])


def test_nothing_comes_in_for_a_round_whose_buffers_are_not_there_yet() -> None:
    # 1. The result of round 2 is decided: the machine is in round 3. 2. A shard of round 3 arrives.
    # 3. The result is durable and the workspace forgets round 2, and with it whatever came in.
    desk = Desk()
    desk.member.caught_up(1.0, replace(desk.member.state, round=3, height=9))
    assert desk.courier.sink(OTHER, header(round=3), SHARD_BYTES) is None
    desk.courier.enter(3)
    assert desk.courier.sink(OTHER, header(round=3), SHARD_BYTES) is not None


@pytest.mark.parametrize(
    ("sender", "log_bytes", "size"),
    [
        (OTHER, 64, 64),
        (DONOR, 0, 0),
        (DONOR, -8, -8),
        (DONOR, 64, 64 + 4),
        (DONOR, MAX_LOG_BYTES + 4, MAX_LOG_BYTES + 4),
        (DONOR, 1 << 40, 1 << 40),
    ],
    ids=["another donor", "no log", "negative", "more than it says", "too long", "a terabyte"],
)
@pytest.mark.parametrize("kind", ["log", "state"])
def test_only_the_state_that_was_asked_for_is_taken(sender: PeerId, log_bytes: int, size: int, kind: str) -> None:
    desk = Desk()
    desk.courier.expect_state(DONOR)
    assert desk.courier.sink(sender, header(kind=kind, shard=log_bytes), size) is None
    assert not desk.courier.is_receiving_state


def test_what_is_neither_a_shard_nor_a_log_is_handed_on() -> None:
    desk = Desk()
    desk.courier.sink(OTHER, b"a blob's", 7)
    desk.courier.arrived(OTHER, b"a blob's")
    assert desk.elsewhere.seen == [b"a blob's", b"a blob's"]
    desk.courier.sink(OTHER, header(), SHARD_BYTES)
    assert len(desk.elsewhere.seen) == 2


def test_a_second_piece_waits_until_the_first_is_digested() -> None:
    desk = Desk()
    desk.courier.expect_state(DONOR)
    piece = header(kind="log", shard=4)
    buffer = desk.courier.sink(DONOR, piece, 4)
    assert buffer is not None
    assert desk.courier.is_receiving_state
    assert desk.courier.sink(DONOR, piece, 4) is None  # the first is still on its way
    buffer[:] = b"1234"
    desk.courier.arrived(DONOR, piece)
    assert desk.courier.sink(DONOR, piece, 4) is None  # and now being checked
    desk.courier.expect_state(DONOR)
    assert desk.courier.sink(DONOR, piece, 4) is not None
    (fetched,) = desk.fetched
    assert (fetched.log, fetched.is_last) == (b"1234", False)


def test_a_state_nobody_waits_for_any_more_is_dropped() -> None:
    desk = Desk()
    desk.courier.expect_state(DONOR)
    data = header(kind="state", shard=64)
    assert desk.courier.sink(DONOR, data, 64) is not None
    desk.courier.expect_state(None)
    desk.courier.arrived(DONOR, data)
    assert desk.fetched == []


@settings(deadline=None)
@given(log=st.binary(min_size=1, max_size=80))
def test_a_malformed_state_is_its_donors_error(log: bytes) -> None:
    with pytest.raises(PeerError, match="malformed state") as caught:
        FetchedState(donor=DONOR, log=log, is_last=True).opened()
    assert caught.value.peer == DONOR


@pytest.mark.parametrize("is_last", [True, False], ids=["the last piece", "more to come"])
@pytest.mark.parametrize("num_entries", range(5))
async def test_a_state_arrives_as_it_was_sent(num_entries: int, is_last: bool, autojump_clock: MockClock) -> None:
    voter = Identity(bytes(32), bytes([1]) * 32).public
    log = [Decision(value=b"v" * i, view=i, votes=((voter.peer_id, b"s" * i),)) for i in range(num_entries)]
    donor, receiver = Desk(), Desk()
    receiver.courier.expect_state(DONOR)
    async with open_medium(random.Random(1)) as medium:
        medium.join(ME)
        medium.join(DONOR)
        here = medium.bulk(ME, receiver.courier.sink, receiver.courier.arrived)
        there = medium.bulk(DONOR, donor.courier.sink, donor.courier.arrived)
        here.learn(DONOR, *there.address)
        there.learn(ME, *here.address)
        await donor.courier.push_state(there, ME, 4, log, [voter.encode()], is_last=is_last)
        with pytest.raises(Unavailable):
            await donor.courier.push_state(there, STRANGER, 4, log, [voter.encode()], is_last=is_last)
    (fetched,) = receiver.fetched
    opened = fetched.opened()
    assert (opened.height, opened.decisions, opened.voters) == (4, log, (voter,))
    assert fetched.is_last is is_last


async def test_pushing_ends_when_the_round_is_over_or_the_time_is_up(autojump_clock: MockClock) -> None:
    desk = Desk()
    desk.workspace.encode(np.zeros(SIZE, np.float32), (16,), 2, NUM_SHARDS)
    parcel = desk.courier.pack(Transfer(round=2, attempt=0, step=SendUpdate(shard=0, to=OTHER)))
    assert msgspec.msgpack.decode(parcel.header, type=Header) == Header(kind="update", round=2, attempt=0, shard=0)
    async with open_medium(random.Random(1)) as medium:
        medium.join(ME)
        bulk = medium.bulk(ME, desk.courier.sink, desk.courier.arrived)
        began = trio.current_time()
        await desk.courier.push(bulk, parcel, 20.0)
        assert trio.current_time() - began == pytest.approx(20.0)
        desk.member.caught_up(1.0, replace(desk.member.state, round=3, height=9))
        await desk.courier.push(bulk, parcel, 20.0)
        assert trio.current_time() - began == pytest.approx(20.0)
