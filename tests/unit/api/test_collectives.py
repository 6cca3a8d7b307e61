"""Collectives of real pumps, whoever dies, sends rubbish, calls late, or hears late by which links all plan."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from barnraise.api import collectives as module
from barnraise.api.streams import MAX_CONTROL_BYTES, SECRET_BYTES, Call, Halt
from barnraise.codec.feedback import Residual
from barnraise.collective import adoption
from barnraise.collective.links import Row
from barnraise.collective.survival_messages import Alarm
from barnraise.errors import ConfigError, Unavailable

from .control_plane import Group

SIZE = 3 * 131_072 + 1000
"""Parts of a chunk and more each, for three."""


@pytest.fixture
def make_group() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(count: int = 3, **more: Any) -> Group:
        made.append(Group(count, **more))
        return made[-1]

    yield make
    for group in made:
        group.close()


Make = Callable[..., Group]


def regions(count: int, sizes: tuple[int, ...]) -> list[Row | None]:
    """Return rows of hosts in regions: 100 us and 1 GB/s inside, 40 ms and 10 MB/s between."""
    region = [number for number, size in enumerate(sizes) for _ in range(size)]
    rows: list[Row | None] = []
    for rank in range(count):
        is_near = [region[rank] == region[other] for other in range(count)]
        rows.append(
            Row(
                0,
                0,
                tuple(0 if other == rank else 100 if near else 40_000 for other, near in enumerate(is_near)),
                tuple(0 if other == rank else 1_000_000 if near else 10_000 for other, near in enumerate(is_near)),
            )
        )
    return rows


def wait_for_graph(group: Group, call: Call) -> None:
    """Return once all ranks have a graph to plan by."""
    known = threading.Event()
    while any(rank.choice(call).predicted_s is None for rank in group.ranks):
        known.wait(0.02)


# ---- who is lost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["ring", "shards", "tree", "butterfly", "centralised"])
def test_who_dies_in_the_middle_is_left_out(make_group: Make, schedule: str) -> None:
    group = make_group(4)
    assert group.sums(range(4), schedule=schedule) == [{10.0}] * 4
    dies = threading.Event()

    def on_send(sender: str, receiver: str, payload: Any) -> Any:
        if sender == "peer 2" and len(payload) > 1000 and not dies.is_set():
            dies.set()
            group.kill(2)
        return payload

    group.air.on_send = on_send
    lost = group.start(2, 3.0, SIZE, schedule=schedule)
    assert group.sums((0, 1, 3), SIZE, schedule=schedule) == [{7.0}] * 3
    with pytest.raises(Unavailable, match="killed"):
        lost.result()
    for rank in (0, 1, 3):
        assert group.ranks[rank].members == (0, 1, 3)
        assert list(group.ranks[rank].lost) == [2]
    assert group.sums((0, 1, 3), schedule=schedule) == [{7.0}] * 3


def test_a_result_that_one_has_is_handed_on_though_its_owner_is_dead(make_group: Make) -> None:
    group = make_group()
    assert group.sums(range(3)) == [{6.0}] * 3
    num_sent, complete = [0], threading.Event()

    def on_send(sender: str, receiver: str, payload: Any) -> Any:
        if sender != "peer 1" or len(payload) < 1000:
            return payload
        num_sent[0] += 1
        if num_sent[0] == 4:  # two parts to their owners, its own to the first of two; never to the second
            assert complete.wait(20)
            group.kill(1)
        return payload

    group.air.on_send = on_send
    futures = [group.start(rank, rank + 1, 3000, schedule="shards") for rank in range(3)]
    for rank in (0, 2):
        futures[rank].add_done_callback(lambda _: complete.set())
    assert [set(futures[rank].result()) for rank in (0, 2)] == [{6.0}] * 2
    with pytest.raises(Unavailable, match="killed"):
        futures[1].result()
    assert group.sums((0, 2)) == [{4.0}] * 2


def test_a_broadcast_without_its_root_ends_and_the_next_collective_is_like_any_other(make_group: Make) -> None:
    group = make_group()
    assert group.sums(range(3)) == [{6.0}] * 3
    group.kill(2)
    futures = [group.start(rank, rank + 1.0, operation="broadcast", root=2) for rank in (0, 1)]
    for future in futures:
        with pytest.raises(Unavailable, match="rank 2, whose tensor was to be sent to all, is lost"):
            future.result()
    assert group.sums((0, 1)) == [{3.0}] * 2


@pytest.mark.parametrize("operation", ["broadcast", "all_gather"])
def test_who_has_nothing_to_hear_does_not_run_ahead(make_group: Make, operation: str) -> None:
    group = make_group()
    sent: list[str] = []
    has_begun = threading.Event()

    def on_send(sender: str, receiver: str, payload: Any) -> Any:
        sent.append(sender)
        if len(sent) == 2:
            has_begun.set()
        return payload

    group.air.on_send = on_send
    first = group.start(0, 1.0, 8, operation=operation)  # of eight elements rank 0 owns all
    assert has_begun.wait(20)
    rest = [group.start(rank, rank + 1.0, 8, operation=operation) for rank in (1, 2)]
    assert [set(future.result()) for future in (first, *rest)] == [{1.0}] * 3
    assert sent[:2] == ["peer 0"] * 2
    assert {"peer 1", "peer 2"} & set(sent[2:4]), "until somebody else begins, it says that it has begun and no more"


def test_who_stops_an_attempt_and_does_not_say_why_is_left_out(
    make_group: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNEXPLAINED_S", 0.2)
    group = make_group(2)
    assert group.sums(range(2)) == [{3.0}] * 2
    group.does_pass = lambda sender, to, message: sender != 1 or not isinstance(message, Alarm)

    def on_send(sender: str, receiver: str, payload: Any) -> Any:
        if sender == "peer 1" and len(payload) > MAX_CONTROL_BYTES:
            return secret[0] + msgspec.msgpack.encode(Halt(2, 0))
        if sender == "peer 1":
            secret.append(bytes(payload[:SECRET_BYTES]))
        return payload

    secret: list[bytes] = []
    group.air.on_send = on_send
    group.start(1, 2.0)
    assert group.sums((0,)) == [{1.0}]
    assert "has not said why" in group.ranks[0].lost[1]


def test_a_part_that_nobody_else_has_is_not_handed_on(make_group: Make) -> None:
    group = make_group()
    assert group.sums(range(3)) == [{6.0}] * 3
    sent, complete = [], threading.Event()

    def on_send(sender: str, receiver: str, payload: Any) -> Any:
        if sender == "peer 1":
            sent.append(receiver)
            # A beginning and a part for each of the others, then the word to each that all is done.
            if len(sent) == 6:  # it was said to one, and never is to the other
                assert complete.wait(20)
                group.kill(1)
        return payload

    group.air.on_send = on_send
    futures = [group.start(rank, rank + 1.0, 3000, operation="reduce_scatter sum") for rank in range(3)]
    for rank in (0, 2):
        futures[rank].add_done_callback(lambda _: complete.set())
    outcomes = [futures[rank].exception() for rank in (0, 2)]
    assert sorted(outcome is None for outcome in outcomes) == [False, True]
    assert any("had their parts already" in str(outcome) for outcome in outcomes)
    assert group.sums((0, 2)) == [{4.0}] * 2


def test_the_weights_of_those_that_are_left_are_the_divisor(make_group: Make) -> None:
    group = make_group()
    vector = [np.full(9, 10.0 * rank, np.float32) for rank in range(3)]

    def mean(ranks: tuple[int, ...]) -> list[float]:
        calls = [
            group.pool.submit(group.call, rank, vector[rank], operation="mean", weight=1.0 + 2 * rank) for rank in ranks
        ]
        return [float(call.result()[0]) for call in calls]

    assert mean((0, 1, 2)) == [pytest.approx((30 + 5 * 20) / 9)] * 3
    group.kill(0)
    assert mean((1, 2)) == [pytest.approx((30 + 5 * 20) / 8)] * 2


def test_damage_is_healed_once_and_then_costs_its_sender_its_place(make_group: Make) -> None:
    group = make_group()
    assert group.sums(range(3), SIZE, schedule="shards") == [{6.0}] * 3
    rest = [1]

    def on_send(sender: str, receiver: str, payload: Any) -> Any:
        if (sender, receiver) == ("peer 2", "peer 1") and len(payload) > 1000 and rest[0]:
            rest[0] -= 1
            return payload[:-4]
        return payload

    group.air.on_send = on_send
    assert group.sums(range(3), SIZE, schedule="shards") == [{6.0}] * 3
    assert rest == [0]
    assert [rank.members for rank in group.ranks] == [(0, 1, 2)] * 3
    rest[0] = 100
    lost = group.start(2, 3.0, SIZE, schedule="shards")
    assert group.sums((0, 1), SIZE, schedule="shards") == [{3.0}] * 2
    with pytest.raises(Unavailable, match="go on without this rank"):
        lost.result()
    assert "bytes" in group.ranks[1].lost[2]


def test_a_late_rank_is_waited_for_as_long_as_its_callers_say(make_group: Make) -> None:
    group = make_group()
    assert group.sums((0, 1), timeout_s=0.3) == [{3.0}] * 2
    assert "has not called collective 1" in group.ranks[0].lost[2]


def test_of_two_the_junior_alone_does_not_wait_for_long(make_group: Make) -> None:
    group = make_group(2)
    group.kill(0)
    with pytest.raises(Unavailable, match="1 of 2 ranks, this one included, can be reached"):
        group.call(1, np.ones(4, np.float32))


# ---- by which links all plan --------------------------------------------------------------------------------------


def test_before_anything_is_measured_the_size_decides(make_group: Make) -> None:
    group = make_group()
    for size, kind in ((100, "shards"), (1 << 22, "ring")):
        choice = group.ranks[1].choice(Call("sum", "float32", size))
        assert (choice.kind, choice.predicted_s) == (kind, None)
        assert choice.reasons == ("the links have not been measured yet",)


def test_two_regions_get_a_hierarchy_and_exact_sums(make_group: Make) -> None:
    group = make_group(4)
    group.rows = regions(4, (2, 2))
    call = Call("sum", "float32", 400_000, schedule="hierarchical")
    wait_for_graph(group, call)
    choice = group.ranks[3].choice(call)
    assert choice.kind == "hierarchical"
    assert any("2 regions (0+1, 2+3)" in reason for reason in choice.reasons)
    assert group.sums(range(4), 400_000, schedule="hierarchical") == [{10.0}] * 4
    assert group.sums(range(4), 400_000, schedule="auto") == [{10.0}] * 4
    group.kill(3)
    assert group.sums(range(3), 400_000, schedule="hierarchical") == [{6.0}] * 3


def test_one_region_has_no_hierarchy(make_group: Make) -> None:
    group = make_group()
    group.rows = regions(3, (3,))
    wait_for_graph(group, Call("sum", "float32", 10))
    calls = [group.start(rank, 1.0, schedule="hierarchical") for rank in range(3)]
    for call in calls:
        with pytest.raises((ConfigError, Unavailable), match="as near to each other") as found:
            call.result()
        assert found.value is not None


def test_a_slow_host_owns_a_smaller_part(make_group: Make) -> None:
    group = make_group(4)
    speeds = [100_000, 100_000, 50_000, 100_000]
    group.rows = [
        Row(
            0,
            0,
            tuple(0 if other == rank else 100 for other in range(4)),
            tuple(0 if other == rank else min(speeds[rank], speeds[other]) for other in range(4)),
        )
        for rank in range(4)
    ]
    call = Call("sum", "float32", SIZE, "int8")
    wait_for_graph(group, call)
    assert any(reason.startswith("rank 2 owns ") for reason in group.ranks[0].choice(call).reasons)
    results = [future.result() for future in [group.start(rank, 1.0, SIZE, codec="int8") for rank in range(4)]]
    assert all((result == results[0]).all() for result in results)
    assert results[0] == pytest.approx(4.0, rel=0.02)


def test_what_one_codec_lost_is_made_good_by_the_next_one_that_a_level_comes_to(make_group: Make) -> None:
    group = make_group()
    vectors = [np.random.default_rng(rank).standard_normal(SIZE).astype(np.float32) for rank in range(3)]
    kept, wanted = [Residual(SIZE) for _ in vectors], np.sum(vectors, axis=0)
    call = Call("sum", "float32", SIZE, "auto:5")

    def summed() -> Any:
        more: dict[str, Any] = {"codec": call.codec}
        calls = [group.pool.submit(group.call, r, vectors[r], feedback=kept[r], **more) for r in range(3)]
        results = [found.result() for found in calls]
        assert all(np.array_equal(result, results[0]) for result in results)
        return results[0]

    assert group.ranks[0].choice(call).codec == "int4"
    first = summed()
    assert np.linalg.norm(first - wanted) > 0.05 * np.linalg.norm(wanted)
    assert all(residual.kept.any() for residual in kept)
    group.rows = regions(3, (3,))
    wait_for_graph(group, call)
    assert group.ranks[0].choice(call).codec == "fp32"
    total = first + summed() + summed()  # a graph holds from the call after the next one on
    assert not any(residual.kept.any() for residual in kept)
    np.testing.assert_allclose(total, 3 * wanted, atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_all_change_graphs_at_the_same_collective(make_group: Make, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(adoption, "PROPOSE_S", 0.05)
    monkeypatch.setattr(adoption, "LEARN_S", 0.05)
    monkeypatch.setattr(module, "SURVEY_S", 0.0)
    group = make_group(3, seed=seed, max_delay_s=0.05)
    graphs: set[int] = set()

    def work(rank: int) -> None:
        for number in range(150):
            group.rows = [regions(3, (2, 1)), regions(3, (3,)), regions(3, (1, 2))][number // 7 % 3]
            assert group.call(rank, np.full(5000, rank, np.float32))[0] == 3.0
            if (graph := group.ranks[rank]._adoption.newest) is not None:
                graphs.add(graph.version)

    for future in [group.pool.submit(work, rank) for rank in range(3)]:
        future.result()
    while not graphs:  # however fast that was
        work_again = [group.pool.submit(work, rank) for rank in range(3)]
        [future.result() for future in work_again]
    assert [rank.members for rank in group.ranks] == [(0, 1, 2)] * 3


def test_who_is_held_back_for_too_long_complains_and_goes_on(make_group: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_S", 1.0)
    monkeypatch.setattr(adoption, "PROPOSE_S", 0.0)
    group = make_group()
    group.rows = regions(3, (3,))
    wait_for_graph(group, Call("sum", "float32", 10))
    assert group.sums(range(3)) == [{6.0}] * 3
    is_held = threading.Event()

    def does_pass(sender: int, to: int, message: object) -> bool:
        if isinstance(message, adoption.Settled) and message.epoch == 0 and message.version > 1:
            is_held.set()
            return False
        return True

    group.does_pass = does_pass
    group.rows = regions(3, (2, 1))
    assert is_held.wait(20)
    for _ in range(3):
        assert group.sums(range(3)) == [{6.0}] * 3
    assert [rank.members for rank in group.ranks] == [(0, 1, 2)] * 3
