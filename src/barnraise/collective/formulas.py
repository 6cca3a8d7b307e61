"""What each kind of all-reduce costs, in closed form: latencies, bytes and messages; what a link makes of them is elsewhere.

With a latency of a seconds, b seconds a byte and S bytes, an unpipelined all-reduce takes about
``num_steps * a + path * b * S``. These are the textbook's terms (Thakur, Rabenseifner and Gropp 2005):

    ring          2(N - 1) a + 2(N - 1)/N bS
    tree          2 ceil(log2 N) (a + bS)
    butterfly     2 log2 N a + 2(N - 1)/N bS        N = P, a power of two; else P in place of N, and 2a + 2bS more
    shards        2a + 2(N - 1)/N bS
    centralised   2a + 2(N - 1) bS                  2(N - 1) (a + bS) where the root handles one rank after another
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from barnraise.collective.schedule import Schedule
from barnraise.errors import LocalError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of one collective; bytes are counted in lengths of the vector."""

    num_steps: int
    """Latencies that follow one another."""
    path: Fraction
    """Vectors that follow one another where each step ends before the next begins, and where a rank sends to one rank and
    receives from one at a time. Of a tree at most so many: levels where nobody has two children take half the time."""
    sent: Fraction
    """Vectors that the busiest rank sends; exact where all parts are equally long. A pipelined schedule takes the time of
    these rather than of ``path``."""
    num_messages: int
    """Messages that the busiest rank sends, one a part."""

    def sent_bytes(self, size_bytes: int) -> Fraction:
        """Return the bytes that the busiest rank sends."""
        return self.sent * size_bytes


def cost_of(kind: str, world_size: int) -> Cost:
    """Return the cost of a kind that needs nothing but the number of ranks.

    Raises:
        LocalError: there is no formula for it.
    """
    formulas = {
        "ring": _ring,
        "tree": _tree,
        "butterfly": _butterfly,
        "shards": _shards,
        "centralised": _centralised,
    }
    if kind not in formulas or world_size < 1:
        raise LocalError(f"there is no formula for {kind!r} of {world_size} ranks")
    if world_size == 1:
        return Cost(num_steps=0, path=Fraction(0), sent=Fraction(0), num_messages=0)
    return formulas[kind](world_size)


def counted(schedule: Schedule) -> Cost:
    """Return the cost of any schedule, counted from its transfers: for the composed ones, and to check the formulas."""
    lengths = [high - low for low, high in pairwise(schedule.cuts)]
    sent: defaultdict[int, Fraction] = defaultdict(Fraction)
    busy: defaultdict[int, defaultdict[tuple[int, str], Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    for move in schedule.transfers:
        length = lengths[move.part]
        sent[move.sender] += length
        busy[move.step][move.sender, "sends"] += length
        busy[move.step][move.receiver, "receives"] += length
    return Cost(
        num_steps=len(busy),
        path=sum((max(step.values()) for step in busy.values()), Fraction(0)),
        sent=max(sent.values(), default=Fraction(0)),
        num_messages=max(Counter(move.sender for move in schedule.transfers).values(), default=0),
    )


def _ring(world_size: int) -> Cost:
    share = Fraction(2 * (world_size - 1), world_size)
    return Cost(num_steps=2 * (world_size - 1), path=share, sent=share, num_messages=2 * (world_size - 1))


def _shards(world_size: int) -> Cost:
    share = Fraction(2 * (world_size - 1), world_size)
    return Cost(num_steps=2, path=share, sent=share, num_messages=2 * (world_size - 1))


def _centralised(world_size: int) -> Cost:
    others = world_size - 1
    return Cost(num_steps=2, path=Fraction(2 * others), sent=Fraction(others), num_messages=others)


def _tree(world_size: int) -> Cost:
    """Return the cost of two trees; who has two children in one sends three halves there and one half in the other."""
    depth = (world_size - 1).bit_length()
    num_messages = min(world_size, 4)
    sent = Fraction(num_messages, 2)
    return Cost(num_steps=2 * depth, path=Fraction(2 * depth), sent=sent, num_messages=num_messages)


def _butterfly(world_size: int) -> Cost:
    """Return the cost of halving and doubling; the partner of a rank that folds sends it the result besides."""
    rounds = world_size.bit_length() - 1
    core = 1 << rounds
    is_folded = world_size > core
    share = Fraction(2 * (core - 1), core)
    return Cost(
        num_steps=2 * (rounds + is_folded),
        path=share + 2 * is_folded,
        sent=share + is_folded,
        num_messages=2 * (core - 1) + core * is_folded,
    )
