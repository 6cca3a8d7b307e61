"""The address book: whose word counts, what is passed on, what anybody can make us remember."""

import pytest

from barnraise.identity import Identity
from barnraise.net import places as places_module
from barnraise.net.addresses import PeerAddress, decode_peers, parse_address
from barnraise.net.places import Places

ALICE, BOB, CAROL = (Identity(bytes([n]) * 32, bytes(32)).peer_id for n in range(3))


def at(port: int, peer: str = BOB) -> PeerAddress:
    return parse_address(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}")


def test_what_the_operator_named_is_tried_first_and_nothing_twice() -> None:
    places = Places(ALICE, [at(1), at(2)])
    places.hear(BOB, BOB, (at(3), at(1)))
    places.see(at(4))
    assert places.of(BOB) == (at(1), at(2), at(3), at(4))
    assert places.of(CAROL) == ()


def test_a_peers_own_word_outweighs_what_others_say() -> None:
    places = Places(ALICE, [])
    assert places.hear(CAROL, BOB, (at(1),)) == (True, False)
    assert places.hear(BOB, BOB, (at(2),)) == (False, True)
    assert places.hear(BOB, BOB, (at(2),)) == (False, False)
    assert places.hear(CAROL, BOB, (at(3),)) == (False, False)
    assert places.of(BOB) == (at(2),)


def test_only_what_peers_told_is_passed_on() -> None:
    places = Places(ALICE, [at(1)])
    places.see(at(2, CAROL))
    ours = (at(9, ALICE).text,)
    assert list(decode_peers(ALICE, places.message(ours))) == [ALICE]
    places.hear(BOB, BOB, (at(3),))
    assert decode_peers(ALICE, places.message(ours)) == {ALICE: (at(9, ALICE),), BOB: (at(3),)}
    assert decode_peers(ALICE, places.news_of(BOB)) == {BOB: (at(3),)}


def test_nobody_can_tell_us_of_ourselves() -> None:
    places = Places(ALICE, [at(1, ALICE)])
    assert places.names_itself
    assert places.hear(BOB, ALICE, (at(2, ALICE),)) == (False, False)
    assert not places.see(at(3, ALICE))
    assert places.of(ALICE) == ()


def test_the_book_has_a_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "MAX_TOLD_PEERS", 1)
    monkeypatch.setattr(places_module, "MAX_SEEN_PEERS", 1)
    places = Places(ALICE, [])
    assert places.hear(BOB, BOB, (at(1),)) == (True, True)
    assert places.hear(CAROL, CAROL, (at(1, CAROL),)) == (False, False)
    assert places.see(at(1))
    assert places.see(at(2))
    assert not places.see(at(1, CAROL))
    assert places.of(BOB) == (at(1), at(2))
    assert not places.is_only_seen(BOB)
    assert places.is_only_seen(CAROL)
