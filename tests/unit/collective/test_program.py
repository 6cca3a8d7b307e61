"""What a program says of each send and receive, and how a run counts them."""

import pytest

from barnraise.collective.alltoall import all_to_all
from barnraise.collective.kinds import FLAT, schedule_of
from barnraise.collective.program import Chunk, Program, Receive, Run, Send, program_of
from barnraise.collective.ring import ring
from barnraise.collective.schedule import Action, all_gather, reduce_scatter
from barnraise.collective.tree import broadcast
from barnraise.errors import LocalError

REDUCE, COPY = Action.REDUCE, Action.COPY
WORLD_SIZES = range(1, 18)


def test_a_ring_of_three() -> None:
    program = program_of(ring(3), 1, 6, 10)
    parts = [Chunk(0, 2), Chunk(2, 4), Chunk(4, 6)]
    assert program.sends == (
        Send(2, parts[0], REDUCE, is_first=True, needs=0),
        Send(2, parts[2], REDUCE, is_first=False, needs=1),
        Send(2, parts[1], COPY, is_first=False, needs=2),
        Send(2, parts[0], COPY, is_first=False, needs=3),
    )
    assert program.receives == (
        Receive(0, parts[2], REDUCE, is_first=True, finishes=False, needs=0),
        Receive(0, parts[1], REDUCE, is_first=True, finishes=True, needs=0),
        Receive(0, parts[0], COPY, is_first=False, finishes=False, needs=1),
        Receive(0, parts[2], COPY, is_first=False, finishes=False, needs=2),
    )
    assert program.finished == ()


def test_shards_go_in_chunks_to_all_in_turn() -> None:
    program = program_of(all_to_all(3), 0, 12, 3)
    assert [(send.to, send.chunk.start, send.action) for send in program.sends] == [
        (1, 4, REDUCE),
        (2, 8, REDUCE),
        (1, 7, REDUCE),
        (2, 11, REDUCE),
        (1, 0, COPY),
        (2, 0, COPY),
        (1, 3, COPY),
        (2, 3, COPY),
    ]
    assert [(due.sender, due.chunk.start, due.is_first, due.finishes) for due in program.receives[:4]] == [
        (2, 0, True, False),
        (1, 0, False, True),
        (2, 3, True, False),
        (1, 3, False, True),
    ]
    assert [send.needs for send in program.sends] == [0, 0, 0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("kind", FLAT)
def test_each_chunk_is_finished_once_and_at_its_owner(kind: str) -> None:
    for world_size in WORLD_SIZES:
        schedule = schedule_of(kind, world_size)
        size, chunk_elements = 3 * world_size + 5, 2
        finished: list[tuple[int, Chunk]] = []
        for rank in range(world_size):
            program = program_of(schedule, rank, size, chunk_elements)
            finished += [(rank, due.chunk) for due in program.receives if due.finishes]
            finished += [(rank, chunk) for chunk in program.finished]
        finished.sort(key=lambda entry: entry[1].start)
        assert [chunk.start for _, chunk in finished] == [0, *(chunk.stop for _, chunk in finished[:-1])]
        assert finished[-1][1].stop == size
        bounds = schedule.bounds(size)
        for owner, chunk in finished:
            parts = [part for part, (start, stop) in enumerate(bounds) if start <= chunk.start < chunk.stop <= stop]
            assert [schedule.owners[part] for part in parts] == [owner]


@pytest.mark.parametrize("kind", FLAT)
def test_only_sums_are_ever_first_and_each_chunk_once(kind: str) -> None:
    for world_size in WORLD_SIZES:
        for rank in range(world_size):
            program = program_of(schedule_of(kind, world_size), rank, 2 * world_size + 1, 1)
            firsts = [due.chunk for due in program.receives if due.is_first]
            assert len(set(firsts)) == len(firsts)
            assert {due.chunk for due in program.receives if due.action is REDUCE} == set(firsts)
            assert all(entry.action is REDUCE for entry in (*program.sends, *program.receives) if entry.is_first)
            added = {due.chunk for due in program.receives if due.action is REDUCE}
            for send in program.sends:
                assert send.is_first == (send.action is REDUCE and send.chunk not in added)


@pytest.mark.parametrize("kind", FLAT)
def test_chunks_are_no_longer_than_asked(kind: str) -> None:
    for world_size in WORLD_SIZES:
        for chunk_elements in (1, 7, 1000):
            program = program_of(schedule_of(kind, world_size), 0, 101, chunk_elements, alignment=4)
            lengths = [send.chunk.stop - send.chunk.start for send in program.sends]
            assert all(1 <= length <= chunk_elements for length in lengths)


def test_one_rank_finishes_its_own() -> None:
    for kind in FLAT:
        program = program_of(schedule_of(kind, 1), 0, 5, 3)
        assert not program.sends
        assert not program.receives
        assert sum(chunk.stop - chunk.start for chunk in program.finished) == 5
        assert Run(program).is_done


def test_an_empty_vector_moves_nothing() -> None:
    for kind in FLAT:
        assert program_of(schedule_of(kind, 4), 2, 0, 3) == Program(rank=2, sends=(), receives=(), finished=())


def test_who_only_hands_on_finishes_first() -> None:
    assert program_of(broadcast(3, 1), 1, 4, 4).finished == (Chunk(0, 2), Chunk(2, 4))
    assert program_of(broadcast(3, 1), 0, 4, 4).finished == ()
    assert program_of(all_gather(ring(2)), 1, 4, 4).finished == (Chunk(2, 4),)
    assert program_of(reduce_scatter(ring(2)), 1, 4, 4).finished == ()


def test_a_run_counts() -> None:
    run = Run(program_of(ring(2), 0, 2, 1))
    assert run.waits_for == 1
    first = run.next_send()
    assert first is not None
    assert first.is_first
    run.note_sent()
    assert run.next_send() is None
    due = run.next_receive()
    assert due is not None
    assert due.finishes
    run.note_received()
    assert not run.is_sent
    assert run.next_send() == Send(1, Chunk(0, 1), COPY, is_first=False, needs=1)
    run.note_sent()
    assert run.is_sent
    assert run.next_send() is None
    assert not run.is_done
    run.note_received()
    assert run.is_received
    assert run.is_done
    assert run.next_receive() is None
    assert run.waits_for is None


def test_a_receive_waits_for_the_send_that_reads_its_memory() -> None:
    run = Run(program_of(ring(2), 0, 2, 1))
    run.note_received()
    assert run.next_receive() is None
    run.note_sent()
    assert run.next_receive() is not None


def test_chunks_of_nothing() -> None:
    with pytest.raises(LocalError, match="chunks of 0"):
        program_of(ring(2), 0, 2, 0)
