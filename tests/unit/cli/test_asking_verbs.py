"""``key rotate|revoke|readmit|sign``, ``upgrade``, ``recover``: what they sign, with whose keys, and what becomes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from barnraise import cli
from barnraise.identity import Identity, PublicIdentity
from barnraise.ids import PeerId
from barnraise.peer.petitions import Desk
from barnraise.peer.succession import NEXT_IDENTITY_FILE
from barnraise.runs import folding
from barnraise.swarm import petitions
from barnraise.swarm.petitions import Pool
from barnraise.swarm.records import NEWEST, Recover, Revoke, Rotate, Upgrade


@pytest.fixture
def run(made_run: Callable[..., Any]) -> Any:
    return made_run(2)


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main([*map(str, words)]) == 2
    return capsys.readouterr().err


def pool_of(home: Path) -> Pool:
    """Return what the members come to hear from a peer that runs in a directory."""
    known: dict[PeerId, PublicIdentity] = {}

    def introduce(peer: PeerId, keys: bytes) -> None:
        known[peer] = PublicIdentity.decode(keys)

    def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        return peer in known and known[peer].verify(context, message, signature)

    state, pool = folding.state_of(home), Pool(introduce)
    for petition in Desk(home).look(state.height):
        pool.receive(state, PeerId("me"), petition, verify)
    return pool


def test_what_was_agreed_is_folded_from_the_log(run: Any) -> None:
    assert folding.state_of(run.home(0)) == run.state
    assert folding.state_of(run.home(2)).round == run.state.round - 1


def test_a_peer_asks_to_go_on_with_another_key(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    home, old = run.home(1), run.directory.peers[1]
    found = answer(capsys, "key", "rotate", "--dir", home)
    new = Identity.load(home / NEXT_IDENTITY_FILE).peer_id
    assert (found["enough"], found["signed"]) == (True, sorted([old, new]))
    assert answer(capsys, "key", "rotate", "--dir", home)["files"] == found["files"]
    event = pool_of(home).due(run.state, {})
    assert event is not None
    assert event.change == Rotate(old=old, new=new)
    assert Identity.load(home / "identity.key").peer_id == old


def test_one_key_is_rotated_at_a_time(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has 3 peers" in refusal(capsys, "key", "rotate", "--dir", run.path)


def test_a_lost_key_is_revoked_by_its_owner_or_by_operators(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    peers = run.directory.peers
    assert answer(capsys, "key", "revoke", "--dir", run.home(2))["signed"] == [peers[2]]
    first = answer(capsys, "key", "revoke", peers[2][-8:], "--dir", run.home(0))
    assert (first["signed"], first["enough"]) == ([peers[0]], False)
    second = answer(capsys, "key", "sign", first["files"][0], "--dir", run.home(1))
    assert (second["signed"], second["enough"]) == (sorted(peers[:2]), True)
    event = pool_of(run.home(1)).due(run.state, {})
    assert event is not None
    assert event.change == Revoke(peer=peers[2])
    assert pool_of(run.home(0)).due(run.state, {}) is None


def test_only_who_was_revoked_has_a_place_to_give(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no peer here" in refusal(capsys, "key", "readmit", "abc", "--dir", run.home(0))
    assert "is missing" in refusal(capsys, "key", "readmit", "--dir", run.home(0))


def test_an_upgrade_is_signed_by_every_operators_key_at_hand(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "upgrade", "round.rounds=40", "outer.lr=0.5", "--dir", run.path)
    assert found["enough"]
    assert len(found["signed"]) == 2
    assert len(found["files"]) == 3
    pool = pool_of(run.home(2))
    assert pool.due(run.state, {}) is None
    event = pool.due(run.state, dict.fromkeys(run.state.peers, NEWEST))
    assert event is not None
    assert event.change == Upgrade(number=1, version=2, rules=(("outer.lr", "0.5"), ("round.rounds", "40")))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.num_layers=9"], "is fixed for a run"),
        (["outer.lr"], "no KEY=VALUE"),
        (["outer.lr=much"], "Expected `float`"),
        (["--records", "9"], "Install a newer one"),
        (["--records", "1"], "changes nothing"),
    ],
)
def test_an_upgrade_that_cannot_be_is_refused_before_it_is_signed(
    words: list[str], told: str, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refusal(capsys, "upgrade", *words, "--dir", run.path)
    assert not (run.home(0) / "petitions").exists()


def test_a_recovery_is_only_told_until_it_is_meant(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    peers = run.directory.peers
    words = ["recover", peers[0][-8:], peers[1], "--dir", str(run.path)]
    assert answer(capsys, *words)["signed"] == []
    assert cli.main(words) == 0
    assert "then add --yes" in capsys.readouterr().out
    assert not (run.home(0) / "petitions").exists()
    assert answer(capsys, *words, "--yes")["enough"]
    decision = pool_of(run.home(0)).recovery(run.state)
    assert decision is not None
    body = petitions.read_body(decision.value)
    assert isinstance(body, Recover)
    assert body.members == tuple(sorted(peers[:2]))
    assert pool_of(run.home(2)).recovery(folding.state_of(run.home(2))) is None


def test_operators_recover_by_the_same_command_apart_from_each_other(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = run.directory.peers
    for index in (0, 1):
        assert not answer(capsys, "recover", *peers[:2], "--yes", "--dir", run.home(index))["enough"]
    names = [{path.name for path in (run.home(index) / "petitions").iterdir()} for index in (0, 1)]
    assert names[0] == names[1]


def test_a_recovery_names_somebody_who_was_there(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = Identity.generate().peer_id
    assert "nobody who has" in refusal(capsys, "recover", stranger, "--dir", run.path)
    assert "nobody is named" in refusal(capsys, "recover", "--dir", run.path)
    assert "no peer here" in refusal(capsys, "recover", "xyz", "--dir", run.path)


def test_keys_that_do_not_count_sign_nothing(made_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(1)
    (run.home(0) / "identity.key").unlink()
    Identity.create(run.home(0) / "identity.key")
    told = refusal(capsys, "upgrade", "outer.lr=0.5", "--dir", run.home(0))
    assert "no key at hand counts" in told
    assert run.directory.peers[1][-6:] in told


@pytest.mark.parametrize("data", [b"", b"\x00" * 200_000, b"\x93\xa8Petition\xc4\x00\x90"])
def test_what_is_no_petition_is_not_signed(
    data: bytes, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.petition"
    file.write_bytes(data)
    assert "no petition" in refusal(capsys, "key", "sign", file, "--dir", run.path)
    assert "cannot be read" in refusal(capsys, "key", "sign", tmp_path / "none", "--dir", run.path)
