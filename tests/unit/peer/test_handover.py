"""A run is handed over in pieces, and nothing of it is believed unchecked. Threads do the work, so time is real."""

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from barnraise.codec.chain import codec_of
from barnraise.codec.grid import Float32
from barnraise.config import InnerConfig, RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision, Scope
from barnraise.consensus.voting import VOTE_CONTEXT
from barnraise.dag.blobs import Blobs
from barnraise.dag.store import Store
from barnraise.errors import LocalError, PeerError
from barnraise.identity import Identity
from barnraise.ids import EMPTY_DIGEST, PeerId
from barnraise.net.memory import MemoryBulk, MemoryMedium, open_medium
from barnraise.observe.events import EventLog
from barnraise.peer import handover
from barnraise.peer.archive import Archive
from barnraise.peer.courier import Courier, FetchedState, Header
from barnraise.peer.faults import Drill
from barnraise.peer.handover import ANSWER_S, PIECE_DEADLINE_S, Adoption, Giver, Taker
from barnraise.peer.keyring import Keyring
from barnraise.swarm import records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.effects import CatchUp, Effect, SendState
from barnraise.swarm.member import Member
from barnraise.swarm.records import Contribution, Cut, LogEvent, Metrics, Result
from barnraise.swarm.state import State, apply, genesis
from barnraise.swarm.workspace import Workspace, root_of

SIZE = 300
VOTERS = tuple(Identity(bytes([number]) * 32, bytes([number + 100]) * 32) for number in range(2))
DONOR, ME = VOTERS[0], Identity(bytes([9]) * 32, bytes([10]) * 32)
CONFIG = RunConfig(
    founders=tuple(sorted(voter.peer_id for voter in VOTERS)),
    inner=InnerConfig(batch_size=2),
    round=RoundConfig(rounds=50, steps=3),
)
ZEROS = np.zeros(SIZE, np.float32)


def theta_after(rounds: int) -> Float32:
    return np.full(SIZE, np.float32(rounds) / np.float32(8), np.float32)


def first_state() -> State:
    return genesis(CONFIG, 1, root_of(theta_after(0)), root_of(ZEROS))


def entry_of(state: State) -> LogEvent:
    """Return the entry after a state: a cut, or its result."""
    if state.cut is None:
        return Cut(
            run=state.run,
            epoch=state.epoch,
            round=state.round,
            attempt=state.attempt,
            previous=state.head,
            contributions=tuple(Contribution(peer, EMPTY_DIGEST, 6) for peer in state.peers),
        )
    return Result(
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=records.digest(records.encode(state.cut)),
        excluded=(),
        gram=EMPTY_DIGEST,
        aggregate_root=bytes(32),
        theta_root=root_of(theta_after(state.round + 1)),
        momentum_root=root_of(ZEROS),
        exponents=(16,),
        metrics=Metrics(1, 1, 1),
        ledger=EMPTY_DIGEST,
        joined=(),
        left=(),
        time=0,
        vertex=EMPTY_DIGEST,
    )


def decision_of(event: LogEvent, height: int, voters: Sequence[Identity] = VOTERS) -> Decision:
    value = records.encode(event)
    signed = Scope(run=event.run, epoch=event.epoch, height=height).statement(0, records.digest(value))
    return Decision(value=value, view=0, votes=tuple((v.peer_id, v.sign(VOTE_CONTEXT, signed)) for v in voters))


def log_of(num_entries: int) -> tuple[list[Decision], State]:
    state, log = first_state(), list[Decision]()
    for height in range(num_entries):
        event = entry_of(state)
        log.append(decision_of(event, height))
        state = apply(state, event)
    return log, state


LOG, END = log_of(8)
"""Four rounds."""
TENSORS = (theta_after(4), ZEROS)


class Side:
    """One of the two peers, with all that handing over needs."""

    def __init__(
        self, identity: Identity, home: Path, *, log: Sequence[Decision] = (), is_hollow: bool = False
    ) -> None:
        home.mkdir()
        state = first_state()
        for decision in log:
            state = apply(state, records.decode_event.decode(decision.value))
        self.id = identity.peer_id
        self.keys = Keyring(identity, home / "voters")
        self.store = Store(home / "log.sqlite", CONFIG.run_id)
        self.store.append(0, list(log), (), None)
        self.member = Member(
            me=self.id,
            state=state,
            sign=identity.sign,
            verify=self.keys.verify,
            now=0.0,
            peer_timeout_s=30.0,
            is_hollow=is_hollow,
        )
        theta = ZEROS.copy() if is_hollow else theta_after(state.round)
        self.workspace = Workspace(
            ((0, SIZE),), theta, ZEROS.copy(), ZEROS.copy(), codec=codec_of(CONFIG.round.codec, np.int16)
        )
        self.fetched: list[FetchedState] = []
        self.posted: list[Callable[[float], list[Effect]]] = []
        self.courier = Courier(self.member, self.workspace, self.posted.append, self.fetched.append)
        archive = Archive(self.store, Blobs(home / "blobs"), Drill())
        self.giver = Giver(self.member, self.workspace, archive, self.keys, self.courier)
        self.events_file = home / "metrics.jsonl"
        self.taker = Taker(self.member, self.workspace, self.keys, self.courier, EventLog(self.events_file))

    def plane(self, medium: MemoryMedium) -> MemoryBulk:
        medium.join(self.id)
        return medium.bulk(self.id, self.courier.sink, self.courier.arrived)


