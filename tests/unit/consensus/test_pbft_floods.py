"""What a member of `pbft` holds while others flood it: bounded by the number of members, not by what they send."""

import itertools

from barnraise.consensus.agreement import Decided
from barnraise.consensus.pbft import Pbft
from barnraise.consensus.pbft_book import VIEWS_AHEAD, VIEWS_BEHIND, Book
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

from .pbft_cast import Author, X, Y, member, peers, prepare_all, tell

SIZE = 7
NUM_LIARS = 2
NUM_PAGES = VIEWS_BEHIND + VIEWS_AHEAD + 1
LIARS = tuple(Author(place) for place in range(SIZE - NUM_LIARS, SIZE))
NUM_FLOODED = 300


def flooded(replica: Pbft) -> int:
    """Return the most that a member held while two liars said everything they could about many views and values."""
    most = 0
    for number in range(NUM_FLOODED):
        value, view = b"value %d" % number, number % 40
        for liar in LIARS:
            tell(replica, liar.prepare(view, value), liar.commit(view, value))
            tell(replica, liar.change(number + 1, number, value), liar.change(number + 2, number, value))
            replica.receive(liar.peer, Decided(height=7, view=number, value=value, votes=()))
            if peers(SIZE)[view % SIZE] == liar.peer:
                tell(replica, liar.pre_prepare(view, value))
        most = max(most, replica.num_held)
    return most


def test_two_liars_cannot_fill_our_memory() -> None:
    replica = member(0, SIZE)
    limit = 2 * SIZE + NUM_PAGES * (2 * NUM_LIARS + 1) + NUM_LIARS * (2 * NUM_LIARS + 1)
    assert flooded(replica) <= limit
    assert len(replica.evidence) <= 4 * NUM_LIARS


def test_a_flood_does_not_keep_the_others_from_deciding() -> None:
    replica = member(1, SIZE)
    tell(replica, Author(0).pre_prepare(0, X))
    flooded(replica)
    replica.approve(0)
    assert prepare_all(replica, 0, X, 0, 2, 3, 4)
    tell(replica, *(Author(place).commit(0, X) for place in (0, 2, 3, 4)))
    assert replica.decision is not None
    assert replica.decision.value == X


def test_old_views_are_forgotten_except_for_the_certificate() -> None:
    replica = member(0)
    tell(replica, Author(0).pre_prepare(0, X))
    prepare_all(replica, 0, X, 1, 2, 3)
    for view in range(1, 30):
        tell(replica, *(Author(place).change(view) for place in (1, 2, 3)))
        tell(replica, *(Author(place).prepare(view, Y) for place in (1, 2)))
    certificate = 1 + 3
    assert replica.num_held <= certificate + 1 + 2 * 4 + 2 * NUM_PAGES


def test_what_is_sought_from_a_member_is_one_thing_at_a_time() -> None:
    book = Book()
    peer = PeerId("peer-2")
    for view, number in itertools.product((0, 90, 91), range(20)):
        value = b"%d" % number
        book.seek(peer, view, digest(value))
        page = book.page(view, digest(value))
        assert page is not None
        page.propose(digest(value), Author(0).pre_prepare(view, value))
        page.prepares.add(Author(2).prepare(view, value))
    assert book.num_held == 2 + 2 + 2, "the first of views 0 and 91, and what is sought last"
    assert book.page(90, digest(b"0")) is None
