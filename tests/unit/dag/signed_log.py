"""A log whose entries real keys have voted for: what a run leaves behind, without the run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import msgspec

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.consensus.pbft_messages import Commit
from barnraise.dag import proof
from barnraise.dag.proof import Proof, Step
from barnraise.dag.proving import assemble
from barnraise.identity import Identity
from barnraise.ids import Digest, PeerId
from barnraise.swarm import records
from barnraise.swarm.certification import RECOVERY_CONTEXT
from barnraise.swarm.records import (
    Amend,
    Change,
    Contribution,
    Cut,
    LogEvent,
    Metrics,
    Recover,
    Regroup,
    Result,
    Seal,
    Vertex,
)
from barnraise.swarm.state import State, follow, genesis

CONTEXTS = {"raft": "barnraise 1 vote", "pbft": Commit.context}
ROOT = Digest(bytes(range(32)))


@cache
def people(count: int) -> tuple[Identity, ...]:
    """Return the same identities to every test, in order of peer id: keys take long to make."""
    return tuple(sorted((Identity.generate() for _ in range(count)), key=lambda identity: identity.peer_id))


@dataclass(kw_only=True)
class SignedLog:
    """Agrees with itself, as the members would."""

    config: RunConfig
    keys: dict[PeerId, Identity]
    state: State
    root: Digest = ROOT
    """Of parameters and outer momentum after each round."""
    decisions: list[Decision] = field(default_factory=list)
    vertices: list[Vertex] = field(default_factory=list)

    @property
    def identities(self) -> dict[PeerId, bytes]:
        """The public keys of everybody."""
        return {peer: identity.public.encode() for peer, identity in self.keys.items()}

    def proof(self, vertex: Vertex | None = None, **others: Any) -> Proof:
        """Return the proof of a checkpoint; default: the newest."""
        return assemble(self.config, self.decisions, vertex or self.vertices[-1], self.identities, **others)

    def round(
        self, joined: Sequence[str] = (), left: Sequence[str] = (), signers: Collection[str] | None = None
    ) -> Vertex:
        """Agree on a round that all members contributed to."""
        members = tuple(Contribution(peer, bytes(32), 16) for peer in self.state.peers)
        self.say(Cut(**self.about(), contributions=members))
        result = Result(
            **self.about(),
            cut=self.state.head,
            excluded=(),
            gram=b"",
            aggregate_root=bytes(32),
            theta_root=self.root,
            momentum_root=self.root,
            exponents=(16,),
            metrics=Metrics(1_500_000, -1, 6144),
            ledger=b"",
            joined=tuple(joined),
            left=tuple(left),
            time=1_767_323_045,
            vertex=bytes(32),
            changes=self.state.changes,
        )
        vertex = follow(self.state, result)[1]
        assert vertex is not None
        self.say(msgspec.structs.replace(result, vertex=records.vertex_id(vertex)), signers)
        return vertex

    def regroup(self, joined: Sequence[str] = (), left: Sequence[str] = ()) -> None:
        """Agree to begin the round anew with others."""
        changes = self.state.changes
        self.say(Regroup(**self.about(), joined=tuple(joined), left=tuple(left), changes=changes))

    def amend(self, change: Change, *signers: str) -> None:
        """Agree on a change, whose seals nobody looks at any more once it is agreed on."""
        seals = tuple(Seal(signer, b"sealed") for signer in sorted(signers))
        self.say(Amend(**self.about(), change=change, seals=seals))

    def recover(self, members: Sequence[str], operators: Collection[str]) -> None:
        """Have the operators name who goes on."""
        event = Recover(**self.about(), vertex=self.state.vertex, members=tuple(sorted(members)))
        value = records.encode(event)
        votes = tuple((peer, self.keys[PeerId(peer)].sign(RECOVERY_CONTEXT, value)) for peer in operators)
        self.add(event, Decision(value=value, view=0, votes=votes))

    def say(self, event: LogEvent, signers: Collection[str] | None = None) -> None:
        """Vote for an entry, all who may or ``signers``."""
        self.add(event, self.voted(records.encode(event), self.state.committee if signers is None else signers))

    def voted(self, value: bytes, signers: Collection[str], view: int = 0) -> Decision:
        """Return votes for whatever it is at the height that is next."""
        statement = self.state.scope.statement(view, records.digest(value))
        context = CONTEXTS[self.config.protocol]
        votes = tuple((peer, self.keys[PeerId(peer)].sign(context, statement)) for peer in signers)
        return Decision(value=value, view=view, votes=votes)

    def add(self, event: LogEvent, decision: Decision) -> None:
        """Append an entry."""
        self.state, vertex = follow(self.state, event)
        self.decisions.append(decision)
        self.vertices += [vertex] if vertex else []

    def about(self) -> dict[str, Any]:
        """Return what all entries say of where they stand."""
        state = self.state
        return {
            "run": state.run,
            "epoch": state.epoch,
            "round": state.round,
            "attempt": state.attempt,
            "previous": state.head,
        }


def signed_log(
    profile: Literal["home", "open"] = "open", founders: int = 4, others: int = 3, **config: Any
) -> SignedLog:
    """Return the log of a run that was just founded; ``others`` may join it."""
    everybody = people(founders + others)
    run = RunConfig(profile=profile, founders=tuple(key.peer_id for key in everybody[:founders]), **config)
    state = genesis(run, 1, ROOT, ROOT)
    return SignedLog(config=run, keys={key.peer_id: key for key in everybody}, state=state)


def steps_of(found: Proof) -> list[Step]:
    """Return a proof's steps."""
    return [msgspec.msgpack.decode(raw, type=Step) for raw in found.steps]


def with_steps(found: Proof, steps: Sequence[Step]) -> Proof:
    """Return a proof with other steps, as it comes from a file."""
    raw = tuple(msgspec.Raw(msgspec.msgpack.encode(step)) for step in steps)
    return proof.decode(proof.encode(msgspec.structs.replace(found, steps=raw)))
