"""Bad messages are counted by sender, told in moderation, and their sender is not heard for a while."""

from barnraise.ids import PeerId
from barnraise.peer.complaints import BUCKET, MAX_PEERS, MUTE_S, NUM_TOLD, REFILL_PER_S, Complaints

LIAR, HONEST = PeerId("liar"), PeerId("honest")


def test_a_flood_is_muted_and_counted_whole() -> None:
    book = Complaints()
    told = [book.note(LIAR, 0.0) for _ in range(BUCKET + 1)]
    assert [place for place, is_told in enumerate(told, start=1) if is_told] == [*range(1, NUM_TOLD + 1), 32]
    assert [book.is_muted(LIAR, MUTE_S - 1) for _ in range(100)] == [True] * 100
    assert book.counts[LIAR] == BUCKET + 101
    assert not book.is_muted(HONEST, 0.0)
    assert not book.is_muted(LIAR, MUTE_S)


def test_who_is_refused_now_and_then_is_heard_for_ever() -> None:
    book = Complaints()
    for turn in range(1000):
        now = turn / REFILL_PER_S
        book.note(HONEST, now)
        assert not book.is_muted(HONEST, now)


def test_who_goes_on_stays_muted() -> None:
    book = Complaints()
    for turn in range(BUCKET + 1):
        book.note(LIAR, float(turn) / 100)
    later = MUTE_S + 1.0
    assert not book.is_muted(LIAR, later)
    for _ in range(BUCKET):
        book.note(LIAR, later)
    assert book.is_muted(LIAR, later)


def test_many_names_take_no_more_memory() -> None:
    book = Complaints()
    for name in range(3 * MAX_PEERS):
        book.note(PeerId(f"peer-{name}"), 0.0)
    assert len(book.counts) <= MAX_PEERS