@asynccontextmanager
async def pair(tmp_path: Path, donor: Side, taker: Side) -> AsyncIterator[tuple[MemoryBulk, trio.Nursery]]:
    """Connect two peers; give the donor's bulk plane."""
    with trio.fail_after(30.0):
        async with open_medium(random.Random(1)) as medium, trio.open_nursery() as nursery:
            there, here = donor.plane(medium), taker.plane(medium)
            there.learn(taker.id, *here.address)
            here.learn(donor.id, *there.address)
            yield there, nursery
            nursery.cancel_scope.cancel()
    donor.store.close()
    taker.store.close()


def donor_at(tmp_path: Path, num_entries: int = len(LOG), *, is_hollow: bool = False) -> Side:
    side = Side(DONOR, tmp_path / "donor", log=LOG[:num_entries], is_hollow=is_hollow)
    for voter in VOTERS:
        side.keys.add(voter.public)
    return side


async def digested(taker: Side, pause_s: float = 0.0) -> Adoption:
    """Check one piece after another, each after a pause."""
    done = 0
    while True:
        while len(taker.fetched) <= done:  # noqa: ASYNC110  # the courier calls back, which has no trio.Event
            await trio.sleep(0.01)
        await trio.sleep(pause_s)
        adoption = taker.taker.take(taker.fetched[done])
        done += 1
        if adoption is not None:
            return adoption


def ask(taker: Side) -> SendState:
    """Expect the donor's state, from our height on."""
    height = taker.member.state.height
    taker.taker.begin(CatchUp(donor=DONOR.peer_id, height=height))
    return SendState(to=taker.id, height=height, is_hollow=taker.member.is_hollow)


