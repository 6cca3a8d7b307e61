"""A collective's arithmetic: exact sums in the schedule's order, the same bits on all ranks under every codec and schedule."""

from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
import pytest

from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Malformed
from barnraise.codec.feedback import Residual
from barnraise.collective import kinds
from barnraise.collective.buffers import (
    MAX_WAITING,
    Buffers,
    Codecs,
    CodedBuffers,
    RawBuffers,
    Scratch,
    Store,
    Task,
    Vector,
    aligned,
    chunks_of,
)
from barnraise.collective.program import Program, Run, program_of
from barnraise.collective.schedule import Action, Schedule, all_gather, reduce_scatter
from barnraise.collective.tree import broadcast, hand_on

CHUNK = 192
ALIGNMENT = 16


class Ranks:
    """The ranks of a group, each with its memory; collectives run in one thread, frames wait in queues."""

    def __init__(self, schedule: Schedule, codec: str = "fp32") -> None:
        self.schedule, self.codec = schedule, codec
        self.stores = [Store() for _ in range(schedule.world_size)]
        self.scratch = [Scratch() for _ in range(schedule.world_size)]
        self.codecs = [codecs(codec, schedule.world_size) for _ in range(schedule.world_size)]

    def carry_out(self, tasks: Sequence[Task]) -> list[Vector]:
        size = len(tasks[0].own)
        programs = [program_of(self.schedule, rank, size, CHUNK, ALIGNMENT) for rank in range(len(tasks))]
        self.buffers = [self._buffers(rank, task, programs[rank]) for rank, task in enumerate(tasks)]
        runs = [Run(program) for program in programs]
        frames: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)
        while not all(run.is_done for run in runs):
            moved = 0
            for rank, (run, buffers) in enumerate(zip(runs, self.buffers, strict=True)):
                if (send := run.next_send()) is not None and len(frames[rank, send.to]) < 2:
                    frames[rank, send.to].append(bytes(buffers.payload(send)))
                    run.note_sent()
                    moved += 1
                if (receive := run.next_receive()) is not None and frames[receive.sender, rank]:
                    frame = frames[receive.sender, rank].popleft()
                    buffers.room(receive)[: len(frame)] = frame
                    buffers.arrived(receive, len(frame))
                    run.note_received()
                    moved += 1
            assert moved, "nothing moves"
        results = [task.own.copy() for task in tasks]
        for buffers, result in zip(self.buffers, results, strict=True):
            buffers.write_result(result)
        return results

    def _buffers(self, rank: int, task: Task, program: Program) -> Buffers:
        store, scratch, size = self.stores[rank], self.scratch[rank], len(task.own)
        mine = self.schedule.bounds(size, ALIGNMENT)
        has_copies = (
            any(move.action is Action.COPY for move in self.schedule.transfers) or self.schedule.world_size == 1
        )
        results = (
            [(0, size)] if has_copies else [mine[p] for p, owner in enumerate(self.schedule.owners) if owner == rank]
        )
        if self.codec == "fp32":
            scratch.fit(8 * CHUNK, 8 * CHUNK)
            return RawBuffers(task, program, results, store, scratch)
        chunks = chunks_of(self.schedule, size, CHUNK, ALIGNMENT)
        return CodedBuffers(task, program, store, scratch, self.codecs[rank], chunks)


def codecs(name: str, count: int) -> Codecs:
    made = [codec_of(name, np.float32) for _ in range(3)]
    return Codecs(sending=made[0], receiving=made[1], finishing=made[2].for_aggregate(count))


def vectors(count: int, size: int, dtype: type = np.float32) -> list[Vector]:
    rng = np.random.default_rng(count * 1000 + size)
    return [rng.normal(0, 1, size).astype(dtype) for _ in range(count)]


