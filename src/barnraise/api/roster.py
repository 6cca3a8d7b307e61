"""Who belongs to a group and in which order: by a list that all machines share, or by agreement; pure.

The agreement. Who waits for n peers says so (`Want`). Once the one with the smallest id sees n that want the same, it
forms the group of the n smallest ids, itself the first, and says so (`Formed`); who is named in it takes it over and
says the same. Who waits and hears of a group that it is not in gives up, and says why: one cluster and name are one group.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Final, Protocol

import msgspec

from barnraise.errors import ConfigError, PeerError, Unavailable
from barnraise.ids import PeerId, short

MAX_GROUP: Final = 256
"""As many as one control plane connects; with 52 characters each they fit into one message."""

Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_GROUP)]
Name = Annotated[str, msgspec.Meta(max_length=64)]


class Want(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """I wait for a group of so many, myself included."""

    count: Count


class Formed(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """I am in this group; the order is that of the ranks."""

    members: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=MAX_GROUP)]


class Roster(Protocol):
    """Knows the group, once there is one."""

    @property
    def group(self) -> tuple[PeerId, ...] | None:
        """The members by rank; None: not agreed yet."""
        ...

    @property
    def statement(self) -> Want | Formed | None:
        """What everybody we meet must know of us; None: nothing."""
        ...

    def want(self, count: int | None) -> int:
        """Note for how many peers the user waits (None: all that are named) and return how many these are."""
        ...

    def heard(self, sender: PeerId, statement: Want | Formed) -> None:
        """Note what a peer said last. Raises `PeerError` where that is nonsense, `ConfigError` where a user is mistaken."""
        ...

    def lost(self, peer: PeerId) -> None:
        """Forget what a peer said."""
        ...

    def settle(self, linked: Collection[PeerId]) -> None:
        """Form the group if it can be formed by now.

        Raises:
            ConfigError: somebody waits for another number of peers, or counts us in another group.
            Unavailable: the group is complete without this peer.
        """
        ...


class StaticRoster:
    """The group is given."""

    statement = None

    def __init__(self, members: Sequence[PeerId]) -> None:
        self.group: tuple[PeerId, ...] = tuple(members)

    def want(self, count: int | None) -> int:
        """Return how many to wait for."""
        if count is not None and not 1 <= count <= len(self.group):
            raise ConfigError(f"{count} peers cannot come: the list names {len(self.group)}, this one included")
        return count or len(self.group)

    def heard(self, sender: PeerId, statement: Want | Formed) -> None:
        """Refuse: nothing is to be agreed on here."""
        raise ConfigError(
            f"peer {short(sender)} looks for a group, this one has a list of all. Start all the same way."
        )

    def lost(self, peer: PeerId) -> None:
        """Keep the place of a peer that is gone."""

    def settle(self, linked: Collection[PeerId]) -> None:
        """Do nothing: the group stands."""


class DiscoveredRoster:
    """The group is agreed on among those who find each other."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._wanted: int | None = None
        self._said: dict[PeerId, Want | Formed] = {}
        self.group: tuple[PeerId, ...] | None = None

    @property
    def statement(self) -> Want | Formed | None:
        """What everybody we meet must know of us."""
        if self.group is not None:
            return Formed(self.group)
        return Want(self._wanted) if self._wanted else None

    def want(self, count: int | None) -> int:
        """Note for how many peers the user waits; a group that is there has its size."""
        if self.group is not None and count in (None, len(self.group)):
            return len(self.group)
        if self.group is not None:
            raise ConfigError(f"the group has {len(self.group)} peers and stays so; wait_for_peers({count}) cannot be")
        if count is None or not 1 <= count <= MAX_GROUP:
            raise ConfigError(f"wait_for_peers({count}): say for how many peers, this one included, 1 .. {MAX_GROUP}")
        self._wanted = count
        return count

    def heard(self, sender: PeerId, statement: Want | Formed) -> None:
        """Note what a peer said last."""
        if isinstance(statement, Formed):
            members = statement.members
            if sender not in members or list(members) != sorted(set(members)):
                raise PeerError(sender, f"told of a group that cannot be: {', '.join(map(short, members))}")
        self._said[sender] = statement

    def lost(self, peer: PeerId) -> None:
        """Forget what a peer said."""
        self._said.pop(peer, None)

    def settle(self, linked: Collection[PeerId]) -> None:
        """Form the group if it can be formed by now."""
        if self._wanted is None:
            return
        said = {peer: statement for peer, statement in self._said.items() if peer in linked}
        for peer, statement in said.items():
            if isinstance(statement, Formed):
                self._take_over(peer, tuple(PeerId(member) for member in statement.members))
        if self.group is not None:
            return
        for peer, statement in said.items():
            if isinstance(statement, Want) and statement.count != self._wanted:
                raise ConfigError(
                    f"this peer waits for {self._wanted} peers, peer {short(peer)} for {statement.count}. "
                    "Give wait_for_peers the same number everywhere, or the two groups different names."
                )
        ready = sorted([self._me, *said])
        if len(ready) >= self._wanted and ready[0] == self._me:
            self.group = tuple(ready[: self._wanted])

    def _take_over(self, sender: PeerId, members: tuple[PeerId, ...]) -> None:
        if self.group == members or (self.group is not None and self._me not in members):
            return  # ours stands, whoever else has found each other
        if self.group is None and self._me in members and len(members) == self._wanted:
            self.group = members
        elif self.group is None and self._me not in members:
            raise Unavailable(
                f"a group of {len(members)} is complete without this peer, says peer {short(sender)}. Wait for more "
                "peers everywhere, or give this group another name."
            )
        else:
            raise ConfigError(
                f"peer {short(sender)} has this peer in a group of {len(members)} that is not the one it waited for. "
                "Close all of them and wait for the same number of peers everywhere."
            )
