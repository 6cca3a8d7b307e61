"""bench/allreduce.py: the delay line's rule, what comes of turns, and the processes that take them; no link is emulated."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from barnraise.errors import ConfigError, LocalError

BENCH = Path(__file__).parents[2] / "bench"
PACKET = bytes(1000)


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


def of(name: str) -> ModuleType:
    return importlib.import_module(f"measure.{name}")


def line(**what: Any) -> Any:
    emulator = of("emulator")
    spec = {"namespaces": ("a", "b", "c"), "delays_s": ((0.0, 0.1, 0.3),) * 3, "down_mbit": (None,) * 3}
    return emulator.DelayLine(emulator.Spec(**(spec | what)))


def arrivals(delayed: Any, *instants: float) -> list[list[tuple[int, bytes]]]:
    return [list(delayed.due(now_s)) for now_s in instants]


def test_packets_arrive_after_the_way_between_their_hosts() -> None:
    delayed = line()
    assert delayed.next_s is None
    delayed.take(0, 2, b"far", 10.0)
    delayed.take(0, 1, b"near", 10.0)
    assert delayed.next_s == pytest.approx(10.1)
    assert arrivals(delayed, 10.05, 10.1, 10.29, 10.31) == [[], [(1, b"near")], [], [(2, b"far")]]


def test_packets_of_one_instant_keep_their_order() -> None:
    delayed = line()
    for number in range(50):
        delayed.take(0, 1, bytes([number]), 0.0)
    assert [packet[0] for _, packet in delayed.due(1.0)] == list(range(50))


def test_a_downlink_delivers_at_its_rate_and_drops_what_it_cannot_hold() -> None:
    delayed = line(down_mbit=(None, 8.0, None), queue_s=0.0105)  # 1000 bytes a millisecond
    for _ in range(20):
        delayed.take(0, 1, PACKET, 0.0)
    assert [len(found) for found in arrivals(delayed, 0.1005, 0.1055, 0.2)] == [0, 5, 6]
    assert delayed.num_dropped == 9  # 11 have to wait for no more than 10 ms
    delayed.take(0, 1, PACKET, 5.0)
    assert arrivals(delayed, 5.1005, 5.1015) == [[], [(1, PACKET)]]


def test_a_packet_from_afar_does_not_hold_up_one_from_near() -> None:
    delays_s = ((0.0, 0.1, 0.0), (0.0, 0.0, 0.0), (0.0, 0.001, 0.0))
    delayed = line(down_mbit=(None, 8.0, None), delays_s=delays_s)
    delayed.take(0, 1, b"far" + PACKET, 0.0)
    delayed.take(2, 1, b"near" + PACKET, 0.0)
    assert [[packet[:4] for _, packet in found] for found in arrivals(delayed, 0.0021, 0.2)] == [[b"near"], [b"far\0"]]


def test_regions_share_what_lies_between_them() -> None:
    delayed = line(regions=(0, 0, 1), between_mbit=8.0, delays_s=((0.0,) * 3,) * 3)
    for source in (0, 1, 0, 1):
        delayed.take(source, 2, PACKET, 0.0)
    delayed.take(0, 1, PACKET, 0.0)
    assert [len(found) for found in arrivals(delayed, 0.0, 0.0021, 0.0041)] == [1, 2, 2]
    delayed.take(2, 0, PACKET, 1.0)  # the other direction has its own
    assert [len(found) for found in arrivals(delayed, 1.0005, 1.0011)] == [0, 1]


def test_loss_is_drawn_from_the_seed() -> None:
    def arrived(**what: Any) -> list[bytes]:
        delayed = line(loss=0.1, **what)
        for number in range(2000):
            delayed.take(0, 1, number.to_bytes(2, "big"), 0.0)
        found = [packet for _, packet in delayed.due(1.0)]
        assert delayed.num_dropped == 2000 - len(found)
        return found

    first = arrived(seed=1)
    assert 1700 < len(first) < 1900
    assert arrived(seed=1) == first
    assert arrived(seed=2) != first


def test_only_packets_for_hosts_are_carried() -> None:
    destination_of = of("emulator").destination_of
    packet = bytearray(40)
    packet[0], packet[16:20] = 0x45, bytes([10, 77, 0, 3])
    assert destination_of(bytes(packet), 4) == 2
    assert destination_of(bytes(packet), 2) is None
    assert destination_of(bytes(packet[:19]), 4) is None
    packet[0] = 0x60
    assert destination_of(bytes(packet), 4) is None
    packet[0], packet[16] = 0x45, 224
    assert destination_of(bytes(packet), 4) is None


def test_links_are_told_to_the_delay_line() -> None:
    links = of("namespaces").Links(up_mbit=(100.0, 10.0, 100.0), round_trip_ms=2, regions=(0, 0, 1), between_ms=80)
    spec = links.spec(("a", "b", "c"))
    assert spec.delays_s == ((0.001, 0.001, 0.04), (0.001, 0.001, 0.04), (0.04, 0.04, 0.001))
    assert spec.down_mbit == (100.0, 10.0, 100.0)
    assert links.mbit_to_next() == [10.0, 10.0, 100.0]
    narrow = of("namespaces").Links(up_mbit=(100.0,) * 3, regions=(0, 0, 1), between_mbit=50.0)
    assert narrow.mbit_to_next() == [100.0, 50.0, 50.0]


def test_a_machine_that_cannot_emulate_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    namespaces = of("namespaces")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux" in namespaces.lacking()
    links = namespaces.Links(up_mbit=(1.0,))
    with pytest.raises(ConfigError, match="cannot be emulated here"), namespaces.emulated(links):
        pass


def test_ratios_are_of_turns_that_followed_one_another() -> None:
    comparison, ranks = of("comparison"), of("ranks")
    taken = comparison.Taken()
    for name, walls in {"gloo": (1.0, 2.0, 10.0), "fp32": (2.0, 4.0, 10.0)}.items():
        taken.turns[name] = [ranks.Turn(wall_s=wall, cpu_s=2 * wall, digests=(), error=0.0) for wall in walls]
    assert taken.ratios("fp32") == {"cpu": 2.0, "wall": 2.0}
    assert taken.speedup("fp32") == 0.5
    assert taken.wall_s("gloo") == 2.0
    assert taken.raw()["fp32"]["cpu_ms"] == [4000.0, 8000.0, 20000.0]


def test_a_target_is_judged_beside_its_figure(capsys: pytest.CaptureFixture[str]) -> None:
    themes = of("themes")
    report = themes.Report()
    assert report.figure("speed", 3.45678, "x", themes.Bound(at_least=3.5)) == 3.4568
    report.figure("time", 0.5, "s", themes.Bound(at_most=0.5))
    report.skip("pccl", "there is none")
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith(">= 3.5 DOES NOT HOLD")
    assert told[1].endswith("<= 0.5 holds")
    assert report.missed == ["speed"]
    assert report.figures == {"pccl": {"skipped": "there is none"}}


def test_what_fails_is_told_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    report = of("themes").Report()

    def broken() -> None:
        raise LocalError("the ranks' results differ")

    report.attempt("loopback", broken)
    report.attempt("codec", lambda: report.say("measured"))
    assert capsys.readouterr().out.splitlines() == ["loopback FAILED: the ranks' results differ", "measured"]
    assert report.failed == ["loopback"]


@pytest.fixture
def echoes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three processes that do as `measure.rank` does, and know no sides."""
    (tmp_path / "echo.py").write_text(
        "import json, os, sys\n"
        "print(json.dumps({'pid': os.getpid()}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    what = json.loads(line)\n"
        "    if what['order'] == 'die': os._exit(3)\n"
        "    told = {'failed': 'it cannot'} if what['order'] == 'fail' else what\n"
        "    told |= {'ended': what.get('at', 0) + 0.5, 'cpu_s': 2.0, 'digest': 'd', 'error': 0.0}\n"
        "    print(json.dumps(told), flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ranks = of("ranks")
    with ranks.raised(ranks.loopback(3), "echo") as found:
        yield found


def test_a_turn_ends_with_its_last_rank_and_costs_what_all_used(echoes: Any) -> None:
    turn = echoes.reduce("gloo")
    assert turn.wall_s == pytest.approx(0.5)
    assert turn.cpu_s == 6.0
    assert turn.digests == ("d",) * 3


def test_a_rank_that_fails_or_dies_is_named(echoes: Any) -> None:
    echoes[1].tell("fail")
    with pytest.raises(LocalError, match="rank 1: it cannot"):
        echoes[1].answer()
    echoes[2].tell("die")
    with pytest.raises(LocalError, match="rank 2 ended"):
        echoes[2].answer()
    echoes[2].tell("anything")  # is not heard
