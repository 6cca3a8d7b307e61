"""Certificates: what they show, and that nobody can make one show anything else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.config import ConsensusConfig, RunConfig, flatten, run_id_of
from barnraise.consensus.agreement import Decision
from barnraise.dag import proof
from barnraise.dag.proof import NotCertified, Proof, Step, check, config_of, decode, encode
from barnraise.dag.proving import assemble
from barnraise.dag.roster import founded
from barnraise.errors import ConfigError
from barnraise.identity import PUBLIC_IDENTITY_BYTES, SIGNATURE_BYTES, PublicIdentity
from barnraise.ids import PeerId
from barnraise.swarm import records
from barnraise.swarm.records import Readmit, Revoke, Rotate

from .signed_log import SignedLog, people, signed_log, steps_of, with_steps


def eventful() -> SignedLog:
    """A run of four founders in which two come and one goes, with rounds of nothing between."""
    log = signed_log()
    names = sorted(log.keys)
    log.round()
    log.round(joined=names[4:5])
    log.round()
    log.round(joined=names[5:6], left=names[:1])
    log.round()
    log.round()
    return log


def names_of(log: SignedLog) -> list[PeerId]:
    return sorted(log.keys)


@cache
def finished() -> SignedLog:
    """The same for all who only look at it."""
    return eventful()


@cache
def quiet() -> Proof:
    log = signed_log()
    log.round()
    return log.proof()


# ---- what it shows ----------------------------------------------------------------------------------------------


def test_a_quiet_run_is_proved_by_one_entry() -> None:
    log = signed_log()
    for _ in range(3):
        log.round()
    found = check(decode(encode(log.proof())))
    assert (found.run, found.name) == (log.config.run_id, records.vertex_id(log.vertices[-1]))
    assert (found.height, found.epoch, found.changes, found.recoveries) == (5, 0, 0, ())
    assert len(log.proof().steps) == 1
    assert found.committee == log.state.committee
    assert found.signers == log.state.committee[:3]  # more were there than it takes
    assert (found.config.founders, found.protocol) == (log.config.founders, "pbft")


def test_each_change_of_members_is_followed() -> None:
    log = eventful()
    found = check(decode(encode(log.proof())))
    assert (found.epoch, found.changes, found.committee) == (2, 2, log.state.committee)
    assert len(found.signers) == 4  # of five, one of whom may lie
    older = check(log.proof(log.vertices[1]))
    assert (older.epoch, older.changes, older.vertex) == (0, 0, log.vertices[1])


def test_one_owners_machines_are_proved_alike() -> None:
    log = signed_log("home", founders=2)
    names = names_of(log)
    log.round(signers=names[:1])  # of two, the senior one goes on alone
    log.regroup(joined=names[2:3], left=names[1:2])
    log.round(signers=names[::2][:2])
    found = check(log.proof())
    assert (found.protocol, found.epoch, found.committee) == ("raft", 1, (names[0], names[2]))


def test_a_committee_votes_for_everybody() -> None:
    log = signed_log(founders=6, others=0, consensus=ConsensusConfig(max_committee=4))
    log.round()
    found = check(log.proof())
    assert (found.num_members, len(found.committee), len(found.signers)) == (6, 4, 3)


def test_keys_that_change_are_followed() -> None:
    log = signed_log()
    names = names_of(log)
    log.round()
    log.amend(Rotate(old=names[0], new=names[4]), names[0], names[4])
    log.round()
    log.amend(Revoke(peer=names[1]), names[1])
    log.round()
    log.amend(Readmit(lost=names[1], new=names[5]), *sorted([*names[:4], names[5]]))
    log.round()
    log.round()
    found = check(decode(encode(log.proof())))
    assert found.committee == (names[4], names[5], names[2], names[3]) == log.state.peers
    assert (found.changes, found.epoch) == (3, 3)


def test_the_operators_can_name_who_goes_on() -> None:
    log = signed_log()
    names = names_of(log)
    log.round()
    log.recover([*names[:2], *names[4:6]], operators=names[1:4])
    height = log.state.height - 1
    log.round()
    found = check(decode(encode(log.proof())))
    assert (found.recoveries, found.committee) == ((height,), (*names[:2], *names[4:6]))


def test_the_roster_is_the_states_own() -> None:
    log = eventful()
    log.amend(Rotate(old=names_of(log)[1], new=names_of(log)[6]), names_of(log)[1], names_of(log)[6])
    log.round(joined=names_of(log)[:1])
    log.regroup(left=names_of(log)[2:3])
    roster, pending = founded(log.config, log.config.run_id), ()
    for decision in log.decisions:
        event = records.decode_event.decode(decision.value)
        pending = (*pending, event.change) if isinstance(event, records.Amend) else pending
        roster = roster.after(event, pending if hasattr(event, "changes") else ())
        pending = () if hasattr(event, "changes") else pending
    state = log.state
    assert (roster.epoch, roster.height, roster.head) == (state.epoch, state.height, state.head)
    assert roster.standing.peers == state.peers
    assert [m.seniority for m in roster.standing.members] == [m.seniority for m in state.members]


# ---- what it does not let through -------------------------------------------------------------------------------

Attack = Callable[[SignedLog, Proof], Proof]


def edit(change: Callable[[list[Step]], Sequence[Step]]) -> Attack:
    """Return an attack on the steps alone."""
    return lambda log, found: with_steps(found, change(steps_of(found)))


def of_another_run(log: SignedLog, found: Proof) -> Proof:
    other = signed_log(seed=2)
    other.round(joined=names_of(other)[4:5])
    return with_steps(found, [*steps_of(other.proof())[:1], *steps_of(found)[1:]])


def with_another_genesis(log: SignedLog, found: Proof) -> Proof:
    return msgspec.structs.replace(found, genesis=replace(log.config, seed=2).canonical_bytes())


def with_founders_of_ones_own(log: SignedLog, found: Proof) -> Proof:
    mine = tuple(identity.peer_id for identity in people(7)[3:])
    return msgspec.structs.replace(found, genesis=replace(log.config, founders=mine).canonical_bytes())


def by_those_who_left(log: SignedLog, found: Proof) -> Proof:
    """The founders, one of whom has left, go on as if nothing had happened."""
    past = signed_log()
    for _ in range(9):
        past.round()
    return with_steps(found, [*steps_of(found)[:-1], *steps_of(past.proof())])


def a_future_of_their_own(log: SignedLog, found: Proof) -> Proof:
    """A minority of the second epoch's members let in whom they like, and name others with signatures that are none."""
    fork = signed_log()
    names = names_of(fork)
    fork.round(joined=names[4:5])
    fork.round(joined=names[6:], signers=names[:3])
    spare = tuple((peer, bytes(SIGNATURE_BYTES)) for peer in names[3:5])
    fork.decisions[-1] = replace(fork.decisions[-1], votes=fork.decisions[-1].votes + spare)
    return fork.proof()


