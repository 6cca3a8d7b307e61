"""A checkpoint's proof: one file from which anybody can tell, offline and years later, that a run's members agreed on it.

It holds no more than it takes, and nobody who handed it over needs to be believed:

    genesis   the bytes that the run id is the hash of: founders, protocol, model
    steps     log entries with their votes: each that changed who the members are, then the one that names the checkpoint
    voters    the public keys of those who voted
    vertex    the checkpoint: it names model, outer optimiser, seed and data by hash
    layout    names and shapes of a model of the user's own, as far as the run id fixes them

`check` follows the members from the founders on, as a light client follows the validators of a block chain. Why it may
leave out all other entries:

- A vote is signed over (run, epoch, height, view, digest of the entry). An honest member votes at a height when it has
  applied every entry below, and only for an entry that follows them. So its vote says: the members here are those of
  this epoch.
- An epoch is a number for a member set; each entry that changes the set, and no other, begins the next epoch.
- Epoch 0's members are the founders, which the run id fixes. Let the members of epoch e be known, and a quorum of them
  have voted for an entry at height h that changes them. Any two quorums of epoch e share an honest member, so no other
  entry was decided at h in epoch e. And no second change of epoch e can have a quorum: at a greater height that
  honest member is in a later epoch and signs nothing in this one, and at a smaller height it would have left it before.
  So there is one change to epoch e + 1, this one, and whom it leads to is known. A change that is left out, put
  elsewhere or taken from another run shows: its epoch is not the one that has been reached.
- Changes of keys that the members agreed on earlier take effect with such an entry, which names all of them by a hash:
  they come with it, and need no votes of their own.
- An entry that changes no member leaves what the next votes are checked against as it was. It is not lost: each entry
  names the one before by its digest, and those who voted for the last one had all of them.
- A recovery is certified by most of the operators, whom the run id fixes as well: `Certified.recoveries` names it.

What it rests on. With ``pbft``: that in no epoch on the way a third of the voters signed what they should not have,
then *or later*: keys of former members that leak can sign another past. Whoever has the checkpoint's id from somebody he
trusts needs none of this, as the id is the hash of all that is named. With ``raft``, members crash and do not lie: such
a proof says which machines agreed, and is worth nothing against one of them that lies. A peer id is an Ed25519 key, and
the ML-DSA-65 key beside it is vouched for by that one: against somebody who breaks Ed25519 a proof holds as far as the
voters' ML-DSA keys are known from elsewhere.
"""

import ast
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from barnraise import config as configuration
from barnraise.config import RunConfig, run_id_of
from barnraise.consensus.agreement import MAX_VALUE_BYTES, Decision
from barnraise.dag.roster import Roster, founded, named_by
from barnraise.errors import ConfigError, LocalError
from barnraise.identity import (
    ED25519_KEY_BYTES,
    PUBLIC_IDENTITY_BYTES,
    SIGNATURE_BYTES,
    PublicIdentity,
    peer_id_of,
)
from barnraise.ids import Digest, PeerId, RunId
from barnraise.swarm import records
from barnraise.swarm.records import Change, Count, LogEvent, Recover, Vertex
from barnraise.swarm.state import MAX_PENDING, changes_root

VERSION: Final = 1
FILE_NAME: Final = "certificate.barnraise"
MAX_PROOF_BYTES: Final = 256 * 1024 * 1024
"""A thousand changes of a committee of a hundred; fifteen thousand of one of seven."""
MAX_STEPS: Final = 100_000
MAX_VOTES: Final = 1000
"""The largest committee that a run can have."""
MAX_VOTERS: Final = 50_000
MAX_GENESIS_BYTES: Final = 1024 * 1024
MAX_LAYOUT_BYTES: Final = 1024 * 1024
MAX_VERTEX_BYTES: Final = 1024 * 1024
"""Of all these, real ones have some kB."""


