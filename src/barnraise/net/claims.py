"""Who holds a peer's one slot when several connections want it; pure.

Two peers may dial each other at once, so one of them has the last word: the one with the smaller peer id, the arbiter.

    A < B, both dial. A's dial is connection 1, B's is connection 2.
    1. On 2, A (listening) comes to its decision first: it claims the slot for 2 and says Verdict.
    2. On 1, A (dialling) comes to its decision: the same process of B holds the slot, so it says Refusal.
    3. B sees 1 refused and 2 confirmed. Whatever the order, exactly one is left, and both know which.

B claims only once A has confirmed; if it did so at its own decision, it would give up 2 for 1 in the middle of this.

A claim gives way to a new process of that peer (another instance), and to the same process once the claim is older
than a dial takes: by then that peer would not dial if it still had a link, so ours is dead and we have not noticed.

A process that gave way and comes back was not replaced: two are alive with one key, on two machines as a rule. They
would take each other's place for ever. Of the two, the one with the smaller instance stays, which all members know
without asking each other; the other is told why not, as long as the first is there.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from barnraise.ids import PeerId
from barnraise.net.admission import ADMISSION_DEADLINE_S
from barnraise.net.links import Link

DIAL_DEADLINE_S: Final = 10.0
"""A dial that takes longer is given up."""
STALE_CLAIM_S: Final = DIAL_DEADLINE_S + ADMISSION_DEADLINE_S
MAX_REPLACED: Final = 4
"""Processes of one peer that are remembered after they gave way."""
MAX_REMEMBERED_PEERS: Final = 512
DUPLICATE: Final = "duplicate"
"""The reason of a refusal that is nobody's trouble: the two peers have another connection."""


@dataclass(eq=False, slots=True)
class Claim:
    """One admission's hold on a peer's slot."""

    peer: PeerId
    instance: bytes
    """The peer's process."""
    since: float
    link: Link | None = field(default=None)
    """Set once the admission has become a link."""
    is_warned: bool = field(default=False)
    """Whether this process was told of another one with its key."""


class Claims:
    """One peer's book of who holds which slot.

    Args:
        local: whose book it is.
        stale_after_s: how old a claim is that gives way to the same process.
    """

    def __init__(self, local: PeerId, stale_after_s: float = STALE_CLAIM_S) -> None:
        self._local = local
        self._stale_after_s = stale_after_s
        self._held: dict[PeerId, Claim] = {}
        self._replaced: OrderedDict[PeerId, deque[bytes]] = OrderedDict()

    def is_arbiter(self, peer: PeerId) -> bool:
        """Return whether this side has the last word between the two."""
        return self._local < peer

    def objection(self, peer: PeerId, instance: bytes, now: float) -> str:
        """Return why a connection of this process of a peer is not wanted; empty if it is."""
        claim = self._held.get(peer)
        if claim is None:
            return ""
        if claim.instance != instance:
            return same_key(peer) if self._is_second(claim, instance) else ""
        return DUPLICATE if self.is_arbiter(peer) and now - claim.since < self._stale_after_s else ""

    def _is_second(self, claim: Claim, instance: bytes) -> bool:
        """Return whether a process that gave way is back and has to stay behind the one that holds the claim."""
        return instance in self._replaced.get(claim.peer, ()) and claim.instance < instance

    def to_warn(self, peer: PeerId) -> Link | None:
        """Return the link of the process that stays, once, when another with its key was refused."""
        claim = self._held.get(peer)
        if claim is None or claim.link is None or claim.is_warned:
            return None
        claim.is_warned = True
        return claim.link

    def take(self, peer: PeerId, instance: bytes, now: float) -> Claim:
        """Give the slot to a new claim; the link of the one that held it is closed."""
        previous = self._held.get(peer)
        claim = self._held[peer] = Claim(peer, instance, now)
        if previous and previous.instance != instance:
            self._remember(peer, previous.instance)
        if previous and previous.link:
            previous.link.close("the peer came back over a new connection")
        return claim

    def _remember(self, peer: PeerId, instance: bytes) -> None:
        replaced = self._replaced.setdefault(peer, deque(maxlen=MAX_REPLACED))
        self._replaced.move_to_end(peer)
        if instance not in replaced:
            replaced.append(instance)
        if len(self._replaced) > MAX_REMEMBERED_PEERS:
            self._replaced.popitem(last=False)

    def holds(self, claim: Claim) -> bool:
        """Return whether a claim still has the slot."""
        return self._held.get(claim.peer) is claim

    def release(self, claim: Claim | None) -> None:
        """Free the slot, if the claim still has it."""
        if claim and self.holds(claim):
            del self._held[claim.peer]


def same_key(peer: PeerId) -> str:
    """Return what is said to two live processes that have one key."""
    return (
        f"two processes run with the key of peer {peer}, on two machines perhaps: its identity.key was copied. Stop one "
        "and give it a data directory of its own, where it makes its own key"
    )
