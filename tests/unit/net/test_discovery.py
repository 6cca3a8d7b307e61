"""Finding each other by multicast DNS, really, on the loopback interface of this machine."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
import zeroconf

from barnraise.errors import Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import RunId
from barnraise.net import discovery
from barnraise.net.announcement import Announcement, cluster_tag, instance_of, response
from barnraise.net.discovery import announce, look

from .hosts import PATIENCE_S, until

KEY = ClusterKey(os.urandom(32))  # other tests on this machine may use the same group
TAG = cluster_tag(KEY)
RUN = RunId(bytes(32))


def announcement(number: int, run: RunId = RUN, tag: bytes = TAG) -> Announcement:
    peer = Identity(bytes([number]) * 32, bytes(32)).peer_id
    return Announcement(
        peer=peer, run=run, address=f"/ip4/127.0.0.1/tcp/{4000 + number}/p2p/{peer}", cluster_tag=tag, label="barn"
    )


ONE, TWO, THREE = announcement(1), announcement(2), announcement(3)


def nothing(seen: Announcement) -> None: ...


async def look_for(count: int) -> list[Announcement]:
    """Look until so many are found; a busy machine may take its time."""
    with trio.fail_after(PATIENCE_S):
        while len(seen := await look(TAG, 1.5)) < count:
            pass
    return seen


async def test_what_is_announced_is_found_by_the_same_cluster_alone() -> None:
    stranger = announcement(9, tag=cluster_tag(ClusterKey(b"s" * 32)))
    async with announce(ONE, nothing), announce(TWO, nothing), announce(stranger, nothing):
        assert await look_for(2) == sorted([ONE, TWO], key=lambda one: one.peer)


async def test_peers_of_the_same_run_and_cluster_hear_of_each_other() -> None:
    heard: dict[str, list[Announcement]] = {"one": [], "two": [], "other run": [], "other cluster": []}
    other_run = announcement(4, run=RunId(b"o" * 32))
    other_cluster = announcement(5, tag=b"stranger")
    async with (
        announce(ONE, heard["one"].append),
        announce(other_run, heard["other run"].append),
        announce(other_cluster, heard["other cluster"].append),
        announce(TWO, heard["two"].append),
    ):
        await until(lambda: heard["one"] and heard["two"])
    assert set(heard["one"]) == {TWO}
    assert set(heard["two"]) == {ONE}
    assert not heard["other run"]
    assert not heard["other cluster"]


async def test_nobody_is_found_in_bounded_time() -> None:
    with trio.fail_after(PATIENCE_S):
        assert await look(b"nobody's", 0.3) == []


PEER_PROCESS = """
import sys, trio
from barnraise.net.announcement import Announcement
from barnraise.net.discovery import announce
async def main():
    text, run, tag = sys.argv[1:]
    ours = Announcement(
        peer=text.rpartition("/")[2], run=bytes.fromhex(run), address=text, cluster_tag=bytes.fromhex(tag), label="barn"
    )
    async with announce(ours, lambda seen: None):
        await trio.sleep_forever()
trio.run(main)
"""


async def test_two_processes_of_one_machine_find_each_other() -> None:
    command = [sys.executable, "-c", PEER_PROCESS, ONE.address, ONE.run.hex(), TAG.hex()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment)  # noqa: ASYNC220  # returns at once
    try:
        heard: list[Announcement] = []
        async with announce(TWO, heard.append):
            await until(lambda: heard)
        assert heard[0] == ONE
    finally:
        process.kill()
        process.wait()


async def test_other_programs_see_the_service() -> None:
    """The independent reader is python-zeroconf's own browser, on loopback alone."""
    with zeroconf.Zeroconf(interfaces=["127.0.0.1"]) as reader:
        async with announce(ONE, nothing):
            ask = lambda: reader.get_service_info("_barnraise._tcp.local.", instance_of(ONE.peer), 3000)  # noqa: E731
            with trio.fail_after(PATIENCE_S):
                while (info := await trio.to_thread.run_sync(ask)) is None:
                    pass
    assert info.parsed_addresses() == ["127.0.0.1"]
    assert info.port == 4001
    assert info.properties[b"peer"] == ONE.peer.encode()


class Flood:
    """Speaks to the group as fast as it can, from the port that counts."""

    def __init__(self, wire: Any) -> None:
        self.wire = wire
        self.sent = 0

    async def run(self) -> None:
        while True:
            for _ in range(50):
                number = self.sent
                self.sent += 1
                peer = Identity(number.to_bytes(32, "big"), bytes(32)).peer_id
                made = Announcement(
                    peer=peer, run=RUN, address=f"/ip4/127.0.0.1/tcp/1/p2p/{peer}", cluster_tag=TAG, label="flood"
                )
                await self.wire.say(response(made))
            await trio.sleep(0.05)


@pytest.fixture
async def wire() -> AsyncIterator[Any]:
    with discovery._open("127.0.0.1") as opened:
        yield opened


async def test_who_leaves_says_so(wire: Any) -> None:
    async with announce(ONE, nothing):
        pass
    with trio.fail_after(PATIENCE_S):
        while ONE not in (await wire.hear()).leaving:
            pass


async def test_of_a_flood_of_peers_no_more_than_the_limit_is_kept(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_FOUND", 5)
    flood = Flood(wire)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood.run)
        found: list[Announcement] = []
        while not found:
            found = await look(TAG, 1.0)
        nursery.cancel_scope.cancel()
    assert flood.sent > len(found)
    assert len(found) == 5


async def test_a_flood_of_questions_is_answered_once_a_second(wire: Any) -> None:
    answers = 0

    async def count() -> None:
        nonlocal answers
        while True:
            answers += (await wire.hear()).present.count(ONE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        async with announce(ONE, nothing):
            for _ in range(60):
                await wire.say(discovery.query())
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert 2 <= answers <= 5  # of 3 seconds and more


async def test_who_asks_and_knows_the_answer_gets_none() -> None:
    responder = discovery._Responder(None, ONE)  # type: ignore[arg-type]
    responder.hear(discovery.Packet(asks=True, knows=frozenset({instance_of(ONE.peer).lower()})))
    assert not responder._asked.is_set()
    responder.hear(discovery.Packet(asks=True))
    assert responder._asked.is_set()


async def test_an_address_of_another_machine_cannot_be_announced_on() -> None:
    with pytest.raises(Unavailable, match=r"cannot be used at 198\.51\.100\.7"):
        await look(TAG, 0.1, "198.51.100.7")
    with pytest.raises(Unavailable, match="no interface"):
        await look(TAG, 0.1, "2001:db8::7")


async def test_nothing_is_bound_to_every_interface_nor_joined_on_another(wire: Any) -> None:
    assert wire.ears.getsockname() == ("224.0.0.251", 5353)
    assert wire.mouth.getsockname() == ("127.0.0.1", 5353)


def test_finding_blocks_and_returns() -> None:
    assert discovery.find(b"nobody's", 0.2) == []
