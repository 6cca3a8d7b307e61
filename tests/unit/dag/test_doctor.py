"""What an examination of a peer's disk finds, and what a repair leaves: less, but all of it true."""

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from barnraise.config import load_run_config
from barnraise.consensus.agreement import Broadcast, Decision, Judge, Send
from barnraise.dag import doctor
from barnraise.dag.blobs import Blobs
from barnraise.dag.disk import WRITING
from barnraise.dag.doctor import Finding, Patient
from barnraise.dag.lock import DirectoryLock
from barnraise.dag.retention import Retention
from barnraise.dag.sealing import Seal, SealedBlobs
from barnraise.dag.store import Store
from barnraise.identity import Identity
from barnraise.ids import Digest, PeerId
from barnraise.swarm import records
from barnraise.swarm.adopt import adopt
from barnraise.swarm.state import State, genesis
from barnraise.swarm.workspace import root_of

MakeRun = Callable[..., Any]


def decided(state: State, value: bytes, identities: dict[PeerId, Identity]) -> Decision:
    """Have the members agree on an entry, by whatever protocol the run has."""

    def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        return identities[peer].public.verify(context, message, signature)

    members = {
        peer: state.agreement.open(
            state.scope, state.committee, peer, sign=identities[peer].sign, verify=verify, record=None
        )
        for peer in state.committee
    }
    leader = next(peer for peer, member in members.items() if member.may_propose)
    todo = [(leader, effect) for effect in members[leader].propose(value)]
    while todo:
        peer, effect = todo.pop(0)
        match effect:
            case Broadcast(message=message):
                for other in members.keys() - {peer}:
                    todo += [(other, found) for found in members[other].receive(peer, message)]
            case Send(to=to, message=message):
                todo += [(to, found) for found in members[to].receive(peer, message)]
            case Judge(view=view):
                todo += [(peer, found) for found in members[peer].approve(view)]
    decision = members[leader].decision
    assert decision is not None
    return decision


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the first test puts a run for all of them: signing takes long."""
    return tmp_path_factory.mktemp("template") / "run"


@pytest.fixture
def patient(made_run: MakeRun, template: Path, tmp_path: Path) -> Patient:
    """The first peer of a run of three rounds, eight entries, every one of which its members signed for."""
    if not template.exists():
        sign(made_run(3, template))
    shutil.copytree(template, tmp_path / "copy")
    homes = [tmp_path / "copy" / f"peer-{index}" for index in range(3)]
    voters = {who.peer_id: who.public for who in (Identity.load(home / "identity.key") for home in homes)}
    config = load_run_config(tmp_path / "copy" / "run.toml")
    return Patient(home=homes[0], config=config, voters=voters, retention=Retention(), seal=None)


def sign(run: Any) -> None:
    """Replace the votes in the first peer's log by true ones."""
    identities = {who.peer_id: who for who in (Identity.load(run.home(index) / "identity.key") for index in range(3))}
    path, config = run.home(0) / "log.sqlite", run.directory.config
    reader = Store.read(path)
    founding = reader.founding()
    assert founding is not None
    state = genesis(config, 1, founding.theta, root_of(np.zeros(founding.blocks[-1][1], np.float32)))
    signed: list[Decision] = []
    for entry in reader.log():
        signed.append(decided(state, entry.value, identities))
        state = adopt(state, signed[-1:], lambda *vote: True).state
    reader.close()
    connection = sqlite3.connect(path)
    with connection:
        for height, decision in enumerate(signed):
            row = decision.view, msgspec.msgpack.encode(decision.votes), height
            connection.execute("UPDATE log SET view = ?, votes = ? WHERE height = ?", row)
    connection.close()


def sql(patient: Patient, statement: str, *values: object) -> None:
    connection = sqlite3.connect(patient.log_file)
    with connection:
        connection.execute(statement, values)
    connection.close()


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def mended(patient: Patient) -> list[Finding]:
    """Repair, see that everything was mended that could be, and return what is found afterwards."""
    found = doctor.repaired(doctor.examine(patient))
    assert all(finding.mended for finding in found if finding.repair is not None)
    return doctor.examine(patient)


def heights(patient: Patient) -> tuple[int, list[int]]:
    reader = Store.read(patient.log_file)
    try:
        return reader.height(), [vertex.round for vertex in reader.vertices()]
    finally:
        reader.close()


NO_VOTE = "no vote of this peer is on record"


def test_a_healthy_peer_has_nothing_but_what_is_so(patient: Patient) -> None:
    (finding,) = doctor.examine(patient)
    assert (finding.level, finding.what[: len(NO_VOTE)]) == ("note", NO_VOTE)


