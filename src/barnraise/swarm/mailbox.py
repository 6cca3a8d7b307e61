"""Messages for other heights than ours: kept for when we get there, or answered because we have been there."""

from collections.abc import Sequence

from barnraise.consensus.agreement import Decided, Decision
from barnraise.consensus.agreement import decided as told
from barnraise.ids import PeerId
from barnraise.swarm.messages import Message

MAX_EARLY = 32
"""Messages kept per sender for the next few heights, which faster members reach first."""
MAX_RECENT = 32
"""Decisions kept for members that are a few entries behind; who is rounds behind fetches the state."""


class Mailbox:
    """Bounded: a peer that floods it loses its own messages, which it repeats anyway."""

    def __init__(self, height: int, recent: Sequence[Decision]) -> None:
        """Start with the last decisions before ``height``, as found on disk."""
        self._early: dict[PeerId, list[Message]] = {}
        newest = recent[-MAX_RECENT:]
        self._recent = {at: told(at, decision) for at, decision in enumerate(newest, start=height - len(newest))}

    def keep(self, sender: PeerId, message: Message) -> None:
        """Keep a message that is ahead of us."""
        kept = self._early.setdefault(sender, [])
        if len(kept) < MAX_EARLY and message not in kept:
            kept.append(message)

    def take(self) -> list[tuple[PeerId, Message]]:
        """Return what was kept, and forget it."""
        early, self._early = self._early, {}
        return [(sender, message) for sender, messages in early.items() for message in messages]

    def remember(self, height: int, decision: Decision) -> None:
        """Note a decision of ours."""
        self._recent[height] = told(height, decision)
        self._recent.pop(height - MAX_RECENT, None)

    def decided(self, height: int) -> Decided | None:
        """Return what was decided at a height not long ago."""
        return self._recent.get(height)