def twice(steps: list[Step]) -> list[Step]:
    last = steps[-1]
    return [*steps[:-1], msgspec.structs.replace(last, votes=last.votes[:2] + last.votes[:2])]


def moved(steps: list[Step]) -> list[Step]:
    """One member's vote as somebody else's."""
    last = steps[-1]
    (first, _), (second, signature) = last.votes[:2]
    return [
        *steps[:-1],
        msgspec.structs.replace(last, votes=((first, signature), (second, signature), *last.votes[2:])),
    ]


def at(height: int) -> Callable[[list[Step]], list[Step]]:
    return lambda steps: [*steps[:-1], msgspec.structs.replace(steps[-1], height=height)]


def last(**changes: Any) -> Callable[[list[Step]], list[Step]]:
    return lambda steps: [*steps[:-1], msgspec.structs.replace(steps[-1], **changes)]


ATTACKS: dict[str, tuple[Attack, str]] = {
    "an epoch's change left out": (edit(lambda steps: steps[1:]), "a change of them is missing"),
    "another one left out": (edit(lambda steps: [steps[0], steps[2]]), "a change of them is missing"),
    "changes in another order": (edit(lambda steps: [steps[1], steps[0], steps[2]]), "is missing, or out of order"),
    "a change twice": (edit(lambda steps: [steps[0], steps[0], *steps[1:]]), "is missing, or out of order"),
    "cut short": (edit(lambda steps: steps[:-1]), "is not checkpoint"),
    "something behind the end": (edit(lambda steps: [*steps, steps[-1]]), "changes no member"),
    "another run's change": (of_another_run, "is another run's"),
    "another run's genesis": (with_another_genesis, "is another run's"),
    "founders of one's own": (with_founders_of_ones_own, "is another run's"),
    "votes of the founders, one of whom left": (by_those_who_left, "of epoch 0, and the members are known up to 2"),
    "a minority that counts a stranger": (
        a_future_of_their_own,
        "the 4 votes at height 3 do not certify it, with 5 voters in epoch 1",
    ),
    "a vote twice": (edit(twice), "not one each of voters"),
    "a vote as another's": (edit(moved), "the 4 votes at height 11 do not certify it"),
    "a vote less": (
        edit(lambda steps: last(votes=steps[-1].votes[1:])(steps)),
        "the 3 votes at height 11 do not certify it",
    ),
    "no votes": (edit(last(votes=())), "do not certify it, with 5 voters"),
    "a voter who is not there": (edit(last(votes=((70_000, bytes(SIGNATURE_BYTES)),))), "not one each of voters"),
    "another height": (edit(at(13)), "do not certify it, with 5 voters"),
    "a height of the past": (edit(at(3)), "does not follow"),
    "another view": (edit(last(view=1)), "do not certify it, with 5 voters"),
    "changes that nobody agreed on": (edit(last(changes=(Revoke(peer="x"),))), "not what the members agreed on"),
    "garbage for an entry": (edit(last(value=b"\xc1")), "is damaged"),
    "another checkpoint": (
        lambda log, found: msgspec.structs.replace(found, vertex=records.encode(log.vertices[-2])),
        "is not checkpoint",
    ),
    "a checkpoint that says something else": (
        lambda log, found: msgspec.structs.replace(
            found, vertex=records.encode(msgspec.structs.replace(log.vertices[-1], model=bytes(32)))
        ),
        "is not checkpoint",
    ),
    "voters out of order": (
        lambda log, found: msgspec.structs.replace(found, voters=found.voters[::-1]),
        "not in order",
    ),
    "a voter twice": (
        lambda log, found: msgspec.structs.replace(found, voters=(found.voters[0], *found.voters)),
        "or one is there twice",
    ),
    "a later format": (lambda log, found: msgspec.structs.replace(found, version=2), "of format 2"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_else_is_certified(name: str) -> None:
    attack, said = ATTACKS[name]
    log = finished()
    with pytest.raises(NotCertified, match=said) as told:
        check(attack(log, log.proof()))
    assert told.value.exit_code == 1


def test_a_key_that_is_not_its_owners_has_no_vote() -> None:
    log = signed_log()
    log.round()
    found = log.proof()
    first, second = found.voters[:2]
    mixed = first[:33] + second[33:]  # one's Ed25519 key, the other's ML-DSA key and what binds it
    with pytest.raises(NotCertified, match="the 3 votes at height 1 do not certify it, with 4 voters"):
        check(msgspec.structs.replace(found, voters=(mixed, *found.voters[1:])))
    with pytest.raises(ValueError, match="not signed by both"):
        PublicIdentity.decode(mixed)


@pytest.mark.parametrize("half", ["Ed25519", "ML-DSA-65"])
def test_half_a_signature_is_none(half: str) -> None:
    log = signed_log()
    log.round()
    found = log.proof()
    (step,) = steps_of(found)
    place, signature = step.votes[0]
    spoilt = bytearray(signature)
    spoilt[10 if half == "Ed25519" else 1000] ^= 1
    votes = ((place, bytes(spoilt)), *step.votes[1:])
    with pytest.raises(NotCertified, match="the 3 votes at height 1 do not certify it, with 4 voters"):
        check(with_steps(found, [msgspec.structs.replace(step, votes=votes)]))


def test_a_revoked_key_cannot_be_kept_by_leaving_the_revocation_out() -> None:
    log = signed_log()
    names = names_of(log)
    log.amend(Revoke(peer=names[1]), names[1])
    log.round(joined=names[4:5])
    log.round()
    found = log.proof()
    check(found)
    first, *rest = steps_of(found)
    with pytest.raises(NotCertified, match="not what the members agreed on"):
        check(with_steps(found, [msgspec.structs.replace(first, changes=()), *rest]))


@pytest.mark.parametrize("count", [2, 3])
def test_a_recovery_takes_most_of_the_operators(count: int) -> None:
    log = signed_log()
    names = names_of(log)
    log.recover([names[0], *names[4:7]], operators=names[:count])
    log.round()
    if count == 3:
        assert check(log.proof()).recoveries == (0,)
        return
    log.decisions[0] = replace(log.decisions[0], votes=(*log.decisions[0].votes, (names[2], bytes(SIGNATURE_BYTES))))
    with pytest.raises(NotCertified, match="do not certify it, with the operators"):
        check(log.proof())


def test_a_recovery_by_members_votes_is_none() -> None:
    log = signed_log()
    names = names_of(log)
    log.recover([names[0], *names[4:7]], operators=names[:3])
    value = log.decisions[0].value
    fresh = signed_log()
    log.decisions[0] = fresh.voted(value, names[:4])
    log.round()
    with pytest.raises(NotCertified, match="do not certify it, with the operators"):
        check(log.proof())


# ---- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        bytes(1 << 20),
        b"\x91" * 100_000,  # arrays within arrays
        b"\xdd\xff\xff\xff\xff",  # four billion elements
        b"\x96\xb5barnraise.certificate\x01\xc6\xff\xff\xff\xff",  # four billion bytes
        msgspec.msgpack.encode(["barnraise.certificate", 1, b"", b"", [], [], b""]),  # no steps
        msgspec.msgpack.encode(["barnraise.certificate", 1, b"", b"", [b"short"], [0], b""]),
        msgspec.msgpack.encode(["barnraise.certificate", 1, bytes(2 << 20), b"", [], [0], b""]),
        msgspec.msgpack.encode(["barnraise.certificate", 1, b"", b"", [], [0] * 100_001, b""]),
        msgspec.msgpack.encode(["something else", 1, b"", b"", [], [0], b""]),
        msgspec.msgpack.encode({"version": 1}),
    ],
)
def test_what_is_no_certificate_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(NotCertified, match="is damaged, or of another version"):
        proof.read(tmp_path / "file")


