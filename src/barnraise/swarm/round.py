"""One round as one member knows it: commitments, the exchange, the step. Judged and built here, agreed elsewhere."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from barnraise.aggregate import mean
from barnraise.codec.chain import codec_of
from barnraise.collective.exchange import Exchange
from barnraise.collective.shards import root
from barnraise.consensus.agreement import Decision, Sign, Verify
from barnraise.errors import LocalError, PeerError
from barnraise.ids import DIGEST_BYTES, EMPTY_DIGEST, Digest, PeerId
from barnraise.swarm import effects, records
from barnraise.swarm.messages import Commit
from barnraise.swarm.plan import RoundPlan, plan
from barnraise.swarm.records import Commitment, Contribution, Cut, Metrics, Regroup, Result, Signed, Void
from barnraise.swarm.state import MAX_SAMPLES, State, apply, follow

COMMIT_CONTEXT = "barnraise 1 commitment"
MAX_TIME = 1 << 37
"""Unix seconds, in the year 6325: calendars end at 9999, and what is agreed is shown for ever."""


class Phase(enum.Enum):
    """Where a member is in its round."""

    GATHER = "waiting for the others"
    SHORT = "waiting for more members"
    TRAIN = "training"
    COMMIT = "waiting for the cut"
    EXCHANGE = "exchanging"
    STEP = "stepping"
    RESULT = "waiting for the result"
    BEHIND = "catching up"
    OVER = "finished"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What the driver reports when the trainer is done and its update is encoded."""

    round: int
    steps: int
    samples: int
    tokens: int
    train_loss: int
    """Micro-nats per token."""
    validation_loss: int
    validation_tokens: int
    leaves: tuple[Digest, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """What the driver reports when the copy has made its step."""

    round: int
    attempt: int
    aggregate_root: Digest
    theta_root: Digest
    momentum_root: Digest
    exponents: tuple[int, ...]
    unix_time: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Promise:
    """A checked commitment of a member."""

    message: Commit
    commitment: Commitment
    digest: Digest


@dataclass(kw_only=True)
class Work:
    """All that is known of the round at hand; forgotten when the round is over."""

    plan: RoundPlan
    promises: dict[PeerId, Promise] = field(default_factory=dict)
    updates_arrived: dict[tuple[PeerId, int], bytes] = field(default_factory=dict)
    """Hash of each ``(member, shard)``. Outlives an attempt: an update does not change."""
    aggregates_arrived: set[tuple[int, int]] = field(default_factory=set)
    """``(attempt, shard)``."""
    exchange: Exchange | None = None
    stepped: Stepped | None = None
    enough: tuple[tuple[int, int, frozenset[PeerId]], bool] | None = None
    """Whether the commitments make up a cut, and at which height, of how many, with whom down that was found."""


def new_work(state: State) -> Work:
    """Return the empty books of the state's round."""
    return Work(plan=plan(state))


def commitment_of(state: State, me: PeerId, trained: Trained, sign: Sign) -> Commit:
    """Return our signed commitment."""
    record = records.encode(
        Commitment(
            version=state.version,
            run=state.run,
            epoch=state.epoch,
            round=state.round,
            base=state.vertex,
            member=me,
            samples=trained.samples,
            steps=trained.steps,
            tokens=trained.tokens,
            codec=_codec_name(state),
            exponents=state.exponents,
            update_root=root(trained.leaves),
            trace_root=EMPTY_DIGEST,
            train_loss=trained.train_loss,
            validation_loss=trained.validation_loss,
            validation_tokens=trained.validation_tokens,
        )
    )
    signed = Signed(record=record, signature=sign(COMMIT_CONTEXT, record))
    return Commit(commitment=signed, leaves=trained.leaves)


def check_commitment(state: State, work: Work, sender: PeerId, message: Commit, verify: Verify) -> Promise:
    """Return a member's commitment to this round, checked; ``sender`` may be passing on another member's.

    Raises:
        PeerError: its signature, its round, its grid or its claims do not hold.
    """
    signed, commitment = message.commitment, _decoded(sender, message)
    member = PeerId(commitment.member)
    complaint = _complaint(state, work, message, commitment)
    if not complaint and not verify(member, COMMIT_CONTEXT, signed.record, signed.signature):
        complaint = "its signature does not hold"
    if complaint:
        # Whoever sent it is to blame: anybody can write a bad commitment in another member's name.
        passed_on = "" if sender == member else f" (it is in the name of {member:.64})"
        said = f"commitment to round {commitment.round} refused: {complaint}{passed_on}"
        raise PeerError(sender, said, signed.record)
    return Promise(message=message, commitment=commitment, digest=records.digest(signed.record))


def round_of(sender: PeerId, message: Commit) -> int:
    """Return the round that a commitment is of. Raises `PeerError` where it is none."""
    return _decoded(sender, message).round


def is_known(work: Work, sender: PeerId, message: Commit) -> bool:
    """Tell whether this very commitment was checked before: it is repeated until the cut, by whoever is asked."""
    promise = work.promises.get(PeerId(_decoded(sender, message).member))
    return promise is not None and promise.message == message


def _decoded(sender: PeerId, message: Commit) -> Commitment:
    try:
        return records.decode_commitment.decode(message.commitment.record)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PeerError(sender, f"sent a malformed commitment: {error}", message.commitment.record) from error


def _complaint(state: State, work: Work, message: Commit, commitment: Commitment) -> str:
    asked = sum(segment.count for segment in work.plan.slots.get(PeerId(commitment.member), ()))
    expected = (
        state.version,
        state.run,
        state.epoch,
        state.round,
        0,
        state.vertex,
        _codec_name(state),
        state.exponents,
    )
    found = (
        commitment.version,
        commitment.run,
        commitment.epoch,
        commitment.round,
        commitment.fragment,
        commitment.base,
        commitment.codec,
        commitment.exponents,
    )
    names = ("version", "run", "epoch", "round", "fragment", "base vertex", "codec", "grid")
    for name, want, have in zip(names, expected, found, strict=True):
        if want != have:
            return f"its {name} is {have!r:.80}, ours is {want!r:.80}"
    if not asked or not _may_claim(state, commitment.samples, asked):
        return f"it claims {commitment.samples} samples and was given {asked}"
    if len(message.leaves) != work.plan.num_shards or any(len(leaf) != DIGEST_BYTES for leaf in message.leaves):
        return f"it has {len(message.leaves)} shards instead of {work.plan.num_shards}"
    if root(message.leaves) != commitment.update_root:
        return "its shards' hashes do not make up its root"
    claims = [commitment.validation_loss, commitment.validation_tokens, commitment.tokens, commitment.train_loss]
    if state.config.data.kind == "own":
        claims[-1] = abs(claims[-1])  # a loss of the user's own may be anything
    if min(claims) < 0 or max(claims) > mean.MAX_TOTAL_WEIGHT:
        return "its claims are out of range"
    return ""


def _codec_name(state: State) -> str:
    """Return the codec's own name: a configuration may write the same one in several ways."""
    return codec_of(state.config.round.codec, np.int16).name


def _may_claim(state: State, samples: int, asked: int) -> bool:
    """Tell whether a member that was given ``asked`` samples may claim the weight of so many."""
    if state.config.data.kind == "own":
        return 0 < samples <= MAX_SAMPLES
    return 0 < samples <= asked if state.config.round.seconds else samples == asked


def ready(state: State, work: Work, down: frozenset[PeerId]) -> list[PeerId]:
    """Return the members whose commitments can be in, by seniority.

    Who kept an earlier attempt waiting is left out, unless there are not enough without it.
    """
    committed = [peer for peer in state.peers if peer in work.promises and peer not in down]
    prompt = [peer for peer in committed if peer not in state.without]
    return prompt if is_enough(state, work, prompt, down) else committed


def is_enough(state: State, work: Work, contributors: Sequence[PeerId], down: frozenset[PeerId]) -> bool:
    """Tell whether these may make up a round's aggregate: a quorum of those who could contribute, and `min_peers`.

    Members that are down, or joined in this round and were given no samples, are not counted: how many members must be
    there is the agreement's business.
    """
    counting = list(work.plan.slots)
    able = [peer for peer in counting if peer not in down]
    return len(contributors) >= state.config.round.min_peers and state.agreement.is_cut(counting, able, contributors)


def has_enough(state: State, work: Work, down: frozenset[PeerId]) -> bool:
    """Tell whether the commitments at hand make up a cut; asked at each message, found out at each commitment."""
    basis = state.height, len(work.promises), down
    if work.enough is None or work.enough[0] != basis:
        work.enough = basis, is_enough(state, work, ready(state, work, down), down)
    return work.enough[1]


def build_cut(state: State, work: Work, chosen: Sequence[PeerId]) -> Cut:
    """Return the cut of these members' commitments."""
    promises = [work.promises[peer] for peer in chosen]
    return Cut(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        contributions=tuple(
            Contribution(promise.commitment.member, promise.digest, promise.commitment.samples) for promise in promises
        ),
    )


def unknown_contributions(work: Work, cut: Cut) -> tuple[str, ...]:
    """Return the contributors whose commitment, or this very version of it, is not at hand."""
    return tuple(
        entry.member
        for entry in cut.contributions
        if (promise := work.promises.get(PeerId(entry.member))) is None
        or (promise.digest, promise.commitment.samples) != (entry.commitment, entry.samples)
    )


def build_void(state: State, without: frozenset[PeerId]) -> Void:
    """Return the entry that sends the round back to its cut."""
    return Void(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=_cut_digest(state),
        without=tuple(sorted(without)),
    )


def build_regroup(state: State, *, joined: Sequence[PeerId], left: Sequence[PeerId]) -> Regroup:
    """Return the entry that begins the round anew with other members."""
    return Regroup(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        joined=tuple(sorted(joined)),
        left=tuple(sorted(left)),
        changes=state.changes,
    )


def build_result(
    state: State, work: Work, stepped: Stepped, *, joined: tuple[PeerId, ...], left: tuple[PeerId, ...]
) -> Result:
    """Return the entry for our step, vertex id included."""
    draft = Result(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        cut=_cut_digest(state),
        excluded=(),
        gram=EMPTY_DIGEST,
        aggregate_root=stepped.aggregate_root,
        theta_root=stepped.theta_root,
        momentum_root=stepped.momentum_root,
        exponents=stepped.exponents,
        metrics=_metrics(state, work),
        ledger=EMPTY_DIGEST,
        joined=tuple(sorted(joined)),
        left=tuple(sorted(left)),
        time=stepped.unix_time,
        vertex=EMPTY_DIGEST,
        changes=state.changes,
    )
    return _with_vertex(state, draft)


def is_valid_result(state: State, work: Work, stepped: Stepped, proposed: Result) -> bool:
    """Tell whether a proposal says what we computed; membership and time, if it is one, are the proposer's to say."""
    if not 0 <= proposed.time <= MAX_TIME:
        return False
    ours = build_result(
        state,
        work,
        replace(stepped, unix_time=proposed.time),
        joined=tuple(PeerId(peer) for peer in proposed.joined),
        left=tuple(PeerId(peer) for peer in proposed.left),
    )
    return ours == proposed


def conclude(state: State, work: Work, me: PeerId, decision: Decision) -> effects.Commit | None:
    """Return the end of the round that a decision is the result of; None: our own copy is not what was agreed."""
    event = records.decode_event.decode(decision.value)
    stepped, cut = work.stepped, state.cut
    if not isinstance(event, Result) or cut is None:
        raise LocalError("a round was concluded without its cut")
    if stepped is None or stepped.attempt != event.attempt or stepped.theta_root != event.theta_root:
        return None
    after, vertex = follow(state, event)
    if vertex is None:
        raise LocalError("a result certified no vertex")
    return effects.Commit(
        height=state.height,
        event=event,
        decision=decision,
        state=after,
        vertex=vertex,
        contributed=me in {entry.member for entry in cut.contributions},
    )


def _with_vertex(state: State, draft: Result) -> Result:
    """Return the entry with the id of the checkpoint it leads to; the checkpoint does not depend on the entry's hash."""
    after = apply(state, draft)
    return msgspec.structs.replace(draft, vertex=after.vertex)


def _metrics(state: State, work: Work) -> Metrics:
    cut = state.cut
    promises = [work.promises[PeerId(entry.member)].commitment for entry in cut.contributions] if cut else []
    samples = sum(p.samples for p in promises)
    measured = sum(p.validation_tokens for p in promises)
    return Metrics(
        train_loss=sum(p.train_loss * p.samples for p in promises) // max(1, samples),
        validation_loss=sum(p.validation_loss * p.validation_tokens for p in promises) // measured if measured else -1,
        tokens=sum(p.tokens for p in promises),
    )


def _cut_digest(state: State) -> Digest:
    if state.cut is None:
        raise LocalError("a result was asked for before its cut")
    return records.digest(records.encode(state.cut))
