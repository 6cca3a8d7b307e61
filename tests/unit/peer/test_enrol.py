"""Who joins learns the run's configuration from whoever sends the one that the run is named after."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from barnraise.config import RoundConfig, RunConfig, to_toml
from barnraise.errors import Unavailable
from barnraise.ids import PeerId
from barnraise.net.memory import MemoryNetwork, open_medium
from barnraise.net.seam import NetworkEvent, PeerUp, Received
from barnraise.observe.events import EventLog
from barnraise.peer.enrol import enrol
from barnraise.swarm import messages
from barnraise.swarm.messages import Genesis, GenesisWanted, Message, Status

CONFIG = RunConfig(founders=("peer-1",), seed=7, round=RoundConfig(rounds=9))
ME = PeerId("me")
STATUS = Status(height=3, round=1, wants_in=False)
GOOD = Genesis(config=to_toml(CONFIG))
DEADLINE_S = 20.0


async def answer(network: MemoryNetwork, said: Sequence[Message | bytes]) -> None:
    """Be a peer of the run: send some words to whoever asks what the run is."""
    async for event in network.events:
        if isinstance(event, Received):
            asked = messages.decode(event.peer, event.message)
            assert isinstance(asked, GenesisWanted)
            for word in said:
                await network.send(event.peer, word if isinstance(word, bytes) else messages.encode(word))


@asynccontextmanager
async def joining(tmp_path: Path, *peers: Sequence[Message | bytes]) -> AsyncIterator[MemoryNetwork]:
    """Put peers that say these words on a medium; give the network of the one that joins."""
    async with open_medium(random.Random(1)) as medium, trio.open_nursery() as nursery:
        for number, said in enumerate(peers, start=1):
            nursery.start_soon(answer, medium.join(PeerId(f"peer-{number}"), b"hello"), said)
        yield medium.join(ME)
        nursery.cancel_scope.cancel()


async def enrolled(tmp_path: Path, *peers: Sequence[Message | bytes]) -> tuple[RunConfig, list[NetworkEvent]]:
    async with joining(tmp_path, *peers) as network:
        return await enrol(network, CONFIG.run_id, DEADLINE_S, EventLog(tmp_path / "events"))


async def test_the_configuration_is_learned_and_everything_else_is_kept_in_order(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    words = [STATUS, replace_height(4), GOOD, replace_height(5)]
    config, meanwhile = await enrolled(tmp_path, words)
    assert config == CONFIG
    assert isinstance(meanwhile[0], PeerUp)
    assert (meanwhile[0].peer, meanwhile[0].hello) == ("peer-1", b"hello")
    heard = [messages.decode(event.peer, event.message) for event in meanwhile[1:] if isinstance(event, Received)]
    assert heard == [STATUS, replace_height(4)]


def replace_height(height: int) -> Status:
    return Status(height=height, round=1, wants_in=False)


BAD: dict[str, Message | bytes] = {
    "another run's": Genesis(config=to_toml(replace(CONFIG, seed=8))),
    "no TOML": Genesis(config="seed = = 7"),
    "nothing": Genesis(config=""),
    "an unknown key": Genesis(config=to_toml(CONFIG) + "\n[more]\nof = 1\n"),
    "a value out of range": Genesis(config=to_toml(CONFIG).replace("rounds = 9", "rounds = 0")),
    "nested too deeply": Genesis(config="a = " + "[" * 20_000),
    "no message": b"\xc1",
}


@pytest.mark.parametrize("word", BAD.values(), ids=BAD)
async def test_who_sends_another_configuration_is_named_and_the_next_one_is_heard(
    tmp_path: Path, autojump_clock: MockClock, word: Message | bytes
) -> None:
    config, _ = await enrolled(tmp_path, [word, GOOD])
    assert config == CONFIG
    (refused,) = (tmp_path / "events").read_text().splitlines()
    assert "peer.refused" in refused
    assert "peer-1" in refused


async def test_a_liar_does_not_keep_an_honest_peer_from_being_heard(tmp_path: Path, autojump_clock: MockClock) -> None:
    config, _ = await enrolled(tmp_path, [BAD["another run's"]] * 3, [GOOD])
    assert config == CONFIG


@pytest.mark.parametrize("said", [[], [STATUS] * 3, [BAD["another run's"]]], ids=["silence", "other words", "a lie"])
async def test_where_nobody_sends_it_in_time_it_says_what_to_do(
    tmp_path: Path, autojump_clock: MockClock, said: list[Message | bytes]
) -> None:
    began = trio.current_time()
    async with joining(tmp_path, said) as network:
        with pytest.raises(Unavailable, match=r"no peer of run .* within 20 s\. Is the run still going on\?") as caught:
            await enrol(network, CONFIG.run_id, DEADLINE_S, EventLog(tmp_path / "events"))
    assert CONFIG.run_id.hex()[:12] in str(caught.value)
    assert trio.current_time() - began == pytest.approx(DEADLINE_S, abs=1.0)


async def test_nobody_at_all_is_waited_for_no_longer(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with joining(tmp_path) as network:
        with pytest.raises(Unavailable):
            await enrol(network, CONFIG.run_id, DEADLINE_S, EventLog(tmp_path / "events"))


async def test_a_peer_may_not_say_where_this_machine_keeps_its_files(tmp_path: Path, autojump_clock: MockClock) -> None:
    """No path is hashed, so whoever sends the configuration could put in its own."""
    theirs = replace(
        CONFIG, data=replace(CONFIG.data, source="/dev/zero"), model=replace(CONFIG.model, source="/somewhere")
    )
    assert theirs.run_id == CONFIG.run_id
    config, _ = await enrolled(tmp_path, [Genesis(config=to_toml(theirs))])
    assert config == CONFIG


async def test_a_peer_that_is_gone_again_before_it_is_asked_does_not_end_the_search(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with joining(tmp_path, [GOOD], [GOOD]) as network:
        await trio.sleep(1.0)
        assert len(network._links) == 2
        network._links[PeerId("peer-1")].close("cut")
        await trio.sleep(0.01)
        assert PeerId("peer-1") not in network._links  # and its `PeerUp` is still unread
        config, _ = await enrol(network, CONFIG.run_id, DEADLINE_S, EventLog(tmp_path / "events"))
    assert config == CONFIG
