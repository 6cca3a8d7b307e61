"""Who is not there and why: bounded, rationed, and in words that say what to do."""

from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.net.refusals import BURST, MAX_REMEMBERED, REFILL_S, Refusals

BOB = PeerId("bob")


def test_the_same_reason_is_news_once() -> None:
    refusals = Refusals()
    assert refusals.note(BOB, "no", 0.0)
    assert not refusals.note(BOB, "no", 100.0)
    assert refusals.note(BOB, "still no", 100.0)
    assert refusals.reasons == {BOB: "still no"}


def test_strangers_cannot_make_us_talk_without_end() -> None:
    refusals = Refusals()
    told = [refusals.note(PeerId(f"stranger{number}"), "no", number * 0.01) for number in range(1000)]
    assert sum(told) == BURST
    assert refusals.note(BOB, "no", 9.99 + 0.5 * REFILL_S)
    assert not refusals.note(PeerId("carol"), "no", 9.99 + 0.5 * REFILL_S)


def test_strangers_cannot_fill_the_book_nor_push_out_whom_the_operator_named() -> None:
    refusals = Refusals({BOB})
    refusals.note(BOB, "no", 0.0)
    for number in range(2 * MAX_REMEMBERED):
        refusals.note(PeerId(f"stranger{number}"), "no", 0.0)
    assert len(refusals.reasons) == MAX_REMEMBERED
    assert BOB in refusals.reasons
    assert PeerId(f"stranger{2 * MAX_REMEMBERED - 1}") in refusals.reasons


def test_why_nobody_is_there_names_each_address_its_reason_and_the_next_step() -> None:
    refusals = Refusals()
    for _ in range(3):
        refusals.missed(BOB, "connection refused")
    refusals.missed(PeerId("carol"), "no answer within 5 s")
    words = refusals.why_nobody({BOB: "/ip4/1", PeerId("carol"): "/ip4/2", PeerId("dave"): "/ip4/3"})
    assert "/ip4/1: connection refused (tried 3 times); /ip4/2: no answer within 5 s; /ip4/3: no answer yet" in words
    assert "--listen lan" in words


def test_who_answered_and_refused_is_not_called_unreachable() -> None:
    refusals = Refusals()
    refusals.missed(BOB, "connection refused")
    refusals.note(BOB, "the other side said: another run", 0.0)
    refusals.missed(BOB, "")
    words = refusals.why_nobody({BOB: "/ip4/1"})
    assert "/ip4/1: the other side said: another run (tried 2 times)" in words
    assert "new invitation" in words
    assert "connection refused" not in words


def test_many_addresses_are_not_all_named() -> None:
    words = Refusals().why_nobody({PeerId(f"peer{number}"): f"/ip4/{number}" for number in range(10)})
    assert "/ip4/3" in words
    assert "/ip4/4" not in words
    assert "(and 6 more)" in words


def test_without_an_address_the_next_step_is_to_get_one() -> None:
    assert "Join with the line" in Refusals().why_nobody({})


def test_a_link_clears_the_page() -> None:
    refusals = Refusals()
    refusals.note(BOB, "no", 0.0)
    assert refusals.missed(BOB, "") == 1
    refusals.clear(BOB)
    assert not refusals.reasons
    assert refusals.attempts(BOB) == 0
    refusals.clear(Identity(bytes(32), bytes(32)).peer_id)