def test_a_peer_that_has_not_begun_is_no_patient(patient: Patient, tmp_path: Path) -> None:
    (finding,) = doctor.examine(replace(patient, home=tmp_path))
    assert (finding.level, finding.what) == ("note", "has not begun: there is no log yet")


@pytest.mark.parametrize("height", [0, 3, 7])
def test_a_log_is_cut_off_where_its_votes_do_not_hold(patient: Patient, height: int) -> None:
    reader = Store.read(patient.log_file)
    (decision,) = reader.log(height, 1)
    reader.close()
    forged = tuple((voter, signature[:-1] + bytes([signature[-1] ^ 1])) for voter, signature in decision.votes)
    sql(patient, "UPDATE log SET votes = ? WHERE height = ?", msgspec.msgpack.encode(forged), height)
    found = doctor.examine(patient)
    assert (
        f"the log does not hold at height {height} of 8: the votes for height {height} are no quorum" in found[0].what
    )
    assert heights(patient)[0] == 8, "an examination changes nothing"
    after = mended(patient)
    rounds = {0: 0, 3: 1, 7: 2}[height]
    assert heights(patient) == (height, list(range(rounds, 0, -1)))
    assert not any("the log" in finding.what for finding in after)


@pytest.mark.parametrize(
    ("value", "why"),
    [(b"\xc1", "is malformed"), (b"", "is malformed"), (None, "no quorum")],
    ids=["junk", "none", "other"],
)
def test_an_entry_that_is_another_one_is_not_believed(patient: Patient, value: bytes | None, why: str) -> None:
    """A single changed byte is caught by the votes; whoever could forge those is still held to the rules."""
    believing = replace(patient, voters={}) if value is not None else patient
    if value is None:
        sql(patient, "UPDATE log SET value = (SELECT value FROM log WHERE height = 4) WHERE height = 5")
    else:
        sql(patient, "UPDATE log SET value = ? WHERE height = 5", value)
    found = doctor.examine(believing)
    assert why in found[0].what
    mended(believing)
    assert heights(patient) == (5, [1])


def test_a_gap_ends_the_log(patient: Patient) -> None:
    sql(patient, "DELETE FROM log WHERE height = 2")
    found = doctor.examine(patient)
    assert "at height 2 of 8: the entry is missing, and later ones are there" in found[0].what
    mended(patient)
    assert heights(patient) == (2, [1])


def test_a_log_whose_members_keys_are_missing_is_followed_as_far_as_hashes_tell(patient: Patient) -> None:
    own = next(iter(patient.voters))
    (warning, _) = doctor.examine(replace(patient, voters={own: patient.voters[own]}))
    assert warning.level == "warning"
    assert "the votes of 2 members could not be checked" in warning.what or "of 1 members" in warning.what


def test_checkpoints_are_those_that_the_log_leads_to(patient: Patient) -> None:
    sql(patient, "DELETE FROM vertex WHERE round = 2")
    reader = Store.read(patient.log_file)
    (vertex,) = reader.vertices(1)
    reader.close()
    stranger = msgspec.structs.replace(vertex, round=9)
    sql(patient, "INSERT INTO vertex VALUES (?, 9, ?)", records.vertex_id(stranger), records.encode(stranger))
    found = doctor.examine(patient)
    assert "of the log's 3 checkpoints 1 are missing, and 1 are none of its" in found[0].what
    mended(patient)
    assert heights(patient) == (8, [3, 2, 1])


def test_another_runs_log_is_told(patient: Patient) -> None:
    assert patient.config is not None
    other = replace(patient.config, seed=patient.config.seed + 1)
    found = doctor.examine(replace(patient, config=other))
    assert found[0].level == "error"
    assert found[0].what.startswith("the log is of run ")
    assert found[0].repair is None


@pytest.mark.parametrize("damage", ["start", "middle"])
def test_a_database_that_is_none_is_told_and_left_alone(patient: Patient, damage: str) -> None:
    data = bytearray(patient.log_file.read_bytes())
    start = 0 if damage == "start" else 4096
    data[start : start + 4096] = b"\xa5" * 4096
    patient.log_file.write_bytes(data)
    found = doctor.examine(patient)
    assert found[0].level == "error"
    assert "is damaged" in found[0].what
    assert "Move" in found[0].mend
    assert doctor.repaired(found)[0].mended == ""
    assert patient.log_file.read_bytes() == data


def test_a_vote_of_another_version_is_told(patient: Patient) -> None:
    sql(patient, "INSERT INTO ballot VALUES (0, x'c1')")
    (finding,) = doctor.examine(patient)
    assert "the newest vote cannot be read" in finding.what


