"""What a process of ``barnraise bench`` measures and says; real sockets on loopback, and one peer alone among them."""

import io
import socket
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest

from barnraise.api import bench
from barnraise.api.context import Context
from barnraise.api.plans import Input
from barnraise.api.streams import Call
from barnraise.collective.buffers import Vector
from barnraise.identity import ClusterKey
from barnraise.net.seam import LinkSpeed
from barnraise.observe.measurements import Failed, Joined, Line, Measured, Opened, Orders, Planned


def orders(**what: Any) -> Orders:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    settings = {
        "sizes_mb": (0.001, 0.01),
        "codecs": ("fp32", "int8"),
        "schedules": ("auto",),
        "repetitions": 3,
        "num_peers": 1,
        "addresses": (address,),
        "cluster_key": ClusterKey.generate().to_text(),
    }
    return Orders(**(settings | what))


def said(told: Orders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Line]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(told) + b"\n")))
    code = bench.main()
    return code, [msgspec.json.decode(line, type=Line) for line in capsys.readouterr().out.splitlines()]


def test_every_size_and_codec_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, (opened, joined, *measured) = said(orders(), monkeypatch, capsys)
    assert code == 0
    assert isinstance(opened, Opened)
    assert joined == Joined(rank=0, world_size=1)
    kinds = [(line.size_mb, line.codec, line.schedule) for line in measured if isinstance(line, Measured)]
    assert kinds == [(size, codec, "auto") for size in (0.001, 0.01) for codec in ("fp32", "int8")]
    for line in measured:
        assert isinstance(line, Measured)
        assert len(line.turns_s) == 3
        assert 0 < min(line.turns_s) <= line.wall_s <= max(line.turns_s)
        assert line.cpu_s >= 0


class Echo:
    """A backend of two ranks that know the same of their links: their sum is the double."""

    rank, world_size, address, members = 0, 2, "nowhere", (0, 1)
    lost: Mapping[int, str] = MappingProxyType({})

    def wait_for_peers(self, count: int | None, timeout_s: float) -> None:
        """Return at once."""

    def carry_out(self, call: Call, given: Input, out: Vector, timeout_s: float) -> None:
        np.multiply(given.vector, 2, out=out)

    def close(self) -> None:
        """Do nothing."""


def test_plans_are_made_over_the_links_that_all_know(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = (None, LinkSpeed(latency_s=0.0125, bandwidth_bytes_s=6.25e6))
    bench.tell_plans(Context(Echo()), speeds, orders(codecs=("fp32",), sizes_mb=(25.0,)))
    (told,) = [msgspec.json.decode(line, type=Line) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(told, Planned)
    assert (told.size_mb, told.codec) == (25.0, "fp32")
    assert told.predicted_s == pytest.approx(25e6 / 12.5e6, rel=0.2)
    assert "2 hosts, all 25 ms from each other, 100 Mbit/s" in told.reasons[0]


@pytest.mark.parametrize(
    ("what", "exit_code", "why"),
    [
        ({"addresses": ("127.0.0.1:1", "127.0.0.1:2"), "rank": 5}, 2, "rank 5 is not on the list"),
        ({"codecs": ("morse",)}, 2, "morse"),
        ({"schedules": ("gossip",)}, 2, "gossip"),
    ],
)
def test_what_cannot_be_is_said(
    what: dict[str, Any],
    exit_code: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, lines = said(orders(**what), monkeypatch, capsys)
    failed = lines[-1]
    assert isinstance(failed, Failed)
    assert (code, failed.exit_code) == (exit_code, exit_code)
    assert why in failed.why


def test_without_the_others_it_gives_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    alone = orders()
    two = msgspec.structs.replace(alone, addresses=(*alone.addresses, "127.0.0.1:1"), num_peers=2, wait_s=0.1)
    code, lines = said(two, monkeypatch, capsys)
    failed = lines[-1]
    assert isinstance(failed, Failed)
    assert (code, failed.exit_code) == (3, 3)
    assert "1 of 2 peers" in failed.why