def test_a_file_that_never_ends_is_read_as_far_as_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(proof.MAX_PROOF_BYTES * 4)
    with pytest.raises(NotCertified, match=rf"a certificate of {proof.MAX_PROOF_BYTES + 1} bytes"):
        proof.read(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be read"):
        proof.read(tmp_path / "nowhere")


def test_a_certificate_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    log = signed_log()
    log.round()
    monkeypatch.setattr(proof, "MAX_PROOF_BYTES", 1000)
    with pytest.raises(NotCertified, match="the members changed too often"):
        encode(log.proof())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_byte_that_is_changed_shows_or_changes_nothing(data: st.DataObject) -> None:
    """What a mutated file still proves, the unmutated one proves: bytes of the encoding itself, and of unused keys."""
    whole, expected = encode(quiet()), check(quiet())
    place = data.draw(st.integers(0, len(whole) - 1))
    spoilt = bytearray(whole)
    spoilt[place] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        spoilt = spoilt[:place]
    try:
        found = check(decode(bytes(spoilt)))
    except NotCertified:
        return
    assert (found.name, found.run, found.signers) == (expected.name, expected.run, expected.signers)


# ---- the genesis ------------------------------------------------------------------------------------------------


def pairs_of(config: RunConfig) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = msgspec.msgpack.decode(
        config.canonical_bytes(), type=tuple[int, list[tuple[str, str]]]
    )[1]
    return found


def test_the_genesis_says_what_the_run_was_begun_with() -> None:
    config = signed_log(seed=7).config
    assert config_of(config.canonical_bytes()) == config
    assert run_id_of(config.canonical_bytes()) == config.run_id


def test_a_run_of_another_version_keeps_its_id() -> None:
    config = signed_log().config
    known = [(key, text) for key, text in pairs_of(config) if key != "round.max_missed"]  # it had no such key
    data = msgspec.msgpack.encode([1, [*known, ("privacy.noise", "0.5")]])  # and one that we have not
    assert config_of(data) == config
    assert run_id_of(data) != config.run_id


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("consensus.quorum", "1", "rules that this version of barnraise does not know"),
        ("electors", "()", "rules that this version of barnraise does not know"),
        ("seed", "__import__('os')", "says .* for seed"),
        ("seed", "0x1", "says '0x1' for seed"),
        ("seed", "(" * 5000, "for seed"),
        ("seed", "{[]}", "for seed"),
        ("seed", "'x'", "Expected `int`"),
        ("profile", "'monarchy'", "profile"),
        ("consensus.protocol", "'raft'", "believes whatever a leader says"),
        ("founders", "()", "founded by nobody"),
        ("founders", "('a', 'a')", "somebody twice"),
    ],
)
def test_a_genesis_that_says_anything_else_is_refused(key: str, text: str, said: str) -> None:
    pairs = dict(pairs_of(signed_log().config)) | {key: text}
    with pytest.raises(NotCertified, match=said):
        config_of(msgspec.msgpack.encode([1, sorted(pairs.items())]))


