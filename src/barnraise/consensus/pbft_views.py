"""Which view each member of `pbft` has come to, and what it claims to have prepared; it knows nothing of values.

Of each member two view changes are kept, often the same: the newest, which draws the rest along, and of those to our
view or beyond the one with the lowest claim, which is what justifies a proposal.
"""

from barnraise.consensus.pbft_messages import ViewChange


class Views:
    """The view changes of all members, seen from ours."""

    def __init__(self, quorum: int, num_faulty: int) -> None:
        """Begin in view 0, to which everybody has come."""
        self.ours = 0
        """Nothing older is voted for."""
        self.begun = 0
        """The newest of our views that a quorum has come to."""
        self._quorum = quorum
        self._num_faulty = num_faulty
        self._newest: dict[str, ViewChange] = {}
        self._promises: dict[str, ViewChange] = {}
        self._ahead: set[str] = set()
        """Whose newest goes beyond our view."""

    def __len__(self) -> int:
        return len(self._newest) + len(self._promises)

    def newest(self, member: str) -> ViewChange | None:
        """Return how far a member has gone."""
        return self._newest.get(member)

    def is_newer(self, change: ViewChange) -> bool:
        """Tell whether its member has not been seen as far."""
        newest = self._newest.get(change.member)
        return newest is None or change.view > newest.view

    def is_lower(self, change: ViewChange) -> bool:
        """Tell whether it is the one of its member that justifies most."""
        promise = self._promises.get(change.member)
        return change.view >= self.ours and (promise is None or change.prepared_view < promise.prepared_view)

    def add(self, change: ViewChange) -> None:
        """Take in a view change that is one of both, or both."""
        is_newer, is_lower = self.is_newer(change), self.is_lower(change)
        if is_newer:
            self._newest[change.member] = change
            if change.view > self.ours:
                self._ahead.add(change.member)
        if is_lower:
            self._promises[change.member] = change

    def enter(self, view: int) -> None:
        """Go on to a newer view."""
        self.ours = view
        self._ahead = {member for member, change in self._newest.items() if change.view > view}
        newest = {member: change for member, change in self._newest.items() if change.view >= view}
        self._promises = newest | {member: kept for member, kept in self._promises.items() if kept.view >= view}

    @property
    def pull(self) -> int:
        """Return the view that f + 1 members have come to, or passed; ours where they are not ahead."""
        if len(self._ahead) <= self._num_faulty:
            return self.ours
        return sorted((self._newest[member].view for member in self._ahead), reverse=True)[self._num_faulty]

    @property
    def can_begin(self) -> bool:
        """Tell whether a quorum has just come to our view."""
        return self.begun < self.ours and len(self._promises) >= self._quorum

    def claims(self) -> list[ViewChange]:
        """Return what stands for each member, to our view or beyond."""
        return list(self._promises.values())

    def justifying(self, prepared_view: int) -> dict[str, ViewChange]:
        """Return those that claim nothing newer than a certificate of this view."""
        return {member: change for member, change in self._promises.items() if change.prepared_view <= prepared_view}

    def are_enough(self, prepared_view: int) -> bool:
        """Tell whether a quorum claims nothing newer than a certificate of this view."""
        return sum(change.prepared_view <= prepared_view for change in self._promises.values()) >= self._quorum
