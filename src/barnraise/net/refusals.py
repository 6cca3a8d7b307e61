"""Why peers are not linked: what each side said, what dials met, and which of it is worth an event; pure.

Strangers can knock as often as they like and under any number of names, so what is kept is bounded and what is told
is rationed: the first ``BURST`` reasons at once, then one every ``REFILL_S``.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from typing import Final

from barnraise.ids import PeerId

MAX_REMEMBERED: Final = 512
BURST: Final = 8
REFILL_S: Final = 10.0
MAX_NAMED: Final = 4
"""Addresses that one error names."""


class Refusals:
    """One peer's book of who is not there, and why.

    Args:
        sought: peers that the operator named, which strangers cannot push out of the book.
    """

    def __init__(self, sought: Collection[PeerId] = ()) -> None:
        self._sought = frozenset(sought)
        self._reasons: OrderedDict[PeerId, str] = OrderedDict()
        self._unreachable: dict[PeerId, str] = {}
        self._attempts: Counter[PeerId] = Counter()
        self._tokens = float(BURST)
        self._refilled_at = 0.0

    @property
    def reasons(self) -> Mapping[PeerId, str]:
        """Why peers that answered were not admitted, or did not admit us, in plain words."""
        return self._reasons

    def note(self, peer: PeerId, reason: str, now: float) -> bool:
        """Remember why a peer and we did not take each other; return whether that is worth telling."""
        is_news = self._reasons.get(peer) != reason
        self._reasons[peer] = reason
        self._reasons.move_to_end(peer)
        if len(self._reasons) > MAX_REMEMBERED:
            strangers = (known for known in self._reasons if known not in self._sought)
            del self._reasons[next(strangers)]
        return is_news and self.may_tell(now)

    def may_tell(self, now: float) -> bool:
        """Take one of the rationed tokens; return whether there was one."""
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._refilled_at) / REFILL_S)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def missed(self, peer: PeerId, reason: str) -> int:
        """Count one more attempt that gave no link; return how many in a row. ``reason``: "" if the peer refused."""
        if reason:
            self._unreachable[peer] = reason
        else:
            self._unreachable.pop(peer, None)
        self._attempts[peer] += 1
        return self._attempts[peer]

    def attempts(self, peer: PeerId) -> int:
        """Return how many attempts in a row gave no link."""
        return self._attempts[peer]

    def has_answered(self, peer: PeerId) -> bool:
        """Return whether the last attempt failed because one of the two did not want the other."""
        return peer in self._reasons and peer not in self._unreachable

    def clear(self, peer: PeerId) -> None:
        """Forget a peer: it is linked now, or sought no more."""
        self._reasons.pop(peer, None)
        self._unreachable.pop(peer, None)
        self._attempts.pop(peer, None)

    def why_nobody(self, sought: Mapping[PeerId, str]) -> str:
        """Return why none of these is there.

        Args:
            sought: where each was looked for.
        """
        if not sought:
            return (
                "no peer of the run was found, and no address of one is known. Join with the line that a peer of it "
                "printed, or start it with mDNS on this network."
            )
        named = [f"{where}: {self._why(peer)}" for peer, where in list(sought.items())[:MAX_NAMED]]
        left_out = f" (and {len(sought) - MAX_NAMED} more)" if len(sought) > MAX_NAMED else ""
        return f"no peer of the run could be joined. {'; '.join(named)}{left_out}. {self._next_step(sought)}"

    def _why(self, peer: PeerId) -> str:
        reason = self._unreachable.get(peer) or self._reasons.get(peer) or "no answer yet"
        times = self._attempts[peer]
        return f"{reason} (tried {times} times)" if times > 1 else reason

    def _next_step(self, sought: Mapping[PeerId, str]) -> str:
        if any(self.has_answered(peer) for peer in sought):
            return "Ask for a new invitation where the run goes on."
        return (
            "Is a peer of it running, at that address, on a network that this machine reaches? If the run was started "
            "for its own machine alone, start it with --listen lan and use the line that it prints then."
        )