@pytest.mark.parametrize(
    ("entries_a_piece", "first", "pieces"), [(512, 0, 1), (8, 0, 1), (3, 0, 3), (1, 0, 8), (3, 2, 2), (4, 7, 1)]
)
async def test_a_run_is_handed_over_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries_a_piece: int, first: int, pieces: int
) -> None:
    monkeypatch.setattr(handover, "PIECE_ENTRIES", entries_a_piece)
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker", log=LOG[:first])
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        nursery.start_soon(donor.giver.give, plane, ask(taker))
        adoption = await digested(taker)
    assert (adoption.height, adoption.log, adoption.state) == (first, LOG[first:], END)
    assert [tensor.tobytes() for tensor in adoption.tensors] == [tensor.tobytes() for tensor in TENSORS]
    assert [vertex.round for vertex in adoption.vertices] == list(range(first // 2 + 1, 5))
    assert [fetched.tensors is None for fetched in taker.fetched] == [True] * (pieces - 1) + [False]
    assert taker.taker.donor is None


async def test_a_second_piece_is_refused_until_the_first_is_digested_and_then_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PIECE_ENTRIES", 3)
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker")
    refused: list[bytes] = []
    sink = taker.courier.sink

    def watched(sender: PeerId, header: bytes, size: int) -> memoryview | None:
        place = sink(sender, header, size)
        refused.extend([header] if place is None else [])
        return place

    monkeypatch.setattr(taker.courier, "sink", watched)
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        nursery.start_soon(donor.giver.give, plane, ask(taker))
        adoption = await digested(taker, pause_s=0.2)
    assert adoption.state == END
    assert {msgspec.msgpack.decode(header, type=Header).kind for header in refused} == {"log", "state"}


async def test_who_has_the_log_and_no_tensors_gets_them_alone(tmp_path: Path) -> None:
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker", log=LOG, is_hollow=True)
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        nursery.start_soon(donor.giver.give, plane, ask(taker))
        adoption = await digested(taker)
    assert (adoption.height, adoption.log, adoption.state) == (len(LOG), [], END)
    assert adoption.tensors[0].tobytes() == TENSORS[0].tobytes()


@pytest.mark.parametrize("why", ["as far as we are", "behind us", "without tensors", "in the middle of a step"])
async def test_a_donor_that_has_nothing_to_give_sends_nothing(tmp_path: Path, why: str) -> None:
    donor = donor_at(tmp_path, 4 if why == "behind us" else 8, is_hollow=why == "without tensors")
    taker = Side(ME, tmp_path / "taker", log=LOG[: 8 if why == "as far as we are" else 6 if why == "behind us" else 0])
    if why == "in the middle of a step":
        donor.courier.round -= 1  # its tensors are still those of the round before
    async with pair(tmp_path, donor, taker) as (plane, _):
        await donor.giver.give(plane, ask(taker))
        assert plane.bytes_sent == 0


async def test_entries_that_are_not_on_the_donors_disk_yet_are_not_sent(tmp_path: Path) -> None:
    donor, taker = donor_at(tmp_path, 7), Side(ME, tmp_path / "taker")
    donor.member.state = END
    donor.courier.round = END.round
    async with pair(tmp_path, donor, taker) as (plane, _):
        await donor.giver.give(plane, ask(taker))
        assert plane.bytes_sent == 0


async def test_a_donor_that_was_started_again_still_has_the_keys_of_voters_that_are_gone(tmp_path: Path) -> None:
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker")
    adopt(first_state(), LOG, donor.keys.verify)
    donor.giver._keys = Keyring(DONOR, tmp_path / "donor" / "voters")
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        nursery.start_soon(donor.giver.give, plane, ask(taker))
        adoption = await digested(taker)
    assert adoption.state == END


async def test_a_peer_is_served_once_at_a_time(tmp_path: Path) -> None:
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker")
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        asked = ask(taker)
        for _ in range(3):
            nursery.start_soon(donor.giver.give, plane, asked)
        await digested(taker)
    assert len(taker.fetched) == 1


# ---- what a hostile donor may send --------------------------------------------------------------------------------


def piece_of(
    log: Sequence[Decision],
    height: int = 0,
    tensors: tuple[Float32, Float32] | None = TENSORS,
    donor: Identity = DONOR,
    voters: Sequence[Identity] = VOTERS,
) -> FetchedState:
    entries = tuple((decision.view, decision.value, decision.votes) for decision in log)
    body = msgspec.msgpack.encode((height, entries, tuple(voter.public.encode() for voter in voters)))
    return FetchedState(donor=donor.peer_id, log=body, tensors=tensors)


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[Side]:
    side = Side(ME, tmp_path / "taker")
    yield side
    side.store.close()


def forged(height: int) -> list[Decision]:
    """Return the log with an entry that one of two members voted on, the junior."""
    junior = max(VOTERS, key=lambda voter: voter.peer_id)
    return [
        *LOG[:height],
        decision_of(records.decode_event.decode(LOG[height].value), height, [junior]),
        *LOG[height + 1 :],
    ]


@pytest.mark.parametrize(
    ("piece", "complaint"),
    [
        pytest.param(piece_of(LOG[2:], 2), "goes on at height 2 and we are at 0", id="another height"),
        pytest.param(piece_of(LOG, 1), "goes on at height 1", id="a height that is not its log's"),
        pytest.param(piece_of(LOG[1:]), "no quorum", id="a log that begins later"),
        pytest.param(piece_of([*LOG[:3], *LOG[4:]]), "no quorum", id="a log with a hole"),
        pytest.param(piece_of(forged(5)), "votes for height 5 are no quorum", id="a vote too few"),
        pytest.param(piece_of([replace(LOG[0], votes=()), *LOG[1:]]), "votes for height 0", id="no votes"),
        pytest.param(piece_of([replace(LOG[0], view=1), *LOG[1:]]), "votes for height 0", id="votes of another view"),
        pytest.param(piece_of(LOG, voters=()), "votes for height 0", id="voters that nobody knows"),
        pytest.param(piece_of(LOG, tensors=(theta_after(3), ZEROS)), "tensors are not those", id="older parameters"),
        pytest.param(piece_of(LOG, tensors=(TENSORS[0], TENSORS[0])), "tensors are not those", id="another momentum"),
        pytest.param(piece_of(LOG[:5]), "tensors are not those", id="tensors beyond the log"),
        pytest.param(piece_of(LOG[:1], tensors=(theta_after(0), ZEROS)), "leads to no checkpoint", id="only a cut"),
        pytest.param(piece_of([], tensors=(theta_after(0), ZEROS)), "leads to no checkpoint", id="nothing new"),
        pytest.param(piece_of([], tensors=None), "without an entry", id="a piece of nothing, before the next"),
        pytest.param(
            piece_of([decision_of(entry_of(log_of(1)[1]), 0)]), "entry|cannot come|does not follow", id="a result first"
        ),
        pytest.param(FetchedState(donor=DONOR.peer_id, log=b"\xc1", tensors=TENSORS), "malformed state", id="no log"),
    ],
)
async def test_what_does_not_hold_is_refused_and_changes_nothing(
    taker: Side, piece: FetchedState, complaint: str
) -> None:
    ask(taker)
    before = taker.member.state
    with pytest.raises((LocalError, PeerError), match=complaint) as caught:
        taker.taker.take(piece)
    assert taker.member.state == before
    error = caught.value
    assert isinstance(error, LocalError | PeerError)
    taker.taker.refuse(piece, error)
    assert taker.taker.donor is None
    assert "peer.refused" in taker.events_file.read_text()
    assert taker.taker.take(piece_of(LOG)) is None  # given up: what still comes of it is not looked at


def test_a_second_piece_must_go_on_where_the_first_ended(taker: Side) -> None:
    for second in (piece_of(LOG[4:], 4), piece_of(LOG, 0), piece_of(LOG[3:], 2)):
        ask(taker)
        assert taker.taker.take(piece_of(LOG[:3], tensors=None)) is None
        with pytest.raises(LocalError, match=r"goes on at height|no quorum"):
            taker.taker.take(second)
    ask(taker)
    assert taker.taker.take(piece_of(LOG[:3], tensors=None)) is None
    adoption = taker.taker.take(piece_of(LOG[3:], 3))
    assert adoption is not None
    assert adoption.state == END


def test_a_state_that_was_not_asked_for_is_not_looked_at(taker: Side) -> None:
    assert taker.taker.take(piece_of(LOG)) is None
    ask(taker)
    assert taker.taker.take(piece_of(LOG, donor=VOTERS[1])) is None
    assert taker.taker.take(piece_of(LOG)) is not None


def test_a_state_that_comes_when_we_have_gone_on_is_refused(taker: Side) -> None:
    ask(taker)
    taker.member.state = log_of(2)[1]
    with pytest.raises(LocalError, match="gone on meanwhile"):
        taker.taker.take(piece_of(LOG))


def test_a_donor_that_was_given_up_does_not_stand_in_the_way_of_the_next(
    taker: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A piece is checked in a thread; 2. its donor is gone, and another one is asked; 3. the check ends."""
    other = VOTERS[1].peer_id
    ask(taker)
    verify = taker.keys.verify

    def meanwhile(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        taker.taker.begin(CatchUp(donor=other, height=0))
        return verify(peer, context, message, signature)

    monkeypatch.setattr(taker.keys, "verify", meanwhile)
    assert taker.taker.take(piece_of(LOG[:2], tensors=None)) is None
    assert taker.taker.donor == other
    header = msgspec.msgpack.encode(("log", 0, 0, 64))
    assert taker.courier.sink(DONOR.peer_id, header, 64) is None
    assert taker.courier.sink(other, header, 64) is not None


async def test_a_donor_that_does_not_answer_is_given_up(taker: Side, autojump_clock: MockClock) -> None:
    asked = CatchUp(donor=DONOR.peer_id, height=0)
    taker.taker.begin(asked)
    began = trio.current_time()
    assert await taker.taker.watch(asked)
    assert trio.current_time() - began == pytest.approx(ANSWER_S)


async def test_a_donor_is_given_time_while_pieces_keep_coming(taker: Side, autojump_clock: MockClock) -> None:
    asked = CatchUp(donor=DONOR.peer_id, height=0)
    taker.taker.begin(asked)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def donate() -> None:
            for first, wait_s in ((0, ANSWER_S - 1.0), (2, PIECE_DEADLINE_S / 2)):
                await trio.sleep(wait_s)
                taker.taker.take(piece_of(LOG[first : first + 2], first, tensors=None))

        assert await taker.taker.watch(asked)
    assert trio.current_time() - began == pytest.approx(ANSWER_S + 2 * PIECE_DEADLINE_S)


async def test_a_watch_ends_when_the_state_is_there(taker: Side, autojump_clock: MockClock) -> None:
    asked = CatchUp(donor=DONOR.peer_id, height=0)
    taker.taker.begin(asked)
    assert taker.taker.take(piece_of(LOG)) is not None
    assert not await taker.taker.watch(asked)


def test_whose_cut_the_log_concludes_keeps_the_residual_of_its_update(tmp_path: Path) -> None:
    """Our update was in a cut whose result we missed: what rounding took from it is what a later round makes good."""
    senior = min(VOTERS, key=lambda voter: voter.peer_id)
    side = Side(senior, tmp_path / "side", log=LOG[:1])
    side.workspace.residual_after = np.ones(SIZE, np.float32)
    ask(side)
    adoption = side.taker.take(piece_of(LOG[1:], 1, donor=DONOR))
    assert adoption is not None
    assert adoption.residual.tobytes() == np.ones(SIZE, np.float32).tobytes()
    side.store.close()
