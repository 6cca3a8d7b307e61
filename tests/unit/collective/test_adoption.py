"""Graphs that all ranks plan by: never two at once for one collective, whatever is late, lost or not answered."""

import random
from collections import deque

import msgspec
import pytest

from barnraise.collective import adoption
from barnraise.collective.adoption import (
    GATHER_S,
    LEARN_S,
    MAX_BYTES,
    MAX_GRAPH_MEMBERS,
    PROMISE_TIMEOUT_S,
    PROPOSE_S,
    REPEAT_S,
    TELL_S,
    Adoption,
    Message,
    Promised,
    Proposed,
    Settled,
    Tell,
    Told,
    decode,
    encode,
)
from barnraise.collective.links import Row
from barnraise.errors import PeerError
from barnraise.ids import PeerId

PEER = PeerId("somebody")


def row_of(count: int, latency_us: int = 100, bandwidth_kb_s: int = 1000) -> Row:
    return Row(0, 0, (latency_us,) * count, (bandwidth_kb_s,) * count)


class Group:
    """Ranks that take whatever they are told at once, in order; ``lost`` says between whom nothing passes."""

    def __init__(self, count: int) -> None:
        self.ranks = [Adoption(rank, tuple(range(count))) for rank in range(count)]
        self.called = [0] * count
        self.lost: set[tuple[int, int]] = set()
        self.said: list[Message] = []

    def carry(self, sender: int, effects: list[Tell], now: float) -> None:
        waiting = deque((sender, effect) for effect in effects)
        while waiting:
            sender, effect = waiting.popleft()
            self.said.append(effect.message)
            if (sender, effect.to) not in self.lost:
                answers = self.ranks[effect.to].heard(now, sender, effect.message, self.called[effect.to])
                waiting.extend((effect.to, answer) for answer in answers)

    def measure(self, now: float, row: Row) -> None:
        for rank, part in enumerate(self.ranks):
            self.carry(rank, part.measured(now, row, self.called[rank]), now)

    def tick(self, now: float) -> None:
        for rank, part in enumerate(self.ranks):
            self.carry(rank, part.tick(now, self.called[rank]), now)

    def versions(self, sequence: int, epoch: int = 0) -> list[int | None]:
        return [graph.version if (graph := part.at(epoch, sequence)) else None for part in self.ranks]


def settled_group(count: int = 3) -> Group:
    group = Group(count)
    group.measure(0.0, row_of(count))
    group.tick(0.1)
    return group


def test_a_graph_that_comes_before_all_calls_holds_for_all() -> None:
    group = settled_group()
    assert group.versions(1) == [1, 1, 1]
    assert len({part.at(0, 1).digest for part in group.ranks}) == 1  # type: ignore[union-attr]  # they hold it
    assert not any(part.must_wait(1) for part in group.ranks)


def test_a_graph_holds_from_a_collective_on_that_nobody_can_have_begun() -> None:
    group = Group(3)
    group.called = [5, 6, 5]
    group.measure(0.0, row_of(3))
    group.tick(0.1)
    assert group.versions(7) == [None] * 3
    assert group.versions(8) == [1] * 3


def test_who_has_promised_waits_until_it_hears() -> None:
    group = Group(3)
    group.called = [5, 5, 5]
    group.lost = {(0, 2)}
    group.measure(0.0, row_of(3))
    group.tick(0.1)  # rank 2 hears of nothing; the others have promised
    assert [part.must_wait(6) for part in group.ranks] == [False] * 3
    assert [part.must_wait(7) for part in group.ranks] == [True, True, False]
    assert group.ranks[1].promised_at == 0.1
    group.lost.clear()
    group.tick(0.1 + REPEAT_S)
    assert group.versions(7) == [1] * 3
    assert not any(part.must_wait(7) for part in group.ranks)


def test_a_graph_that_somebody_does_not_promise_is_dropped() -> None:
    group = Group(3)
    group.called = [5, 5, 5]
    group.lost = {(0, 2)}
    group.measure(0.0, row_of(3))
    for turn in range(8):
        group.tick(0.1 + 0.2 * turn)
    assert PROMISE_TIMEOUT_S < 0.1 + 0.2 * 7
    assert not any(part.must_wait(100) for part in group.ranks)
    assert group.versions(100) == [None] * 3
    group.lost.clear()
    group.tick(0.1 + LEARN_S)
    assert group.versions(100) == [2] * 3


def test_who_missed_the_end_of_a_version_asks_for_it() -> None:
    group = Group(2)
    group.called = [5, 5]
    group.measure(0.0, row_of(2))
    proposal = group.ranks[0].tick(0.1, 5)
    (promise,) = group.ranks[1].heard(0.1, 0, proposal[0].message, 5)
    (end,) = group.ranks[0].heard(0.1, 1, promise.message, 5)
    assert isinstance(end.message, Settled)  # and it is lost
    assert group.ranks[1].must_wait(7)
    group.tick(0.1 + REPEAT_S)
    assert group.versions(7) == [1, 1]


