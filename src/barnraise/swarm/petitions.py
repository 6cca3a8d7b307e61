"""What somebody asks the members to put into the log, signed by whose word it takes; checks and pools, no I/O.

A petition is a body, which says what is asked for, and signatures over exactly these bytes. It comes from a file that
its author's peer reads, or from another peer, and each peer passes on what is new to it. Signatures under equal bodies
add up: operators sign the same thing apart from each other, and no message carries more than a few.

    body      asks for                     signed by
    Wish      an upgrade                   more than half of the operators
              another key for a member     the old key and the new one
              giving up a key              that key, or more than half of the operators
              coming back under another    the new key, and more than half of the operators
    Recover   going on without the lost    more than half of the operators

A wish becomes an `Amend`: the leader proposes it before a round's cut (`Pool.due`), and each member checks it by what it
says itself (`is_sealed`), whether or not it has heard of it. A recovery is put together by each member from the
signatures that it holds (`Pool.recovery`), and is decided by these.

What makes a petition good for nothing but what it says: the context and the run that are signed with it; that an upgrade
says which one of the run it is; that a key that was given up or replaced is never used again; that a recovery names the
entry that it follows. So a petition that was heard again, in another run or after its time changes nothing.

Memory: only a body that a member or an operator signed is kept: the newest of each member and the newest
`MAX_PER_OPERATOR` of each operator, with at most one signature of each peer whose word counts. A signature that holds is
verified once.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, assert_never

import msgspec

from barnraise.consensus.agreement import Decision, Sign, Verify
from barnraise.errors import LocalError, PeerError
from barnraise.ids import Digest, PeerId, RunId, short
from barnraise.swarm import amendments, records
from barnraise.swarm.certification import RECOVERY_CONTEXT
from barnraise.swarm.records import (
    Amend,
    Change,
    Decoder,
    Hash,
    Name,
    Readmit,
    Recover,
    Revoke,
    Rotate,
    Seal,
    Upgrade,
)
from barnraise.swarm.state import State, check_change, check_follows

PETITION_CONTEXT: Final = "barnraise 1 petition"
MAX_BODY_BYTES: Final = 28 * 1024
"""A recovery that names `records.MAX_NAMED` members."""
MAX_SIGNATURE_BYTES: Final = 4096
MAX_KEYS_BYTES: Final = 8192
MAX_SEALS_A_MESSAGE: Final = 3
"""Three signatures of 3.4 kB with keys of 5.4 kB and the longest body: below the 64 KiB of a control message."""
MAX_PER_OPERATOR: Final = 4


class Wish(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A change that is asked for, in one run."""

    run: Hash
    change: Change