class NotCertified(ConfigError):
    """The user named something that no quorum of a run's members is shown to have agreed on."""

    exit_code = 1


class Step(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """A log entry and who voted for it."""

    height: Count
    view: Count
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
    votes: Annotated[
        tuple[tuple[Count, Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)]], ...],
        msgspec.Meta(max_length=MAX_VOTES),
    ]
    """``(place among the voters, signature)``, in order of place."""
    changes: Annotated[tuple[Change, ...], msgspec.Meta(max_length=MAX_PENDING)] = ()
    """What takes effect with it."""


class Proof(
    msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="barnraise.certificate", forbid_unknown_fields=True
):
    """What the file holds."""

    version: int = VERSION
    genesis: Annotated[bytes, msgspec.Meta(max_length=MAX_GENESIS_BYTES)]
    """`RunConfig.canonical_bytes`."""
    layout: Annotated[bytes, msgspec.Meta(max_length=MAX_LAYOUT_BYTES)] = b""
    """msgpack of the `link.messages.Tensor` of the user's own model; empty: the built-in one, which its shape fixes."""
    voters: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(min_length=PUBLIC_IDENTITY_BYTES, max_length=PUBLIC_IDENTITY_BYTES)], ...],
        msgspec.Meta(max_length=MAX_VOTERS),
    ]
    """`PublicIdentity.encode`, in order of peer id."""
    steps: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]
    """A `Step` each, in order of height; read one at a time."""
    vertex: Annotated[bytes, msgspec.Meta(max_length=MAX_VERTEX_BYTES)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Certified:
    """What a proof was found to show."""

    config: RunConfig
    """As far as this version knows its keys."""
    run: RunId
    vertex: Vertex
    name: Digest
    """The vertex's id."""
    height: int
    epoch: int
    changes: int
    """Entries on the way that changed who the members are; each was certified by those before it."""
    recoveries: tuple[int, ...]
    """Heights of those that the operators signed, in place of members that were gone."""
    num_members: int
    """In the epoch in which it was agreed."""
    committee: tuple[PeerId, ...]
    """Those of them who could vote, in order of seniority."""
    signers: tuple[PeerId, ...]
    """Those of them whose votes are here and hold."""

    @property
    def protocol(self) -> str:
        """Return what the members agreed by."""
        return self.config.protocol


_encode = msgspec.msgpack.Encoder().encode
_proof: records.Decoder[Proof] = records.Decoder(msgspec.msgpack.Decoder(Proof))
_step: records.Decoder[Step] = records.Decoder(msgspec.msgpack.Decoder(Step))
_genesis: records.Decoder[tuple[int, tuple[tuple[str, str], ...]]] = records.Decoder(
    msgspec.msgpack.Decoder(tuple[int, tuple[tuple[str, str], ...]])
)


# ---- checking ---------------------------------------------------------------------------------------------------


def check(proof: Proof) -> Certified:
    """Follow a proof from the founders to its checkpoint.

    Args:
        proof: from anywhere.

    Raises:
        NotCertified: it does not show what it should; the message says where.
    """
    if proof.version != VERSION:
        raise NotCertified(f"the certificate is of format {proof.version} and this version reads {VERSION}. Update it.")
    keys = _Voters(proof.voters)
    roster = founded(config_of(proof.genesis), run_id_of(proof.genesis))
    recoveries: list[int] = []
    for place, raw in enumerate(proof.steps):
        step: Step = _decoded(_step, bytes(raw), f"step {place}")
        event: LogEvent = _decoded(records.decode_event, step.value, f"the entry at height {step.height}")
        roster = _at(roster, step, event)
        _hold(roster, step, event, keys)
        recoveries += [step.height] if isinstance(event, Recover) else []
        if place < len(proof.steps) - 1:
            roster = _changed(roster, step, event)
    vertex: Vertex = _decoded(records.decode_vertex, proof.vertex, "the checkpoint")
    name = records.vertex_id(vertex)
    if named_by(event) != name or vertex.run != roster.run:
        raise NotCertified(f"what the members agreed on is not checkpoint {name.hex()[:12]}. {_ANOTHER}")
    return Certified(
        config=roster.config,
        run=roster.run,
        vertex=vertex,
        name=name,
        height=roster.height,
        epoch=roster.epoch,
        changes=len(proof.steps) - 1,
        recoveries=tuple(recoveries),
        num_members=len(roster.standing.members),
        committee=roster.committee,
        signers=tuple(peer for peer in roster.committee if peer in keys.held),
    )


class _Voters:
    """The public keys that came with a proof; each is checked when its first vote is."""

    def __init__(self, voters: Sequence[bytes]) -> None:
        self._encoded = voters
        self._names = tuple(peer_id_of(identity[1 : 1 + ED25519_KEY_BYTES]) for identity in voters)
        self._places = {name: place for place, name in enumerate(self._names)}
        self._known: dict[PeerId, PublicIdentity] = {}
        self.held: set[PeerId] = set()
        """Whose votes for the entry at hand held."""
        if list(self._names) != sorted(self._places):
            raise NotCertified(f"the certificate's voters are not in order, or one is there twice. {_ANOTHER}")

    def named(self, step: Step) -> tuple[tuple[str, bytes], ...]:
        """Return the votes for an entry by name, and forget which of the last entry's held."""
        self.held = set()
        places = [place for place, _ in step.votes]
        if places != sorted(set(places)) or any(place >= len(self._names) for place in places):
            raise NotCertified(
                f"the votes at height {step.height} are not one each of voters that are here. {_ANOTHER}"
            )
        return tuple((self._names[place], signature) for place, signature in step.votes)

    def verify(self, peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        """Tell whether a voter's signature holds."""
        identity = self._identity(peer)
        if identity is None or not identity.verify(context, message, signature):
            return False
        self.held.add(peer)
        return True

    def _identity(self, peer: PeerId) -> PublicIdentity | None:
        if peer not in self._known and peer in self._places:
            with contextlib.suppress(ValueError):
                self._known[peer] = PublicIdentity.decode_claim(self._encoded[self._places[peer]])
        return self._known.get(peer)


def _at(roster: Roster, step: Step, event: LogEvent) -> Roster:
    """Return the roster before an entry: the members as they were, at the entry's height.

    Raises:
        NotCertified: the entry cannot come then.
    """
    height = step.height
    if event.run != roster.run:
        raise NotCertified(f"the entry at height {height} is another run's, {event.run.hex()[:12]}. {_ANOTHER}")
    if event.epoch != roster.epoch:
        raise NotCertified(
            f"the entry at height {height} is of epoch {event.epoch}, and the members are known up to {roster.epoch}: "
            f"a change of them is missing, or out of order. {_ANOTHER}"
        )
    if height < roster.height or (height == roster.height and event.previous != roster.head):
        raise NotCertified(f"the entry at height {height} does not follow the one before it. {_ANOTHER}")
    if changes_root(step.changes) != getattr(event, "changes", b""):
        raise NotCertified(f"what takes effect at height {height} is not what the members agreed on. {_ANOTHER}")
    return replace(roster, height=height)


def _hold(roster: Roster, step: Step, event: LogEvent, keys: _Voters) -> None:
    """Raise `NotCertified` unless enough of those who can certify an entry voted for it."""
    decision = Decision(value=step.value, view=step.view, votes=keys.named(step))
    if not roster.is_certified(event, decision, keys.verify):
        who = (
            "the operators" if isinstance(event, Recover) else f"{len(roster.committee)} voters in epoch {roster.epoch}"
        )
        raise NotCertified(
            f"the {len(step.votes)} votes at height {step.height} do not certify it, with {who}: they are too few, or "
            f"not theirs. {_ANOTHER}"
        )


def _changed(roster: Roster, step: Step, event: LogEvent) -> Roster:
    """Return the roster after an entry that changes who the members are.

    Raises:
        NotCertified: it changes nobody.
    """
    try:
        after = roster.after(event, step.changes)
    except LocalError as error:
        raise NotCertified(f"{error}. {_ANOTHER}") from error
    if after.epoch == roster.epoch:
        raise NotCertified(f"the entry at height {roster.height} changes no member and proves nothing. {_ANOTHER}")
    return after


# ---- the genesis ------------------------------------------------------------------------------------------------


def config_of(data: bytes) -> RunConfig:
    """Return the configuration that a run id is the hash of, as far as this version knows its keys.

    A later version has more keys, and one that this one cannot read still has the same id: the id is the hash of the
    bytes as they are, not of what was understood. A key that could change who certifies what is not passed over.

    Args:
        data: what `RunConfig.canonical_bytes` returned, in whatever version.

    Raises:
        NotCertified: it is no configuration, or one with rules of agreement that this version does not know.
    """
    version, pairs = _decoded(_genesis, data, "the run's configuration")
    known = configuration.flatten(RunConfig())
    unknown = sorted(key for key, _ in pairs if key not in known and (key.startswith("consensus.") or "." not in key))
    if version != configuration.FORMAT_VERSION or unknown:
        raise NotCertified(
            f"the run has rules that this version of barnraise does not know ({', '.join(unknown)[:200] or version}). "
            "Check it with a newer one."
        )
    values: dict[str, Any] = {}
    for key, text in pairs:
        if key in known:
            table, _, name = key.rpartition(".")
            (values.setdefault(table, {}) if table else values)[name] = _value(key, text)
    try:
        config = configuration.build(RunConfig, values, "the certificate")
        configuration.check_protocol(config, "the certificate")
    except ConfigError as error:
        raise NotCertified(str(error)) from error
    if not config.founders or len(set(config.founders)) < len(config.founders):
        raise NotCertified(f"the run was founded by nobody, or by somebody twice. {_ANOTHER}")
    return config


def _value(key: str, text: str) -> object:
    """Return what a value's `repr` says."""
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = None
    if value is None or repr(value) != text:
        raise NotCertified(f"the run's configuration says {text[:80]!r} for {key[:80]}. {_ANOTHER}")
    return value


# ---- as a file --------------------------------------------------------------------------------------------------


def encode(proof: Proof) -> bytes:
    """Return the file's bytes.

    Raises:
        NotCertified: there would be more than `MAX_PROOF_BYTES`, which nobody reads.
    """
    data = _encode(proof)
    if len(data) > MAX_PROOF_BYTES or len(proof.steps) > MAX_STEPS:
        raise NotCertified(
            f"the certificate has {len(data)} bytes in {len(proof.steps)} steps and the limits are {MAX_PROOF_BYTES} and "
            f"{MAX_STEPS}: the members changed too often since the run began. Pin the checkpoint's id instead."
        )
    return data


def decode(data: bytes) -> Proof:
    """Read what `encode` wrote; what it says is not checked.

    Raises:
        NotCertified: it is damaged, of another kind, or over a limit.
    """
    if len(data) > MAX_PROOF_BYTES:
        raise NotCertified(f"a certificate of {len(data)} bytes, and the limit is {MAX_PROOF_BYTES}. {_ANOTHER}")
    proof: Proof = _decoded(_proof, data, "the certificate")
    return proof


def read(path: Path) -> Proof:
    """Read a certificate's file.

    Raises:
        ConfigError: it is not there or cannot be read.
        NotCertified: it is no certificate; no more than `MAX_PROOF_BYTES` of it were read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROOF_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a certificate's file.") from error
    return decode(data)


def _decoded(decoder: records.Decoder[Any], data: bytes, what: str) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NotCertified(f"{what} is damaged, or of another version: {error}. {_ANOTHER}") from error


_ANOTHER: Final = "Get the certificate again, from somebody else."