def test_a_later_proposal_says_what_became_of_the_one_before() -> None:
    group = Group(2)
    group.called = [5, 5]
    group.measure(0.0, row_of(2))
    proposal = group.ranks[0].tick(0.1, 5)
    (promise,) = group.ranks[1].heard(0.1, 0, proposal[0].message, 5)
    group.ranks[0].heard(0.1, 1, promise.message, 5)  # what this answers is lost
    group.measure(20.0, row_of(2, 200))
    group.tick(20.0)
    assert group.versions(7)[1] == 2
    assert len(set(group.versions(7))) == 1


def test_rows_are_told_when_they_are_news_and_now_and_then() -> None:
    part = Adoption(1, (0, 1))
    assert part.measured(0.0, row_of(2, 0, 0), 0) == []  # nothing is known
    assert part.measured(1.0, row_of(2, 100), 0) == [Tell(0, Told(0, row_of(2, 100)))]
    assert part.measured(2.0, row_of(2, 119), 0) == []
    assert part.measured(3.0, row_of(2, 121), 0) != []
    assert part.measured(3.0 + TELL_S, row_of(2, 121), 0) != []


def test_graphs_follow_each_other_no_faster_than_is_good() -> None:
    group = settled_group(2)
    for now, latency_us in ((3.0, 300), (9.0, 900)):
        group.measure(now, row_of(2, latency_us))
        group.tick(now)
    assert group.versions(1) == [1, 1]
    group.tick(0.1 + PROPOSE_S)
    assert group.versions(1) == [2, 2]
    group.tick(30.0)
    assert group.versions(1) == [2, 2]  # nothing has changed


def test_graphs_of_an_idle_time_leave_the_one_before_to_the_next_call() -> None:
    group = settled_group(2)
    group.called = [5, 5]
    for turn in range(1, 5):
        group.measure(20.0 * turn, row_of(2, 1000 * turn))
        group.tick(20.0 * turn)
        group.tick(20.0 * turn + 1)
    assert group.versions(6) == [1, 1]
    assert group.versions(7) == [5, 5]
    assert len(group.ranks[0]._holds) == 2


def test_what_was_not_known_at_all_is_worth_a_graph_sooner() -> None:
    group = Group(2)
    group.measure(0.0, row_of(2, 100, 0))
    group.tick(0.1)
    group.measure(1.0, row_of(2, 100, 500))
    group.tick(1.0)
    assert group.versions(1) == [1, 1]
    group.tick(0.1 + LEARN_S)
    assert group.versions(1) == [2, 2]


def test_the_first_graph_does_not_wait_for_ever_for_a_row() -> None:
    group = Group(3)
    for rank in (0, 1):
        group.carry(rank, group.ranks[rank].measured(0.0, row_of(3), 0), 0.0)
    group.tick(1.0)
    assert group.versions(1) == [None] * 3
    group.tick(GATHER_S)
    assert group.versions(1) == [1] * 3


def test_a_decision_frees_from_promises_and_graphs() -> None:
    group = settled_group()
    group.called = [5, 5, 5]
    group.measure(20.0, row_of(3, 900))
    group.lost = {(0, 2), (2, 0)}
    group.tick(20.0)
    assert group.ranks[1].must_wait(7)
    for rank in (1, 2):
        group.carry(rank, group.ranks[rank].decided(21.0, 1, (1, 2), 5), 21.0)
    assert not group.ranks[1].must_wait(7)
    assert group.ranks[1].at(0, 7) is None
    group.lost = {(rank, 0) for rank in (1, 2)} | {(0, rank) for rank in (1, 2)}
    group.tick(21.0 + GATHER_S)
    assert [part.leader for part in group.ranks[1:]] == [1, 1]
    assert group.versions(7, epoch=1)[1:] == [1, 1]
    # What the dead leader had told comes late.
    group.ranks[2].heard(22.0, 0, Settled(0, 9, 9, 1), 5)
    assert group.versions(7, epoch=1)[1:] == [1, 1]


def test_groups_that_are_too_large_or_alone_go_without() -> None:
    for members in ((0,), tuple(range(MAX_GRAPH_MEMBERS + 1))):
        part = Adoption(0, members)
        assert part.measured(0.0, row_of(len(members)), 0) == []
        assert part.tick(100.0, 0) == []


