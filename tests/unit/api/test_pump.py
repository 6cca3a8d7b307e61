"""A rank's two threads and their streams: what goes wrong on a stream, what is left on one, and what is stopped."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from barnraise.api.attempt import Attempt, Halted, Party, Trouble, Work
from barnraise.api.pump import Pump
from barnraise.api.streams import Begin, Call, Streams
from barnraise.collective.buffers import RawBuffers, Scratch, Store, Task, Vector
from barnraise.collective.kinds import schedule_of
from barnraise.collective.program import program_of
from barnraise.errors import ConfigError, Unavailable
from barnraise.ids import PeerId

from .plain_streams import Air

CHUNK = 100
SIZE = 1000


class Rank:
    """One rank of a test."""

    def __init__(self, air: Air, number: int) -> None:
        self.number, self.peer = number, PeerId(f"peer {number}")
        self.streams: Streams = air.join(self.peer)
        self.pump = Pump(self.streams)
        self.store, self.scratch = Store(), Scratch()
        self.scratch.fit(4 * CHUNK, 4 * CHUNK)
        self.weights: list[float] = []

    def attempt(
        self, group: Sequence["Rank"], *, kind: str = "shards", size: int = SIZE, epoch: int = 0, **more: Any
    ) -> Attempt:
        vector: Vector = np.full(size, self.number + 1, np.float32)
        program = program_of(schedule_of(kind, len(group)), group.index(self), size, CHUNK)

        def prepare(weights: Sequence[float]) -> Work:
            self.weights = list(weights)
            return Work(program, RawBuffers(Task(own=vector), program, [(0, size)], self.store, self.scratch))

        sequence, call, weight = (
            more.pop("sequence", 1),
            more.pop("call", Call("sum", "float32", size)),
            more.pop("weight", 1.0),
        )
        return Attempt(
            begin=Begin(sequence, epoch, b"digest", call, weight),
            parties=[Party(rank.number, rank.peer) for rank in group],
            place=group.index(self),
            prepare=prepare,
            **more,
        )

    def sum(self, attempt: Attempt) -> Vector:
        """Carry an attempt out and return the result."""
        self.pump.carry_out(attempt)
        out: Vector = np.empty(attempt.begin.call.size, np.float32)
        attempt.buffers.write_result(out)
        return out


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Any:
    air = Air()
    ranks = [Rank(air, number) for number in range(3)]
    with ThreadPoolExecutor(6) as pool:
        yield air, ranks, pool
        for rank in ranks:
            rank.pump.close()
    for end in air.all:  # one that was opened while its other side closed is nobody's
        end.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "barnraise sender"]


Group = tuple[Air, list[Rank], ThreadPoolExecutor]


def at_once(pool: ThreadPoolExecutor, works: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
    return [pool.submit(work) for work in works]


def all_sum(pool: ThreadPoolExecutor, ranks: Sequence[Rank], **more: Any) -> list[Vector]:
    futures = at_once(pool, [lambda rank=rank: rank.sum(rank.attempt(ranks, **more)) for rank in ranks])
    return [future.result(30) for future in futures]


@pytest.mark.parametrize("kind", ["ring", "tree", "butterfly", "shards", "centralised"])
def test_one_collective_after_the_other_over_the_same_streams(group: Group, kind: str) -> None:
    air, ranks, pool = group
    for sequence in range(1, 6):
        for total in all_sum(pool, ranks, kind=kind, sequence=sequence, size=SIZE * sequence):
            assert (total == 6).all()
        if sequence == 1:
            opened = dict(air.streams)
    assert air.streams == opened


def test_chunks_so_small_that_they_look_like_frames_of_a_peers_own(group: Group) -> None:
    _, ranks, pool = group
    assert all((total == 6).all() for total in all_sum(pool, ranks, size=5))


def test_a_meeting_tells_all_what_each_weighs(group: Group) -> None:
    _, ranks, pool = group
    works = [
        lambda rank=rank: rank.sum(rank.attempt(ranks, kind="tree", is_meeting=True, weight=rank.number + 0.5))
        for rank in ranks
    ]
    assert all((future.result(30) == 6).all() for future in at_once(pool, works))
    assert [rank.weights for rank in ranks] == [[0.5, 1.5, 2.5]] * 3


def test_a_closing_holds_until_all_are_done(group: Group) -> None:
    _, ranks, pool = group
    first = at_once(pool, [lambda r=r: r.sum(r.attempt(ranks, kind="centralised", is_closing=True)) for r in ranks[:2]])
    with pytest.raises(TimeoutError):
        first[0].result(0.05)
    assert (ranks[2].sum(ranks[2].attempt(ranks, kind="centralised", is_closing=True)) == 6).all()
    assert all((future.result(30) == 6).all() for future in first)


def failing(pool: ThreadPoolExecutor, rank: Rank, attempt: Attempt) -> Future[Any]:
    def work() -> None:
        with pytest.raises(Halted):
            rank.pump.carry_out(attempt)

    return pool.submit(work)


def begin_and_break(rank: Rank, to: Rank, attempt: Attempt) -> None:
    """Begin an attempt on one stream, and cut it."""
    outgoing = rank.streams.outgoing([to.peer])[to.peer]
    assert not isinstance(outgoing, Unavailable)
    outgoing.say(attempt.begin)
    rank.streams.drop(to.peer, incoming=False)


def free(rank: Rank, attempt: Attempt, future: Future[Any]) -> None:
    """Stop an attempt whose threads may be stuck."""
    attempt.stop()
    while not future.done() or rank.pump.attempts:
        rank.pump.free(attempt)
    future.result(30)


def test_a_stream_that_ends_stops_the_attempt_and_names_its_peer(group: Group) -> None:
    _, ranks, pool = group
    all_sum(pool, ranks, kind="ring")
    failed: list[Attempt] = []
    attempts = [rank.attempt(ranks, kind="ring", sequence=2, on_failure=failed.append) for rank in ranks[:2]]
    futures = [failing(pool, rank, attempt) for rank, attempt in zip(ranks[:2], attempts, strict=True)]
    begin_and_break(ranks[2], ranks[0], ranks[2].attempt(ranks, kind="ring", sequence=2))
    futures[0].result(30)
    assert attempts[0].failure is not None
    assert (attempts[0].failure.rank, attempts[0].failure.trouble) == (2, Trouble.BROKEN)
    futures[1].result(30)  # rank 0 told rank 1, which waited for it, that it stopped
    assert attempts[1].failure is None
    assert failed == [attempts[0]]


def test_the_next_attempt_uses_the_streams_that_are_left_and_discards_what_is_in_them(group: Group) -> None:
    air, ranks, pool = group
    all_sum(pool, ranks)
    attempts = [rank.attempt(ranks, sequence=2, size=5000) for rank in ranks[:2]]
    futures = [failing(pool, rank, attempt) for rank, attempt in zip(ranks[:2], attempts, strict=True)]
    before = dict(air.streams)
    begin_and_break(ranks[2], ranks[0], ranks[2].attempt(ranks, sequence=2, size=5000))
    futures[0].result(30)
    free(ranks[1], attempts[1], futures[1])
    for total in all_sum(pool, ranks, sequence=2, epoch=1, size=5000):
        assert (total == 6).all()
    replaced = {pair for pair in before if air.streams[pair] is not before[pair]}
    assert (ranks[2].peer, ranks[0].peer) in replaced
    assert len(replaced) < len(before)


def test_a_rank_that_fell_behind_stops_when_the_others_go_on(group: Group) -> None:
    _, ranks, pool = group
    late = failing(pool, ranks[0], ranks[0].attempt(ranks, sequence=1))
    for rank in ranks[1:]:
        pool.submit(rank.pump.carry_out, rank.attempt(ranks, sequence=1, epoch=1))
    late.result(30)
    assert (ranks[0].sum(ranks[0].attempt(ranks, sequence=1, epoch=1)) == 6).all()


@pytest.mark.parametrize("size", [10, 5000])
def test_an_attempt_can_be_stopped_from_elsewhere(group: Group, size: int) -> None:
    _, ranks, pool = group
    attempt = ranks[0].attempt(ranks, size=size)
    future = failing(pool, ranks[0], attempt)
    free(ranks[0], attempt, future)
    assert attempt.failure is None
    for total in all_sum(pool, ranks, sequence=2, epoch=1):
        assert (total == 6).all()


def test_threads_that_are_stuck_in_a_frame_are_freed(group: Group) -> None:
    _, ranks, pool = group
    all_sum(pool, ranks, kind="ring")
    attempt = ranks[0].attempt(ranks, kind="ring", sequence=2, size=3_000_000)
    future = failing(pool, ranks[0], attempt)  # rank 1 takes nothing, rank 2 sends nothing
    free(ranks[0], attempt, future)
    for total in all_sum(pool, ranks, kind="ring", sequence=2, epoch=1):
        assert (total == 6).all()


def test_what_is_no_chunk_is_damage(group: Group) -> None:
    _, ranks, pool = group
    all_sum(pool, ranks)
    attempts = [rank.attempt(ranks, sequence=2) for rank in ranks[:2]]
    futures = [failing(pool, rank, attempt) for rank, attempt in zip(ranks[:2], attempts, strict=True)]
    outgoing = ranks[2].streams.outgoing([ranks[0].peer])[ranks[0].peer]
    outgoing.say(ranks[2].attempt(ranks, sequence=2).begin)  # type: ignore[union-attr]
    outgoing.stream.send(b"abc")  # type: ignore[union-attr]
    futures[0].result(30)
    free(ranks[1], attempts[1], futures[1])
    assert attempts[0].failure is not None
    assert (attempts[0].failure.rank, attempts[0].failure.trouble) == (2, Trouble.DAMAGED)
    assert "3 bytes for" in attempts[0].failure.reason


def test_a_stream_that_ended_before_an_attempt_is_replaced_by_the_next(group: Group) -> None:
    air, ranks, pool = group
    all_sum(pool, ranks, kind="ring")
    late = pool.submit(lambda: ranks[0].sum(ranks[0].attempt(ranks, kind="ring", sequence=2)))
    ranks[2].streams.drop(ranks[0].peer, incoming=False)
    air.streams[ranks[1].peer, ranks[2].peer][1].interrupt()  # the receiver's end, as `Pump.free` does
    rest = at_once(pool, [lambda r=r: r.sum(r.attempt(ranks, kind="ring", sequence=2)) for r in ranks[1:]])
    assert all((future.result(30) == 6).all() for future in (late, *rest))


def test_a_peer_that_cannot_be_reached_is_named(group: Group) -> None:
    air, ranks, pool = group
    air.unreachable.add(ranks[1].peer)
    attempt = ranks[0].attempt(ranks)
    failing(pool, ranks[0], attempt).result(30)
    assert attempt.failure is not None
    assert (attempt.failure.rank, attempt.failure.trouble) == (1, Trouble.BROKEN)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-300, 1e308, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_damage(group: Group, weight: float) -> None:
    _, ranks, pool = group
    lie, attempt = (
        ranks[1].attempt(ranks[:2], is_meeting=True, weight=weight),
        ranks[0].attempt(ranks[:2], is_meeting=True),
    )
    liar = failing(pool, ranks[1], lie)
    failing(pool, ranks[0], attempt).result(30)
    free(ranks[1], lie, liar)
    assert attempt.failure is not None
    assert (attempt.failure.rank, attempt.failure.trouble) == (1, Trouble.DAMAGED)


def test_who_calls_something_else_is_told_both_calls(group: Group) -> None:
    _, ranks, pool = group
    pool.submit(ranks[1].pump.carry_out, ranks[1].attempt(ranks[:2], call=Call("mean", "float32", 7, codec="int8")))
    with pytest.raises(ConfigError, match="collective 1 is all_reduce of 1000 float32 elements, op='sum' here and "):
        ranks[0].pump.carry_out(ranks[0].attempt(ranks[:2]))


def test_an_error_of_our_own_in_the_sending_thread_reaches_the_caller(group: Group) -> None:
    ranks = group[1]
    attempt = ranks[0].attempt(ranks)
    attempt.prepare_alone()

    def fail(send: object) -> memoryview:
        raise MemoryError("no room")

    attempt.buffers.payload = fail  # type: ignore[method-assign]
    attempt.prepare_alone = lambda: None  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="no room"):
        ranks[0].pump.carry_out(attempt)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (Call("mean", "float32", 7), "all_reduce of 7 float32 elements, op='mean'"),
        (Call("sum", "float64", 7, schedule="ring"), "all_reduce of 7 float64 elements, op='sum', schedule='ring'"),
        (Call("mean", "float32", 7, codec="int8", is_weighted=True), "op='mean', codec='int8', weight=..."),
        (Call("reduce_scatter sum", "float32", 7), "reduce_scatter of 7 float32 elements, op='sum'"),
        (Call("all_gather", "float32", 7), "all_gather of 7 float32 elements"),
        (Call("broadcast", "float32", 7, root=2), "broadcast of 7 float32 elements, root=2"),
        (Call("barrier", "float32", 0), "barrier()"),
    ],
)
def test_a_call_in_words(call: Call, words: str) -> None:
    assert words in str(call)
