"""A peer whose own trainer is at fault leaves with plain words, and sends nothing of what it made."""

from pathlib import Path

import pytest

from .swarm import check, raised


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("nan-initial", "the trainer wrote 1000 first parameters, finite ones expected: 1000"),
        ("dies", "Its last words"),
    ],
)
async def test_a_trainer_that_cannot_begin(broken: str, said: str, tmp_path: Path) -> None:
    async with raised(tmp_path, 1) as swarm:
        (peer,) = swarm.peers
        peer.trainer = ("--broken", broken)
        await peer.start()
        assert await peer.end() == 1, peer.words
        (error,) = peer.named("error")
        assert said in error["message"]
        assert error["next"]
        assert not peer.named("round.committed")
        assert "Traceback" not in peer.words


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("nan-update", "the update is not finite"),
        ("failed", "the trainer cannot train round 1: the loss is not finite"),
    ],
)
async def test_a_trainer_that_comes_to_nothing_takes_only_its_own_peer_along(
    broken: str, said: str, tmp_path: Path
) -> None:
    async with raised(tmp_path, 3, round_s=0.3) as swarm:
        first, second, bad = swarm.peers
        bad.trainer = ("--broken", broken)
        await swarm.start()
        assert await bad.end() == 1, bad.words
        (error,) = bad.named("error")
        assert said in error["message"]
        assert "Traceback" not in bad.words
        for peer in (first, second):
            left = await peer.until("peer.left", other=bad.id)
            assert left["reason"]
            await peer.committed(4)
        await swarm.leave()
        books = check(swarm)
        assert books[2].state.round == 1