@pytest.mark.parametrize(("place", "level"), [(0, "error"), (1, "warning")])
def test_a_damaged_tensor_is_deleted_to_be_fetched_again(patient: Patient, place: int, level: str) -> None:
    reader = Store.read(patient.log_file)
    name = Digest(reader.vertices()[place].model)
    reader.close()
    path = Blobs(patient.blobs).path(name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = doctor.examine(patient)
    assert found[1].level == level
    assert "is damaged (its bytes have another hash)" in found[1].what
    after = mended(patient)
    assert not path.exists()
    assert after[1].what.endswith("the file is missing")
    assert ("fetches what it lacks" if level == "error" else "does not need it itself") in after[1].mend


def test_the_rule_says_whose_tensors_are_looked_for(patient: Patient) -> None:
    reader = Store.read(patient.log_file)
    oldest = Digest(reader.vertices()[-1].model)
    reader.close()
    Blobs(patient.blobs).path(oldest).unlink()
    assert levels(doctor.examine(patient)) == ["note"]
    found = doctor.examine(replace(patient, retention=Retention(newest=1, every=1)))
    assert levels(found) == ["note", "note"]
    assert "the parameters of the checkpoint after round 1: the file is missing" in found[1].what


def test_a_missing_residual_needs_nothing_done(patient: Patient) -> None:
    sql(patient, "INSERT INTO residual VALUES (0, ?)", bytes(32))
    found = doctor.examine(patient)
    assert "what rounding left of our updates: the file is missing" in found[1].what
    assert "begins it at zero" in found[1].mend


def test_leftovers_are_removed_and_downloads_are_not(patient: Patient) -> None:
    name = bytes(32).hex()
    junk = [patient.blobs / (name + WRITING), patient.blobs / "stray", patient.home / "run.toml.partial.toml"]
    fetched = [patient.blobs / f"{name}.partial", patient.blobs / f"{name}.chunks"]
    for file in [*junk, *fetched]:
        file.write_bytes(b"some bytes")
    found = doctor.examine(patient)
    assert any("3 files (0.0 MB) are left by a write that was cut short" in finding.what for finding in found)
    after = mended(patient)
    assert not any(file.exists() for file in junk)
    assert all(file.exists() for file in fetched)
    assert after[-1].what.startswith("1 downloads are not finished")


def test_what_a_running_peer_is_about_to_finish_is_no_leftover(patient: Patient) -> None:
    (patient.blobs / (bytes(32).hex() + WRITING)).write_bytes(b"")
    assert levels(doctor.examine(replace(patient, is_running=True))) == ["note"]


def test_a_repair_of_a_peer_that_has_started_meanwhile_does_nothing(patient: Patient) -> None:
    sql(patient, "DELETE FROM log WHERE height = 2")
    (patient.blobs / "stray").write_bytes(b"")
    found = doctor.examine(patient)
    lock = DirectoryLock(patient.home)
    after = doctor.repaired(found)
    lock.release()
    assert not any(finding.mended for finding in after)
    assert sum("Is another peer running" in finding.mend for finding in after) == 2
    assert heights(patient)[0] == 8
    assert (patient.blobs / "stray").exists()


def sealed(patient: Patient, memory: Path) -> Patient:
    memory.mkdir()
    key = Seal("cluster", b"s" * 32)
    SealedBlobs(patient.blobs, key, memory)
    return replace(patient, seal=key)


def test_sealed_tensors_are_examined_with_their_key(patient: Patient, tmp_path: Path) -> None:
    patient = sealed(patient, tmp_path / "memory")
    assert levels(doctor.examine(patient)) == ["note"]
    file = next(patient.blobs.glob("*.sealed"))
    file.write_bytes(file.read_bytes()[:-1])
    found = doctor.examine(patient)
    assert any("is cut off" in finding.what for finding in found)
    mended(patient)
    assert not file.exists()


def test_sealed_tensors_without_their_key_are_not_called_damaged(patient: Patient, tmp_path: Path) -> None:
    patient = replace(sealed(patient, tmp_path / "memory"), seal=None)
    found = doctor.examine(patient)
    assert levels(found) == ["note", "note"]
    assert "sealed by the cluster key, which was not given" in found[1].what


def test_what_lies_in_the_open_beside_sealed_files_is_removed(patient: Patient, tmp_path: Path) -> None:
    patient = sealed(patient, tmp_path / "memory")
    plain = [patient.home / "update.f32", patient.blobs / bytes(32).hex()]
    for file in plain:
        file.write_bytes(b"1234")
    assert any("from before it was sealed" in finding.what for finding in doctor.examine(patient))
    mended(patient)
    assert not any(file.exists() for file in plain)