class Voucher(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A signature under a petition, with the keys that verify it."""

    signer: Name
    signature: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNATURE_BYTES)]
    keys: Annotated[bytes, msgspec.Meta(max_length=MAX_KEYS_BYTES)]
    """`PublicIdentity.encode`: who signs need not be a member, nor connected to anybody."""


class Petition(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A body, and some of the signatures under it: what travels, and what a file holds."""

    body: Annotated[bytes, msgspec.Meta(max_length=MAX_BODY_BYTES)]
    vouchers: Annotated[tuple[Voucher, ...], msgspec.Meta(min_length=1, max_length=records.MAX_SEALS)]


Body = Wish | Recover
Introduce = Callable[[PeerId, bytes], None]
"""``(peer, keys)``: have signatures of a peer verified that may never have been met; keys of somebody else do nothing."""

_encode = msgspec.msgpack.Encoder().encode
_decode_body: Decoder[Body] = Decoder(msgspec.msgpack.Decoder(Body))
decode_petition: Decoder[Petition] = Decoder(msgspec.msgpack.Decoder(Petition))


def wish_of(run: RunId, change: Change) -> bytes:
    """Return the body of a petition for a change."""
    return _encode(Wish(run=run, change=change))


def recovery_of(state: State, members: Iterable[str]) -> bytes:
    """Return the body of a petition for going on from a state with these members: the entry itself.

    Raises:
        LocalError: they cannot go on from there.
    """
    event = Recover(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        vertex=state.vertex,
        members=tuple(sorted(members)),
    )
    check_follows(state, event)
    return records.encode(event)


def read_body(data: bytes) -> Body:
    """Return what a petition asks for; raises `msgspec.DecodeError`."""
    return _decode_body.decode(data)


def encode(petition: Petition) -> bytes:
    """Return a petition's bytes."""
    return _encode(petition)


def signed(body: bytes, peer: PeerId, keys: bytes, sign: Sign) -> Voucher:
    """Return a peer's signature under a body. Raises `msgspec.DecodeError` where that is none."""
    return Voucher(peer, sign(_context(read_body(body)), body), keys)


def applies(state: State, body: Body) -> bool:
    """Tell whether what is asked for could still be done; a recovery, that it is of this very place in the log."""
    return not why_not(state, body)


def why_not(state: State, body: Body) -> str:
    """Say why what is asked for cannot be done; "": it can."""
    try:
        if body.run != state.run:
            raise LocalError(f"it is for run {body.run.hex()[:12]}")
        if isinstance(body, Recover):
            check_follows(state, body)
        else:
            check_change(state, body.change)
    except LocalError as error:
        return str(error)
    return ""


def asks(body: Body) -> str:
    """Say in plain words what a petition asks for."""
    if isinstance(body, Recover):
        return f"go on with {', '.join(map(short, body.members))} alone"
    return in_words(body.change)


def in_words(change: Change) -> str:
    """Say in plain words what a change is."""
    match change:
        case Upgrade():
            rules = [f"{key} = {value}" for key, value in change.rules]
            return f"upgrade {change.number}: {', '.join([*rules, f'records of version {change.version}'])}"
        case Rotate():
            return f"{short(change.old)} goes on as {short(change.new)}"
        case Revoke():
            return f"nobody is {short(change.peer)} any more"
        case Readmit():
            return f"{short(change.new)} takes the place of {short(change.lost)}"
        case _:
            assert_never(change)


def may_sign(state: State, body: Body, signer: str) -> bool:
    """Tell whether somebody's signature counts under a body."""
    operators = state.founded.operator_ids
    return signer in operators if isinstance(body, Recover) else amendments.may_sign(operators, body.change, signer)


def is_backed(state: State, body: Body, signers: Collection[str]) -> bool:
    """Tell whether those who signed are enough."""
    operators = state.founded.operator_ids
    if isinstance(body, Recover):
        return amendments.is_majority(operators, signers)
    return amendments.is_backed(operators, body.change, signers)


def is_sealed(event: Amend, verify: Verify) -> bool:
    """Tell whether all signatures under a proposed change hold; that they are enough, `check_follows` has checked.

    What cannot be verified yet, as the signer's keys are not known, may be later: the petition brings them.
    """
    body = wish_of(RunId(event.run), event.change)
    return all(verify(PeerId(seal.signer), PETITION_CONTEXT, body, seal.signature) for seal in event.seals)


@dataclass(kw_only=True)
class _Open:
    """A petition that is not done yet."""

    data: bytes
    body: Body
    vouchers: dict[str, Voucher] = field(default_factory=dict)


class Pool:
    """What was asked for and is not done. ``introduce`` is told the keys of signers whose word counts."""

    def __init__(self, introduce: Introduce = lambda peer, keys: None) -> None:
        self.num_changes = 0
        """Grows with each signature: what could not be verified may be now."""
        self._introduce = introduce
        self._open: dict[Digest, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def receive(self, state: State, sender: PeerId, petition: Petition, verify: Verify) -> bool:
        """Take in a petition; return whether something in it is new and to be passed on.

        Raises:
            PeerError: it is malformed, of another run, or a signature does not hold; what held before that is kept.
        """
        try:
            body = read_body(petition.body)
        except msgspec.DecodeError as error:
            raise PeerError(sender, f"sent a malformed petition: {error}", petition.body) from error
        if body.run != state.run:
            raise PeerError(sender, f"sent a petition of run {body.run.hex()[:12]}", petition.body)
        if not applies(state, body):
            return False  # it is done, or we are not there yet: whoever signed it says it again
        name = records.digest(petition.body)
        entry = self._open.get(name) or _Open(data=petition.body, body=body)
        fresh = [voucher for voucher in petition.vouchers if voucher.signer not in entry.vouchers]
        is_new = False
        for voucher in sorted(fresh, key=lambda voucher: not _is_anchor(state, voucher.signer)):
            is_new |= self._accept(state, sender, name, entry, voucher, verify)
        return is_new

    def due(self, state: State, speaks: Mapping[PeerId, int]) -> Amend | None:
        """Return the change that a leader may propose next; None: there is none.

        Args:
            state: A round has begun and its cut is not agreed.
            speaks: The newest version of records that each member says it reads, ourselves among them.
        """
        if state.cut is not None:
            return None
        for entry in self._open.values():
            if isinstance(entry.body, Wish) and self._is_due(state, entry, entry.body, speaks):
                return _amend(state, entry.body.change, entry.vouchers)
        return None

    def recovery(self, state: State) -> Decision | None:
        """Return the recovery that most of the operators have signed for this very state; None: there is none."""
        for entry in self._open.values():
            is_signed = isinstance(entry.body, Recover) and is_backed(state, entry.body, entry.vouchers)
            if is_signed and applies(state, entry.body):
                votes = sorted((voucher.signer, voucher.signature) for voucher in entry.vouchers.values())
                return Decision(value=entry.data, view=0, votes=tuple(votes))
        return None

    def said(self) -> list[Petition]:
        """Return all that is open, for a peer that may not have heard of it."""
        return [
            petition for entry in self._open.values() for petition in in_messages(entry.data, entry.vouchers.values())
        ]

    def settle(self, state: State) -> None:
        """Forget what is done, or can be done no more; call it when an entry was agreed."""
        self._open = {name: entry for name, entry in self._open.items() if applies(state, entry.body)}

    def _accept(
        self, state: State, sender: PeerId, name: Digest, entry: _Open, voucher: Voucher, verify: Verify
    ) -> bool:
        if not may_sign(state, entry.body, voucher.signer):
            raise PeerError(sender, f"sent a petition signed by {voucher.signer}, whose word does not count for it")
        if not entry.vouchers and not _is_anchor(state, voucher.signer):
            return False
        peer = PeerId(voucher.signer)
        self._introduce(peer, voucher.keys)
        if not verify(peer, _context(entry.body), entry.data, voucher.signature):
            raise PeerError(sender, f"sent a petition with a signature of {peer} that does not hold", entry.data)
        if name not in self._open:
            self._make_room(state, peer)
        entry.vouchers[voucher.signer] = voucher
        self._open[name] = entry
        self.num_changes += 1
        return True

    def _make_room(self, state: State, signer: PeerId) -> None:
        """Drop the oldest of a signer that asks for too much."""
        own = [name for name, entry in self._open.items() if next(iter(entry.vouchers)) == signer]
        if len(own) >= (MAX_PER_OPERATOR if signer in state.founded.operator_ids else 1):
            del self._open[own[0]]

    def _is_due(self, state: State, entry: _Open, wish: Wish, speaks: Mapping[PeerId, int]) -> bool:
        if not applies(state, wish) or not is_backed(state, wish, entry.vouchers):
            return False
        if not isinstance(wish.change, Upgrade):
            return True
        able = [peer for peer in state.committee if speaks.get(peer, records.VERSION) >= wish.change.version]
        return state.agreement.is_quorum(state.committee, able)


def in_messages(body: bytes, vouchers: Iterable[Voucher]) -> list[Petition]:
    """Return a petition in pieces that fit a control message."""
    rest, pieces = list(vouchers), []
    while rest:
        pieces.append(Petition(body=body, vouchers=tuple(rest[:MAX_SEALS_A_MESSAGE])))
        rest = rest[MAX_SEALS_A_MESSAGE:]
    return pieces


def _amend(state: State, change: Change, vouchers: Mapping[str, Voucher]) -> Amend:
    """Return the entry that makes a change, with no more signatures than it takes."""
    own, _ = amendments.signers_wanted(change)
    order = sorted(vouchers, key=lambda signer: (signer not in own, signer))
    taken: list[str] = []
    for signer in order:
        if amendments.is_backed(state.founded.operator_ids, change, taken):
            break
        taken.append(signer)
    seals: Sequence[Seal] = [Seal(signer, vouchers[signer].signature) for signer in sorted(taken)]
    return Amend(
        version=state.version,
        run=state.run,
        epoch=state.epoch,
        round=state.round,
        attempt=state.attempt,
        previous=state.head,
        change=change,
        seals=tuple(seals),
    )


def _is_anchor(state: State, signer: str) -> bool:
    """Tell whether somebody is known to the run: who is not cannot fill the pool."""
    return signer in state.peers or signer in state.founded.operator_ids


def _context(body: Body) -> str:
    return RECOVERY_CONTEXT if isinstance(body, Recover) else PETITION_CONTEXT
