"""Puts a checkpoint's proof together, from a log and its voters' keys; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.dag.proof import NotCertified, Proof, Step
from barnraise.dag.roster import Roster, founded, named_by
from barnraise.ids import PeerId
from barnraise.swarm import records
from barnraise.swarm.certification import event_of
from barnraise.swarm.records import Amend, Change, LogEvent, Regroup, Result, Vertex

_Chosen = tuple[int, Decision, tuple[Change, ...]]

_encode = msgspec.msgpack.Encoder().encode


def assemble(
    config: RunConfig,
    log: Iterable[Decision],
    vertex: Vertex,
    identities: Mapping[PeerId, bytes],
    layout: bytes = b"",
) -> Proof:
    """Put a checkpoint's proof together; of each entry's votes it takes as many as are enough.

    Args:
        config: the run's.
        log: its decisions from the first on, as far as the one that names the checkpoint.
        vertex: the checkpoint.
        identities: of everybody who voted, or enough of them: `PublicIdentity.encode`.
        layout: of the user's own model.

    Raises:
        LocalError: the log is damaged.
        NotCertified: it does not lead to the checkpoint, or too few of its voters' keys are there.
    """
    name, roster = records.vertex_id(vertex), founded(config, config.run_id)
    pending: tuple[Change, ...] = ()
    chosen: list[_Chosen] = []
    for decision in log:
        event = event_of(decision.value)
        pending = (*pending, event.change) if isinstance(event, Amend) else pending
        changes = pending if isinstance(event, Result | Regroup) else ()
        after = roster.after(event, changes)
        if named_by(event) == name or after.epoch != roster.epoch:
            chosen.append((roster.height, _enough(roster, event, decision, identities), changes))
        if named_by(event) == name:
            return _bound(config, chosen, vertex, identities, layout)
        pending = after.standing.pending if isinstance(event, Result | Regroup) else pending
        roster = after
    raise NotCertified(f"the log does not lead to checkpoint {name.hex()[:12]}. Name the peer that has it: --dir DIR.")


def _enough(roster: Roster, event: LogEvent, decision: Decision, identities: Mapping[PeerId, bytes]) -> Decision:
    """Return a decision with as many of its votes as it takes."""
    may_vote = roster.voters(event)
    votes: dict[PeerId, bytes] = {}
    for voter, signature in decision.votes:
        if voter in may_vote and voter in identities:
            votes.setdefault(PeerId(voter), signature)
        if roster.is_enough(event, votes):
            return replace(decision, votes=tuple(votes.items()))
    raise NotCertified(
        f"the keys of {len(votes)} of those who voted at height {roster.height} are here, too few of {len(may_vote)}. "
        "Ask a peer that was there from the start: --dir DIR."
    )


def _bound(
    config: RunConfig,
    chosen: Sequence[_Chosen],
    vertex: Vertex,
    identities: Mapping[PeerId, bytes],
    layout: bytes,
) -> Proof:
    names = sorted({PeerId(voter) for _, decision, _ in chosen for voter, _ in decision.votes})
    places = {name: place for place, name in enumerate(names)}
    steps = [
        Step(
            height=height,
            view=decision.view,
            value=decision.value,
            votes=tuple(sorted((places[PeerId(voter)], signature) for voter, signature in decision.votes)),
            changes=changes,
        )
        for height, decision, changes in chosen
    ]
    return Proof(
        genesis=config.canonical_bytes(),
        layout=layout,
        voters=tuple(identities[name] for name in names),
        steps=tuple(msgspec.Raw(_encode(step)) for step in steps),
        vertex=records.encode(vertex),
    )