def test_the_largest_proposal_fits() -> None:
    widest = Row(10**9, 10**9, (60_000_000,) * MAX_GRAPH_MEMBERS, (10**9,) * MAX_GRAPH_MEMBERS)
    message = Proposed(1 << 40, 1 << 40, dict.fromkeys(range(MAX_GRAPH_MEMBERS), widest), 1 << 40, 1 << 40)
    data = encode(message)
    assert len(data) <= MAX_BYTES
    assert decode(data, PEER, MAX_GRAPH_MEMBERS) == message


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\xc0" * (MAX_BYTES + 1),
        msgspec.msgpack.encode(["Settled", 0, -1, 0, 0]),
        msgspec.msgpack.encode(["Settled", 0, 1, 0, 1 << 41]),
        msgspec.msgpack.encode(["Promised", 0, 1, 0.5]),
        encode(Told(0, row_of(2))),
        encode(Proposed(0, 1, {0: row_of(2)}, 0, 0)),
        encode(Proposed(0, 1, {3: row_of(3)}, 0, 0)),
        msgspec.msgpack.encode(["Proposed", 0, 1, {"\xff": 1}, 0, 0]),
    ],
)
def test_nonsense_names_its_sender(data: bytes) -> None:
    with pytest.raises(PeerError, match="somebody"):
        decode(data, PEER, 3)


def test_only_who_leads_and_is_in_has_a_say() -> None:
    part = Adoption(1, (0, 1, 2))
    proposal = Proposed(0, 1, {0: row_of(3)}, 0, 0)
    assert part.heard(0.0, 2, proposal, 5) == []
    assert part.heard(0.0, 7, proposal, 5) == []
    assert part.heard(0.0, 2, Settled(0, 1, 1, 1), 5) == []
    assert part.heard(0.0, 2, Promised(0, 1, 1), 5) == []
    assert not part.must_wait(100)
    assert part.heard(0.0, 0, Settled(0, 1, 1, 1), 5) == []  # of a version that was never proposed
    assert part.at(0, 100) is None


@pytest.mark.parametrize("seed", range(30))
def test_no_collective_is_ever_planned_by_two_graphs(seed: int) -> None:
    """Ranks run ahead, messages take their time and connections break; all begin each collective by one graph."""
    rng = random.Random(seed)
    count = rng.randint(2, 5)
    ranks = [Adoption(rank, tuple(range(count))) for rank in range(count)]
    called, used = [0] * count, {}
    pipes: dict[tuple[int, int], deque[tuple[float, adoption.Message]]] = {}
    num_graphs, now = 0, 0.0

    def say(sender: int, effects: list[Tell]) -> None:
        for effect in effects:
            delay_s = rng.choice((0.0, 0.02, 0.2))
            pipes.setdefault((sender, effect.to), deque()).append((now + delay_s, effect.message))

    for _ in range(8000):
        now += rng.uniform(0.0, 0.01)
        rank = rng.randrange(count)
        match rng.randrange(5):
            case 0 | 1 if called[rank] == min(called) and not ranks[rank].must_wait(called[rank] + 1):
                called[rank] += 1  # it begins, and no one is more than one ahead
                graph = ranks[rank].at(0, called[rank])
                found = None if graph is None else graph.digest
                assert used.setdefault(called[rank], found) == found, f"seed {seed}, collective {called[rank]}"
                num_graphs += found is not None
            case 2:
                say(rank, ranks[rank].tick(now, called[rank]))
            case 3:
                say(rank, ranks[rank].measured(now, row_of(count, rng.randint(1, 9000)), called[rank]))
            case _:
                for sender in range(count):
                    pipe = pipes.get((sender, rank), deque())
                    if pipe and rng.random() < 0.01:
                        pipe.clear()  # the connection breaks
                    while pipe and pipe[0][0] <= now:
                        say(rank, ranks[rank].heard(now, sender, pipe.popleft()[1], called[rank]))
    assert num_graphs > 0
    assert min(called) > 100


def test_a_promise_far_ahead_is_none() -> None:
    leader, now = Adoption(0, (0, 1, 2)), GATHER_S + 1.0
    for rank in range(3):
        leader.heard(0.0, rank, Told(0, row_of(3)), 0)
    assert any(isinstance(effect.message, Proposed) for effect in leader.tick(now, 0))
    leader.heard(now, 1, Promised(0, 1, 0), 0)
    assert leader.heard(now, 2, Promised(0, 1, 1 << 40), 0) == []
    settled = [effect.message for effect in leader.heard(now, 2, Promised(0, 1, 1), 0)]
    assert Settled(0, 1, 1, 2) in settled


def test_graphs_that_never_come_to_hold_are_not_kept_without_end() -> None:
    member = Adoption(1, (0, 1, 2))
    for version in range(1, 200):
        member.heard(0.0, 0, Proposed(0, version, {0: row_of(3)}, version - 1, 10**9 + version), 0)
    assert len(member._holds) <= adoption.MAX_HELD
