"""Who may certify the next entry of a log: as much of the agreed state as tells that, and no more; pure.

It is folded over the entries that bear on it, by the rules of `swarm.state`; whoever has all entries gets the same from
`apply`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Decision, Kind, Scope, Verify
from barnraise.consensus.protocols import protocol_of
from barnraise.errors import LocalError
from barnraise.ids import PeerId, RunId
from barnraise.swarm import amendments, membership, records
from barnraise.swarm.certification import RECOVERY_CONTEXT
from barnraise.swarm.membership import Member, Standing
from barnraise.swarm.records import Amend, Change, Cut, LogEvent, Merge, Recover, Regroup, Result, Void


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """The members and what they agree by, at one height of the log."""

    config: RunConfig
    """The founders'; no upgrade changes what it is asked for here."""
    run: RunId
    epoch: int = 0
    height: int = 0
    """The lowest that the next entry may have."""
    head: bytes
    """Digest of the entry below that height."""
    standing: Standing

    @property
    def kind(self) -> Kind:
        """Return how the members agree."""
        return protocol_of(self.config.protocol)

    @property
    def committee(self) -> tuple[PeerId, ...]:
        """Return the members that vote, in order of seniority."""
        return self.kind.committee(self.standing.peers, self.config.consensus.max_committee)

    def voters(self, event: LogEvent) -> tuple[PeerId, ...]:
        """Return whose votes for an entry count."""
        if isinstance(event, Recover):
            return tuple(PeerId(peer) for peer in self.config.operator_ids)
        return self.committee

    def is_enough(self, event: LogEvent, present: Collection[PeerId]) -> bool:
        """Tell whether the votes of these certify an entry."""
        if isinstance(event, Recover):
            return amendments.is_majority(self.config.operator_ids, present)
        return self.kind.is_quorum(self.committee, present)

    def is_certified(self, event: LogEvent, decision: Decision, verify: Verify) -> bool:
        """Tell whether an entry's votes hold."""
        if not isinstance(event, Recover):
            scope = Scope(run=self.run, epoch=self.epoch, height=self.height)
            return self.kind.holds(decision, scope, self.committee, verify)
        signers = {
            PeerId(signer)
            for signer, signature in decision.votes
            if signer in self.voters(event) and verify(PeerId(signer), RECOVERY_CONTEXT, decision.value, signature)
        }
        return self.is_enough(event, signers)

    def after(self, event: LogEvent, changes: tuple[Change, ...] = ()) -> "Roster":
        """Return what an entry leads to.

        Args:
            event: the entry.
            changes: what takes effect with it: `changes_root` of them is in it.

        Raises:
            LocalError: they cannot take effect.
        """
        standing, is_new = self.standing, False
        match event:
            case Result() | Regroup():
                is_new = isinstance(event, Regroup) or bool(event.joined or event.left)
                standing = _carried_out(replace(self._with(event.joined, event.left), pending=changes))
            case Recover():
                is_new = True
                standing = self._with(event.members, set(self.standing.peers).difference(event.members))
            case Cut() | Void() | Amend() | Merge():
                pass
            case _:
                assert_never(event)
        return replace(
            self,
            epoch=self.epoch + (is_new or standing.peers != self.standing.peers),
            height=self.height + 1,
            head=records.digest(records.encode(event)),
            standing=standing,
        )

    def _with(self, come: Iterable[str], gone: Collection[str]) -> Standing:
        stayed = [member for member in self.standing.members if member.peer not in gone]
        return replace(self.standing, members=membership.joined(stayed, come, self.epoch + 1, 0))


def founded(config: RunConfig, run: RunId) -> Roster:
    """Return who may certify the first entry: the founders."""
    members = tuple(Member(peer=PeerId(peer), joined_epoch=0, counts_from=0) for peer in sorted(config.founders))
    return Roster(config=config, run=run, head=bytes(run), standing=Standing(members=members))


def named_by(event: LogEvent) -> bytes | None:
    """Return the id of the checkpoint that an entry certifies."""
    return event.vertex if isinstance(event, Result | Merge) else None


def _carried_out(standing: Standing) -> Standing:
    try:
        return membership.carried_out(standing, 0)
    except StopIteration:
        raise LocalError("somebody is let in again who never gave up a key") from None
