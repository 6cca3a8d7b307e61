"""``barnraise verify``: whether a run's members agreed on a checkpoint, and whether a model is that one; offline."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from barnraise.cli.page import Json, print_facts, print_json
from barnraise.dag import proof
from barnraise.dag.proof import Certified, NotCertified, Proof
from barnraise.errors import ConfigError
from barnraise.ids import DIGEST_BYTES
from barnraise.swarm import records

MODEL_FILE: Final = "model.safetensors"
CERTIFIED: Final = 0
NOT_CERTIFIED: Final = 1
_WORTH: Final = {
    "pbft": "holds as long as fewer than a third of the voters of each epoch lied, or had their keys stolen since",
    "raft": "crash faults only: it says which machines agreed, and proves nothing against one of them that lies",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """What is to be checked."""

    proof: Proof
    where: Path
    """The certificate's file, or the directory of the peer whose log it was put together from."""
    model: Path | None
    """None: there is none to compare."""

    @property
    def is_kept(self) -> bool:
        """Tell whether the model is the peer's own vector."""
        return self.model is not None and self.where in self.model.parents


def verify(
    checkpoint: Path | None = None,
    /,
    *,
    model: Annotated[Path | None, Parameter(show_default=False)] = None,
    run: Annotated[str, Parameter(show_default=False)] = "",
    vertex: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> int:
    """Check a checkpoint's certificate, and that the model beside it is the one; exit code 0 or 1.

    Nothing but these files is needed: no peer, no network, no key. The founders are those that the run id fixes; each
    change of the members since was certified by those before it, and the checkpoint by the last of them.

    Args:
        checkpoint: A directory that `barnraise export` wrote, a certificate's file, or the directory of a run or of one
            peer. Default: the run of this user in which something happened last.
        model: The model's file, where it is not beside the certificate: safetensors, or the bare vector of a peer.
        run: The run that it must be of: all 64 digits of an id that you have from somebody you trust.
        vertex: The checkpoint that it must be, likewise.
        json: Print one object; ids and hashes as hex digits.
    """
    pins = {"run": _pin(run, "--run"), "vertex": _pin(vertex, "--vertex")}
    subject = _subject(checkpoint, model, pins["vertex"])
    try:
        found = _checked(subject, pins)
    except NotCertified as error:
        _refute(str(error), subject, json=json)
        return NOT_CERTIFIED
    unchecked = _unchecked(found, subject, pins)
    if json:
        print_json(_record(found, subject, pins, unchecked))
        return CERTIFIED
    print(_sentence(found, subject))
    print_facts(_facts(found, unchecked))
    return CERTIFIED


def check_exported(directory: Path) -> None:
    """Check the certificate of an exported directory, where it has one, before its model is used.

    Raises:
        NotCertified: it or the model does not hold.
    """
    if (directory / proof.FILE_NAME).is_file():
        _checked(_subject(directory, None, b""), {"run": b"", "vertex": b""})


def _pin(text: str, flag: str) -> bytes:
    """Return the id that a flag names; raises `ConfigError` for a part of one, which others can be found to have."""
    try:
        name = bytes.fromhex(text)
    except ValueError:
        name = b"?"
    if text and len(name) != DIGEST_BYTES:
        raise ConfigError(
            f"{flag} {text!r} is not the {2 * DIGEST_BYTES} hexadecimal digits of an id. Copy all of them."
        )
    return name


def _subject(checkpoint: Path | None, model: Path | None, vertex: bytes) -> _Subject:
    """Find what a path means.

    Raises:
        ConfigError: nothing that can be checked.
    """
    if checkpoint is not None and (checkpoint / proof.FILE_NAME).is_file():
        checkpoint = checkpoint / proof.FILE_NAME
    if checkpoint is not None and not checkpoint.is_dir():
        beside = checkpoint.with_name(MODEL_FILE)
        model = model or (beside if beside.is_file() else None)
        return _Subject(proof=proof.read(checkpoint), where=checkpoint, model=model)
    return _from_run(checkpoint, model, vertex)


def _from_run(directory: Path | None, model: Path | None, vertex: bytes) -> _Subject:
    """Put the proof together from a run's directory: of the checkpoint that is pinned, or of the newest."""
    from barnraise.runs import certificates, reading

    home = reading.farthest(reading.find(directory))
    with reading.opened(home) as reader:
        known = reader.vertices()
    wanted = [found for found in known if not vertex or records.vertex_id(found) == vertex]
    if not wanted:
        raise ConfigError(f"{home}: has {len(known)} checkpoints, and not that one. barnraise log lists them.")
    theta = reading.theta(home, wanted[0])
    model = model or (theta if theta.is_file() else None)
    return _Subject(proof=certificates.prove(home, wanted[0]), where=home, model=model)


def _checked(subject: _Subject, pins: dict[str, bytes]) -> Certified:
    """Return what the proof shows; raises `NotCertified` where it, a pin or the model does not hold."""
    found = proof.check(subject.proof)
    for what, name in (("run", bytes(found.run)), ("vertex", bytes(found.name))):
        if pins[what] and pins[what] != name:
            raise NotCertified(f"it is of {what} {name.hex()}, and not of {pins[what].hex()}.")
    if subject.model is not None:
        _compare(subject.model, subject, found)
    return found


def _compare(model: Path, subject: _Subject, found: Certified) -> None:
    """Raise `NotCertified` unless a model's file holds the checkpoint's parameters."""
    if subject.is_kept:
        from barnraise.runs import reading

        if not reading.holds(subject.where, found.vertex.model):
            raise NotCertified(f"{model}: is damaged. Move it away; the peer fetches it again when it is started.")
        return
    from barnraise.model.exported import flat_of
    from barnraise.swarm.workspace import root_of

    try:
        root = root_of(flat_of(model, found.config.model, subject.proof.layout))
    except ConfigError as error:
        raise NotCertified(str(error)) from error
    if root != found.vertex.model:
        raise NotCertified(
            f"{model}: its parameters hash to {root.hex()[:12]}, and the members agreed on "
            f"{found.vertex.model.hex()[:12]}: it is another model, or was changed."
        )


def _sentence(found: Certified, subject: _Subject) -> str:
    where = "" if subject.model is None else f"; the model in {subject.model.name} is the one"
    return (
        f"Certified by {len(found.signers)} of {len(found.committee)} {_electorate(found)} in round "
        f"{found.vertex.round} of run {found.run.hex()[:12]}{where}."
    )


def _electorate(found: Certified) -> str:
    return "members" if len(found.committee) == found.num_members else f"voters for {found.num_members} members"


def _facts(found: Certified, unchecked: list[str]) -> list[tuple[str, str]]:
    changes = (
        f"{found.changes} changes since the {len(found.config.founders)} founders, each certified by those before it"
    )
    recoveries = [
        f"at height {height}, by most of the operators in place of the members" for height in found.recoveries
    ]
    return [
        ("checkpoint", found.name.hex()),
        ("of run", found.run.hex()),
        ("parameters", found.vertex.model.hex()),
        ("agreed by", f"{found.protocol}, {found.config.profile} profile: {_WORTH[found.protocol]}"),
        ("members", f"epoch {found.epoch}; {changes}" if found.changes else "the founders, since the run began"),
        *(("recovered", text) for text in recoveries),
        *(("signed by", peer) for peer in found.signers),
        *(("not checked", text) for text in unchecked),
    ]


def _unchecked(found: Certified, subject: _Subject, pins: dict[str, bytes]) -> list[str]:
    """Say what the exit code does not vouch for."""
    unchecked = []
    if not any(pins.values()):
        unchecked.append(
            "whether this is the run that you mean; have its id from somebody you trust, and give --run ID"
        )
    if found.protocol == "pbft" and not pins["vertex"]:
        unchecked.append(
            "whether keys of former members were stolen since; who knows the checkpoint's id gives --vertex ID"
        )
    if subject.model is None:
        unchecked.append("any model: there is none here; name its file: --model FILE")
    elif subject.model.name == MODEL_FILE and not subject.is_kept:
        unchecked.append("the other files beside it, such as config.json, which says how the parameters are used")
    if found.config.model.architecture == "custom" and not found.config.model.layout:
        unchecked.append("which number belongs to which tensor: the run does not fix it")
    return unchecked


def _record(found: Certified, subject: _Subject, pins: dict[str, bytes], unchecked: list[str]) -> dict[str, Any]:
    return {
        "certified": True,
        "run": found.run.hex(),
        "vertex": found.name.hex(),
        "round": found.vertex.round,
        "height": found.height,
        "epoch": found.epoch,
        "profile": found.config.profile,
        "protocol": found.protocol,
        "worth": _WORTH[found.protocol],
        "founders": found.config.founders,
        "membership_changes": found.changes,
        "recoveries": found.recoveries,
        "members": found.num_members,
        "voters": found.committee,
        "signers": found.signers,
        "model": found.vertex.model.hex(),
        "model_file": None if subject.model is None else str(subject.model),
        "pinned": [what for what, name in pins.items() if name],
        "unchecked": unchecked,
    }


def _refute(reason: str, subject: _Subject, *, json: bool) -> None:
    if json:
        print_json({"certified": False, "where": str(subject.where), "reason": reason})
    else:
        print(f"NOT certified: {reason}")