def test_a_genesis_of_another_format_is_refused() -> None:
    for data in (b"\xc1", msgspec.msgpack.encode([2, []]), msgspec.msgpack.encode([1, [["seed", 1]]])):
        with pytest.raises(NotCertified):
            config_of(data)
    assert "founders" in flatten(RunConfig())


# ---- putting it together ----------------------------------------------------------------------------------------


def test_a_log_that_leads_elsewhere_proves_nothing() -> None:
    log = signed_log()
    log.round()
    vertex = log.round()
    with pytest.raises(NotCertified, match="does not lead to checkpoint"):
        assemble(log.config, log.decisions[:2], vertex, log.identities)


def test_without_the_voters_keys_there_is_no_proof() -> None:
    log = signed_log()
    vertex = log.round()
    known = dict(list(log.identities.items())[:2])
    with pytest.raises(NotCertified, match="the keys of 2 of those who voted at height 1 are here, too few of 4"):
        assemble(log.config, log.decisions, vertex, known)


def test_votes_of_strangers_and_second_votes_are_left_out() -> None:
    log = signed_log()
    names = names_of(log)
    vertex = log.round()
    votes = dict(log.decisions[1].votes)
    padded = ((names[6], bytes(SIGNATURE_BYTES)), *votes.items(), (names[0], bytes(SIGNATURE_BYTES)))
    log.decisions[1] = Decision(value=log.decisions[1].value, view=0, votes=padded)
    (step,) = steps_of(log.proof(vertex))
    assert [signature for _, signature in step.votes] == [votes[name] for name in names[:3]]
    assert all(len(voter) == PUBLIC_IDENTITY_BYTES for voter in log.proof().voters)
