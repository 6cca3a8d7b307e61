"""A run is handed over in pieces, and nothing of it is believed unchecked. Threads do the work, so time is real."""

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from barnraise.codec.chain import codec_of
from barnraise.codec.grid import Float32
from barnraise.config import InnerConfig, RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision, Scope
from barnraise.consensus.raft_messages import VOTE_CONTEXT
from barnraise.dag.blobs import Blobs
from barnraise.dag.depot import Depot
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
from barnraise.peer.handover import ANSWER_S, PIECE_DEADLINE_S, Adoption, Followed, Giver, Taker
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
        self.accused: list[PeerError] = []
        self.bulk: MemoryBulk | None = None
        self.blobs = Blobs(home / "blobs")
        self.depot = Depot(self.blobs, self.accused.append)
        self.courier = Courier(self.member, self.workspace, self.posted.append, self.fetched.append, self.depot)
        archive = Archive(self.store, self.blobs, Drill())
        self.giver = Giver(self.member, self.workspace, archive, self.keys, self.courier, self.depot.shelf)
        self.events_file = home / "metrics.jsonl"
        events = EventLog(self.events_file)
        self.taker = Taker(self.member, self.workspace, self.keys, self.courier, events, self.depot)

    def plane(self, medium: MemoryMedium) -> MemoryBulk:
        medium.join(self.id)
        self.bulk = medium.bulk(self.id, self.courier.sink, self.courier.arrived)
        return self.bulk


@asynccontextmanager
async def pair(tmp_path: Path, donor: Side, taker: Side) -> AsyncIterator[tuple[MemoryBulk, trio.Nursery]]:
    """Connect two peers, the donor at work; give its bulk plane."""
    with trio.fail_after(30.0):
        async with open_medium(random.Random(1)) as medium, trio.open_nursery() as nursery:
            there, here = donor.plane(medium), taker.plane(medium)
            there.learn(taker.id, *here.address)
            here.learn(donor.id, *there.address)
            taker.member.presence.up(donor.id, 0.0)
            nursery.start_soon(donor.depot.shelf.serve, there)
            await trio.testing.wait_all_tasks_blocked()
            yield there, nursery
            nursery.cancel_scope.cancel()
    donor.store.close()
    taker.store.close()


def donor_at(tmp_path: Path, num_entries: int = len(LOG), *, is_hollow: bool = False) -> Side:
    side = Side(DONOR, tmp_path / "donor", log=LOG[:num_entries], is_hollow=is_hollow)
    for voter in VOTERS:
        side.keys.add(voter.public)
    return side


async def followed(taker: Side, pause_s: float = 0.0) -> Followed:
    """Check one piece of the log after another, each after a pause."""
    done = 0
    while True:
        while len(taker.fetched) <= done:  # noqa: ASYNC110  # the courier calls back, which has no trio.Event
            await trio.sleep(0.01)
        await trio.sleep(pause_s)
        found = taker.taker.take(taker.fetched[done])
        done += 1
        if found is not None:
            return found