def schedule(kind: str, count: int) -> Schedule:
    if kind != "hierarchical":
        return kinds.schedule_of(kind, count)
    groups = [tuple(range(count // 2)), tuple(range(count // 2, count))]
    return kinds.schedule_of(kind, count, groups=[group for group in groups if group])


def in_order(schedule: Schedule, given: Sequence[Vector]) -> Vector:
    """Add up as the schedule says, by a walk over its transfers that knows nothing of chunks."""
    size = len(given[0])
    total = np.empty_like(given[0])
    for part, (start, stop) in enumerate(schedule.bounds(size, ALIGNMENT)):
        sums = [vector[start:stop].copy() for vector in given]
        for move in schedule.transfers:
            if move.part == part and move.action is Action.REDUCE:
                sums[move.receiver] += sums[move.sender]
        total[start:stop] = sums[schedule.owners[part]]
    return total


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_and_means_are_exact_in_the_order_of_the_schedule(kind: str, count: int, dtype: type) -> None:
    ranks = Ranks(schedule(kind, count))
    for size in (0, 1, 65, 3000):
        given = vectors(count, size, dtype)
        kept = [vector.copy() for vector in given]
        expected = in_order(ranks.schedule, given)
        sums = ranks.carry_out([Task(own=vector) for vector in given])
        means = ranks.carry_out([Task(own=vector, divisor=float(count)) for vector in given])
        assert {total.tobytes() for total in sums} == {expected.tobytes()}
        assert {mean.tobytes() for mean in means} == {(expected / dtype(count)).tobytes()}
        assert all((vector == copy).all() for vector, copy in zip(given, kept, strict=True))


SPECS = (
    "fp32", "fp16", "bf16", "int8", "int8s", "int4", "int4s", "int2", "zstd", "fp16+lz4:3", "int8+snappy", "topk:0.1",
    "topkc:0.1+int8", "topk:0.016+int2+zstd", "randomk:0.1", "powersgd:2", "powersgd:1+int8", "topk:1", "randomk:1",
)  # fmt: skip
ERRORS = {"fp32": 1e-6, "zstd": 1e-6, "fp16": 1e-2, "bf16": 0.05, "int8": 0.2, "fp16+lz4:3": 1e-2, "int8+snappy": 0.2}
"""Most that a mean of normal values may be off, in ranks' numbers of up to 5; every hop rounds."""


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_all_ranks_have_the_same_bits_under_every_codec_and_schedule(spec: str, kind: str) -> None:
    for count in (2, 3, 4, 5):
        given = vectors(count, 1000)
        ranks = Ranks(schedule(kind, count), spec)
        for _ in range(2 if "powersgd" in spec else 1):  # which is warm the second time
            means = ranks.carry_out([Task(own=vector, divisor=float(count), seed=7) for vector in given])
        assert len({mean.tobytes() for mean in means}) == 1
        assert np.isfinite(means[0]).all()
        assert np.abs(means[0] - np.mean(given, axis=0)).max() <= ERRORS.get(spec, 8.0)


@pytest.mark.parametrize("spec", ["fp32", "int8"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_halves_of_collectives(spec: str, count: int) -> None:
    given, tolerance = vectors(count, 1000), ERRORS[spec]
    whole = kinds.schedule_of("shards", count)
    bounds = whole.bounds(1000, ALIGNMENT)
    scattered = Ranks(reduce_scatter(whole), spec).carry_out([Task(own=vector) for vector in given])
    for rank, (start, stop) in enumerate(bounds):
        assert np.allclose(scattered[rank][start:stop], np.sum(given, axis=0)[start:stop], atol=count * tolerance)
        assert (scattered[rank][:start] == given[rank][:start]).all()
        assert (scattered[rank][stop:] == given[rank][stop:]).all()
    gathered = Ranks(all_gather(whole), spec).carry_out([Task(own=vector) for vector in given])
    expected = np.concatenate([given[rank][start:stop] for rank, (start, stop) in enumerate(bounds)])
    assert len({vector.tobytes() for vector in gathered}) == 1
    assert np.allclose(gathered[0], expected, atol=tolerance)
    spread = Ranks(broadcast(count, count - 1), spec).carry_out([Task(own=vector) for vector in given])
    assert len({vector.tobytes() for vector in spread}) == 1
    assert np.allclose(spread[0], given[-1], atol=tolerance)


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("spec", ["fp32", "bf16"])
def test_weights(kind: str, spec: str) -> None:
    given, weights = vectors(4, 700), [1.0, 2.0, 5.0, 0.5]
    tasks = [Task(own=vector, weight=weight, divisor=8.5) for vector, weight in zip(given, weights, strict=True)]
    means = Ranks(schedule(kind, 4), spec).carry_out(tasks)
    assert len({mean.tobytes() for mean in means}) == 1
    expected = np.average(np.array(given, np.float64), axis=0, weights=weights)
    assert np.abs(means[0] - expected).max() <= ERRORS[spec]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_the_mean_of_equal_whole_numbers_is_that_number(count: int) -> None:
    given = np.arange(2000, dtype=np.float32)
    means = Ranks(kinds.schedule_of("shards", count)).carry_out([Task(own=given, divisor=float(count))] * count)
    assert (means[0] == given).all()


def test_a_result_is_handed_on_from_the_memory_where_it_lies() -> None:
    given = vectors(3, 1000)
    for spec in ("fp32", "int8"):
        ranks = Ranks(kinds.schedule_of("ring", 3), spec)
        results = ranks.carry_out([Task(own=vector) for vector in given])
        again = Ranks(hand_on(3, 1, [0, 2]))
        again.stores = ranks.stores
        kept = ranks.stores[1].work(1000, np.dtype(np.float32))
        ranks.buffers[1].write_result(kept)
        ranks.stores[0].work(1000, np.dtype(np.float32))[:] = 0
        handed = again.carry_out([Task(own=given[0]), Task(own=kept), Task(own=given[2])])
        assert {vector.tobytes() for vector in handed} == {results[0].tobytes()}


@pytest.mark.parametrize("kind", ["shards", "ring", "tree", "hierarchical"])
def test_what_codecs_lose_is_made_good(kind: str) -> None:
    rounds, count = 12, 4
    given = vectors(count, 1000)
    exact = np.mean(given, axis=0)
    ranks = Ranks(schedule(kind, count), "int4")
    residuals = [Residual(1000) for _ in range(count)]
    plain, fed = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    for number in range(rounds):
        plain += ranks.carry_out([Task(own=vector, divisor=4.0, seed=number) for vector in given])[0]
        tasks = [
            Task(own=vector, divisor=4.0, seed=number, residual=residual)
            for vector, residual in zip(given, residuals, strict=True)
        ]
        fed += ranks.carry_out(tasks)[0]
        for residual in residuals:
            residual.commit()
    owed = np.mean([residual.kept for residual in residuals], axis=0)
    assert np.abs(fed + owed - rounds * exact).max() < 1e-3  # nothing was lost for good
    assert np.abs(fed - rounds * exact).max() < np.abs(plain - rounds * exact).max() / 3


def test_an_attempt_that_came_to_nothing_changes_no_residual() -> None:
    residual = Residual(1000)
    given = vectors(2, 1000)
    ranks = Ranks(kinds.schedule_of("shards", 2), "int4")
    tasks = [Task(own=given[0], residual=residual), Task(own=given[1])]
    first = ranks.carry_out(tasks)
    assert not residual.kept.any()
    assert residual.staged.any()
    assert (ranks.carry_out(tasks)[0] == first[0]).all()


@pytest.mark.parametrize("kind", ["shards", "ring", "tree"])
@pytest.mark.parametrize("spec", ["int8", "int4", "bf16", "fp32+zstd"])
def test_a_sum_that_is_too_large_to_be_encoded_is_cut_off_alike_everywhere(kind: str, spec: str) -> None:
    given = [np.full(1000, 1.6e38, np.float32) for _ in range(4)]  # each of them can be encoded, four of them cannot
    results = Ranks(kinds.schedule_of(kind, 4), spec).carry_out([Task(own=vector) for vector in given])
    assert len({result.tobytes() for result in results}) == 1
    assert np.isfinite(results[0]).all()
    assert (results[0] > 1e30).all()


@pytest.mark.parametrize("kind", ["shards", "centralised"])
@pytest.mark.parametrize("spec", ["int8", "int4", "bf16", "topk:0.1"])
def test_however_many_encodings_wait_the_sum_is_the_same(kind: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 * MAX_WAITING + 2
    given = vectors(count, 1000)
    found = []
    for most in (MAX_WAITING, 1, count):
        monkeypatch.setattr("barnraise.collective.buffers.MAX_WAITING", most)
        residuals = [Residual(1000) for _ in range(count)]
        ranks = Ranks(kinds.schedule_of(kind, count), spec)
        for number in range(2):
            tasks = [
                Task(own=vector, weight=1.0 + rank, divisor=55.0, seed=number, residual=residual)
                for rank, (vector, residual) in enumerate(zip(given, residuals, strict=True))
            ]
            results = ranks.carry_out(tasks)
            for residual in residuals:
                residual.commit()
        assert len({result.tobytes() for result in results}) == 1
        found.append((results[0].tobytes(), [residual.kept.tobytes() for residual in residuals]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("spec", ["int8", "int4", "int2", "bf16"])
def test_a_large_result_is_written_past_the_caches_and_is_the_same(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, results = vectors(3, 5000), []
    for large_bytes in (0, 1 << 30):
        monkeypatch.setattr("barnraise.collective.buffers.LARGE_BYTES", large_bytes)
        results += Ranks(kinds.schedule_of("ring", 3), spec).carry_out([Task(own=vector) for vector in given])
    assert len({result.tobytes() for result in results}) == 1


def test_sums_that_are_encoded_take_no_memory_of_their_own() -> None:
    ranks = Ranks(kinds.schedule_of("ring", 3), "int8")
    ranks.carry_out([Task(own=vector) for vector in vectors(3, 30_000)])
    for store in ranks.stores:
        assert len(store.work(0, np.dtype(np.float32)).base) < 1000


@pytest.mark.parametrize("spec", ["fp32", "int8"])
def test_a_frame_of_another_length_is_refused(spec: str) -> None:
    ranks = Ranks(kinds.schedule_of("ring", 2), spec)
    ranks.carry_out([Task(own=vector) for vector in vectors(2, 1000)])
    for receive in program_of(ranks.schedule, 0, 1000, CHUNK, ALIGNMENT).receives:
        with pytest.raises(Malformed):
            ranks.buffers[0].arrived(receive, len(ranks.buffers[0].room(receive)) - 1)


def test_the_second_collective_of_a_size_uses_the_memory_of_the_first() -> None:
    store = Store()
    first = store.work(1000, np.dtype(np.float32))
    assert np.shares_memory(first, store.work(900, np.dtype(np.float32)))
    assert np.shares_memory(first, store.work(500, np.dtype(np.float64)))
    assert store.arena(10).ctypes.data == store.arena(5).ctypes.data
    assert aligned(100).ctypes.data % 64 == 0
