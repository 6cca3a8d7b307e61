"""What a trainer is told to do: numbered, with the newest of its own snapshots, and void once something else is ordered."""

from pathlib import Path

from barnraise.ids import PeerId
from barnraise.link.messages import Segment
from barnraise.peer.orders import Orders
from barnraise.swarm.plan import RoundPlan

ME, OTHER = PeerId("me"), PeerId("other")
THETA = Path("theta")


def plan_of(round_: int, *members: PeerId) -> RoundPlan:
    return RoundPlan(
        round=round_,
        members=members,
        num_shards=1,
        slots={member: (Segment(6 * number, 6),) for number, member in enumerate(members)},
        steps=3,
        first_step=3 * round_,
        total_steps=30,
        seconds=0.0,
        evaluate={},
    )


def test_an_order_names_its_files_and_our_part(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    begin = orders.give(plan_of(4, OTHER, ME), ME, THETA)
    assert begin is not None
    assert (begin.round, begin.segments, begin.num_members) == (4, (Segment(6, 6),), 2)
    assert begin.evaluate == Segment(0, 0)
    assert (begin.theta_path, begin.update_path) == ("theta", str(orders.update_file))
    assert (begin.snapshot_in, begin.snapshot_out) == ("", str(tmp_path / "trainer" / "round-00000005.safetensors"))


def test_an_older_order_counts_no_more_and_the_newest_is_news_once(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    assert not orders.is_news(0)
    first, second = (orders.give(plan_of(0, ME), ME, THETA) for _ in range(2))
    assert first is not None
    assert second is not None
    assert not orders.is_news(first.order)
    assert [orders.is_news(second.order) for _ in range(2)] == [True, False]
    assert orders.is_newest(second.order)
    assert orders.give(plan_of(1, OTHER), ME, THETA) is None
    assert not orders.is_newest(second.order)


def test_the_newest_snapshot_from_before_the_round_is_taken_and_only_two_of_these_stay(tmp_path: Path) -> None:
    files = [tmp_path / "trainer" / f"round-{number:08d}.safetensors" for number in (1, 2, 3, 5)]
    files[0].parent.mkdir()
    for file in files:
        file.touch()
    begin = Orders(tmp_path).give(plan_of(4, ME), ME, THETA)
    assert begin is not None
    assert begin.snapshot_in == str(files[2])
    assert [file.exists() for file in files] == [False, True, True, True]