async def digested(taker: Side, pause_s: float = 0.0) -> Adoption:
    """Check the log, and fetch the tensors."""
    log = await followed(taker, pause_s)
    assert taker.taker.donor is None, "nothing depends on the log's donor any more"
    assert taker.bulk is not None
    adoption = await taker.taker.gather(taker.bulk, log)
    assert adoption is not None
    residual = taker.taker.conclude(adoption)
    assert residual is not None
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
    assert (adoption.followed.asked.height, adoption.followed.log, adoption.followed.state) == (first, LOG[first:], END)
    assert [tensor.tobytes() for tensor in adoption.tensors] == [tensor.tobytes() for tensor in TENSORS]
    assert [vertex.round for vertex in adoption.followed.vertices] == list(range(first // 2 + 1, 5))
    assert [fetched.is_last for fetched in taker.fetched] == [False] * (pieces - 1) + [True]
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
    assert adoption.followed.state == END
    assert {msgspec.msgpack.decode(header, type=Header).kind for header in refused} == {"log", "state"}


async def test_who_has_the_log_and_no_tensors_gets_them_alone(tmp_path: Path) -> None:
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker", log=LOG, is_hollow=True)
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        nursery.start_soon(donor.giver.give, plane, ask(taker))
        adoption = await digested(taker)
    assert (adoption.followed.log, adoption.followed.state) == ([], END)
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
    assert adoption.followed.state == END


async def test_a_peer_is_served_once_at_a_time(tmp_path: Path) -> None:
    donor, taker = donor_at(tmp_path), Side(ME, tmp_path / "taker")
    async with pair(tmp_path, donor, taker) as (plane, nursery):
        asked = ask(taker)
        for _ in range(3):
            nursery.start_soon(donor.giver.give, plane, asked)
        await digested(taker)
    assert len(taker.fetched) == 1


# ---- tensors from everybody who has them --------------------------------------------------------------------------


@asynccontextmanager
async def several(tmp_path: Path, taker: Side) -> AsyncIterator[tuple[list[Side], MemoryMedium, trio.Nursery]]:
    """Connect a peer with two donors at the end of the log; the log's is the first."""
    donors = [Side(voter, tmp_path / f"donor-{place}", log=LOG) for place, voter in enumerate(VOTERS)]
    with trio.fail_after(30.0):
        async with open_medium(random.Random(1), bytes_per_s=1e5) as medium, trio.open_nursery() as nursery:
            here = taker.plane(medium)
            for donor in donors:
                there = donor.plane(medium)
                there.learn(taker.id, *here.address)
                here.learn(donor.id, *there.address)
                donor.keys.add(VOTERS[0].public)
                donor.keys.add(VOTERS[1].public)
                for tensor in TENSORS:
                    donor.blobs.put(tensor)
                taker.member.presence.up(donor.id, 0.0)
                taker.member.presence.note(donor.id, height=len(LOG), wants_in=False, wants_out=False, is_hollow=False)
                nursery.start_soon(donor.depot.shelf.serve, there)
            await trio.testing.wait_all_tasks_blocked()
            yield donors, medium, nursery
            nursery.cancel_scope.cancel()
    for side in (taker, *donors):
        side.store.close()


def fetched_from(taker: Side) -> list[str]:
    """Return who the tensors came from, as the peer tells."""
    (event,) = [json.loads(line) for line in taker.events_file.read_text().splitlines()]
    assert (event["event"], event["vertex"]) == ("peer.fetched", END.vertex.hex())
    return list(event["donors"])


async def test_the_tensors_come_from_all_who_are_that_far(tmp_path: Path) -> None:
    taker = Side(ME, tmp_path / "taker")
    async with several(tmp_path, taker) as (donors, _, nursery):
        assert taker.bulk is not None
        nursery.start_soon(donors[0].giver.give, donors[0].bulk, ask(taker))
        adoption = await digested(taker)
    assert [tensor.tobytes() for tensor in adoption.tensors] == [tensor.tobytes() for tensor in TENSORS]
    assert fetched_from(taker) == sorted(donor.id for donor in donors)


async def test_the_logs_donor_may_die_once_the_log_is_here(tmp_path: Path) -> None:
    taker = Side(ME, tmp_path / "taker")
    async with several(tmp_path, taker) as (donors, medium, nursery):
        assert taker.bulk is not None
        nursery.start_soon(donors[0].giver.give, donors[0].bulk, ask(taker))
        log = await followed(taker)
        medium.crash(donors[0].id)
        taker.member.presence.down(donors[0].id)
        adoption = await taker.taker.gather(taker.bulk, log)
    assert adoption is not None
    assert fetched_from(taker) == [donors[1].id]


async def test_who_has_not_said_that_it_is_that_far_is_not_asked(tmp_path: Path) -> None:
    taker = Side(ME, tmp_path / "taker")
    async with several(tmp_path, taker) as (donors, _, nursery):
        other = donors[1].id
        taker.member.presence.note(other, height=len(LOG) - 1, wants_in=False, wants_out=False, is_hollow=False)
        nursery.start_soon(donors[0].giver.give, donors[0].bulk, ask(taker))
        await digested(taker)
    assert fetched_from(taker) == [donors[0].id]


async def test_what_is_on_disk_already_is_not_fetched(tmp_path: Path) -> None:
    taker = Side(ME, tmp_path / "taker")
    for tensor in TENSORS:
        taker.blobs.put(tensor)
    async with several(tmp_path, taker) as (donors, _, nursery):
        nursery.start_soon(donors[0].giver.give, donors[0].bulk, ask(taker))
        adoption = await digested(taker)
    assert adoption.followed.state == END
    assert not taker.events_file.exists() or "peer.fetched" not in taker.events_file.read_text()


async def test_giving_up_ends_the_download(tmp_path: Path) -> None:
    taker = Side(ME, tmp_path / "taker")
    async with several(tmp_path, taker) as (donors, medium, nursery):
        assert taker.bulk is not None
        nursery.start_soon(donors[0].giver.give, donors[0].bulk, ask(taker))
        log = await followed(taker)
        for donor in donors:
            medium.crash(donor.id)
        async with trio.open_nursery() as inner:

            @inner.start_soon
            async def give_up() -> None:
                await trio.sleep(0.3)
                taker.taker.give_up()

            assert await taker.taker.gather(taker.bulk, log) is None
        assert taker.depot.num_arrived == 0


# ---- what a hostile donor may send --------------------------------------------------------------------------------


def piece_of(
    log: Sequence[Decision],
    height: int = 0,
    donor: Identity = DONOR,
    voters: Sequence[Identity] = VOTERS,
    *,
    is_last: bool = True,
) -> FetchedState:
    entries = tuple((decision.view, decision.value, decision.votes) for decision in log)
    body = msgspec.msgpack.encode((height, entries, tuple(voter.public.encode() for voter in voters)))
    return FetchedState(donor=donor.peer_id, log=body, is_last=is_last)


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
        pytest.param(piece_of(LOG[:1]), "leads to no checkpoint", id="only a cut"),
        pytest.param(piece_of([]), "leads to no checkpoint", id="nothing new"),
        pytest.param(piece_of([], is_last=False), "without an entry", id="a piece of nothing, before the next"),
        pytest.param(
            piece_of([decision_of(entry_of(log_of(1)[1]), 0)]), "entry|cannot come|does not follow", id="a result first"
        ),
        pytest.param(FetchedState(donor=DONOR.peer_id, log=b"\xc1", is_last=True), "malformed state", id="no log"),
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
    taker.taker.refuse(piece.donor, error)
    assert taker.taker.donor is None
    assert "peer.refused" in taker.events_file.read_text()
    assert taker.taker.take(piece_of(LOG)) is None  # given up: what still comes of it is not looked at


def test_a_second_piece_must_go_on_where_the_first_ended(taker: Side) -> None:
    for second in (piece_of(LOG[4:], 4), piece_of(LOG, 0), piece_of(LOG[3:], 2)):
        ask(taker)
        assert taker.taker.take(piece_of(LOG[:3], is_last=False)) is None
        with pytest.raises(LocalError, match=r"goes on at height|no quorum"):
            taker.taker.take(second)
    ask(taker)
    assert taker.taker.take(piece_of(LOG[:3], is_last=False)) is None
    found = taker.taker.take(piece_of(LOG[3:], 3))
    assert found is not None
    assert found.state == END


def test_a_state_that_was_not_asked_for_is_not_looked_at(taker: Side) -> None:
    assert taker.taker.take(piece_of(LOG)) is None
    ask(taker)
    assert taker.taker.take(piece_of(LOG, donor=VOTERS[1])) is None
    assert taker.taker.take(piece_of(LOG)) is not None


async def test_a_state_that_comes_when_we_have_gone_on_is_refused(taker: Side) -> None:
    ask(taker)
    log = taker.taker.take(piece_of(LOG))
    assert log is not None
    taker.member.state = log_of(2)[1]
    with pytest.raises(LocalError, match="gone on meanwhile"):
        taker.taker.conclude(Adoption(followed=log, tensors=TENSORS))
    taker.taker.give_up()
    assert taker.taker.conclude(Adoption(followed=log, tensors=TENSORS)) is None


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
    assert taker.taker.take(piece_of(LOG[:2], is_last=False)) is None
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
                taker.taker.take(piece_of(LOG[first : first + 2], first, is_last=False))

        assert await taker.taker.watch(asked)
    assert trio.current_time() - began == pytest.approx(ANSWER_S + 2 * PIECE_DEADLINE_S)


async def test_a_watch_ends_when_the_state_is_there(taker: Side, autojump_clock: MockClock) -> None:
    asked = CatchUp(donor=DONOR.peer_id, height=0)
    taker.taker.begin(asked)
    log = taker.taker.take(piece_of(LOG))
    assert log is not None
    assert taker.taker.conclude(Adoption(followed=log, tensors=TENSORS)) is not None
    assert not await taker.taker.watch(asked)


def test_whose_cut_the_log_concludes_keeps_the_residual_of_its_update(tmp_path: Path) -> None:
    """Our update was in a cut whose result we missed: what rounding took from it is what a later round makes good."""
    senior = min(VOTERS, key=lambda voter: voter.peer_id)
    side = Side(senior, tmp_path / "side", log=LOG[:1])
    side.workspace.residual_after = np.ones(SIZE, np.float32)
    ask(side)
    log = side.taker.take(piece_of(LOG[1:], 1, donor=DONOR))
    assert log is not None
    residual = side.taker.conclude(Adoption(followed=log, tensors=TENSORS))
    assert residual is not None
    assert residual.tobytes() == np.ones(SIZE, np.float32).tobytes()
    side.store.close()
