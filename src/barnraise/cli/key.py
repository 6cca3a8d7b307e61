"""``barnraise key``: which keys this machine has, by names that anybody may see; makes new ones, and asks to change them.

No secret is shown.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, assert_never

from cyclopts import Parameter

from barnraise.cli import asking
from barnraise.cli.page import Directory, Json, print_facts, print_json
from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.peer.succession import NEXT_IDENTITY_FILE
from barnraise.runs import places, reading
from barnraise.runs.directory import CLUSTER_KEY_FILE, IDENTITY_FILE
from barnraise.swarm import petitions
from barnraise.swarm.records import Readmit, Revoke, Rotate

Action = Literal["show", "rotate", "revoke", "readmit", "sign"]
FINGERPRINT_BYTES: Final = 8


def key(
    action: Action = "show",
    subject: Annotated[str | None, Parameter(show_default=False)] = None,
    /,
    *,
    directory: Directory = None,
    new_cluster: Annotated[Path | None, Parameter(show_default=False)] = None,
    new_identity: Annotated[Path | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """Show the peer ids and the cluster key of this machine, or make new keys; secrets are never printed.

    Two machines are of one cluster if the fingerprints of their cluster keys are equal.

    The other actions ask the members of a run for something; a peer that runs in the directory hands it to them, and
    barnraise log shows when they have agreed. rotate: a peer goes on with new keys and keeps its seniority; start it
    again when they have agreed. revoke: its key is lost or stolen, so nobody is let in under its id any more. readmit: a
    peer that joined with new keys gets the seniority of one that was revoked. sign: another signature under a petition.

    Args:
        action: What to do.
        subject: Whom to revoke (default: the peer of the directory), or whom to readmit in the place of, by the id or
            its end; or the petition's file to sign.
        directory: Directory of a run, or of one peer. Default: the run of this user in which something happened last,
            if there is any.
        new_cluster: Make a cluster key in this file, which must not be there yet; only its owner can read it.
        new_identity: Make a peer's two signing keys in this file, likewise.
        json: Print one object.
    """
    if action != "show":
        asking.tell(_asked(action, subject, directory), json=json)
        return 0
    if new_cluster is not None or new_identity is not None:
        found = _made(new_cluster, new_identity)
    else:
        found = _known(directory)
    if json:
        print_json(found)
    else:
        print_facts(_facts(found))
    return 0


def fingerprint(cluster: ClusterKey) -> str:
    """Return 16 hex digits that tell cluster keys apart and give nothing of the key away."""
    return cluster.derive(b"fingerprint", FINGERPRINT_BYTES).hex()


def _asked(action: Literal["rotate", "revoke", "readmit", "sign"], subject: str | None, directory: Path | None) -> Any:
    place = asking.place_of(directory)
    match action:
        case "rotate":
            home, me = _only_peer(place)
            new = Identity.load_or_create(home / NEXT_IDENTITY_FILE)
            body = petitions.wish_of(place.state.run, Rotate(old=me, new=new.peer_id))
            return asking.ask(place, body, extra=[new])
        case "revoke":
            peer = _only_peer(place)[1] if subject is None else asking.named_or_whole(place.state.peers, subject)
            return asking.ask(place, petitions.wish_of(place.state.run, Revoke(peer=peer)))
        case "readmit":
            lost = asking.named([retired.peer for retired in place.state.retired], _given(subject, "the lost key's id"))
            change = Readmit(lost=lost, new=_only_peer(place)[1])
            return asking.ask(place, petitions.wish_of(place.state.run, change))
        case "sign":
            given = asking.read_file(Path(_given(subject, "the petition's file")))
            return asking.ask(place, given.body, given=given)
        case _:
            assert_never(action)


def _only_peer(place: asking.Place) -> tuple[Path, PeerId]:
    if len(place.homes) > 1:
        raise ConfigError(
            f"{place.homes[0].parent}: has {len(place.homes)} peers. Name the directory of one: --dir DIR."
        )
    return place.homes[0], next(iter(place.keys))


def _given(subject: str | None, what: str) -> str:
    if subject is None:
        raise ConfigError(f"{what} is missing. Put it behind the action.")
    return subject


def _made(new_cluster: Path | None, new_identity: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {"cluster": None, "peers": []}
    if new_cluster is not None:
        found["cluster"] = _cluster(new_cluster, ClusterKey.create(new_cluster))
    if new_identity is not None:
        made = Identity.create(new_identity)
        found["peers"] = [{"peer": made.peer_id, "file": str(new_identity)}]
    return found


def _known(directory: Path | None) -> dict[str, Any]:
    try:
        path = reading.find(directory)
    except ConfigError:
        if directory is not None:
            raise
        return {"cluster": _cluster_of(None), "peers": []}
    files = [home / IDENTITY_FILE for home in reading.peer_directories(path)]
    peers = [{"peer": Identity.load(file).peer_id, "file": str(file)} for file in files]
    return {"cluster": _cluster_of(path), "peers": peers}


def _cluster_of(path: Path | None) -> dict[str, Any]:
    """Return the cluster key of a run that has its own, else this user's."""
    own = None if path is None else path / CLUSTER_KEY_FILE
    file = own if own is not None and own.is_file() else places.cluster_key_file()
    return _cluster(file, ClusterKey.load(file) if file.exists() else None)


def _cluster(file: Path, cluster: ClusterKey | None) -> dict[str, Any]:
    return {"file": str(file), "fingerprint": None if cluster is None else fingerprint(cluster)}


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if cluster := found["cluster"]:
        facts.append(("cluster key", cluster["file"]))
        facts.append(("fingerprint", cluster["fingerprint"] or "not made yet; the first run makes it"))
    for peer in found["peers"]:
        facts += [("peer", peer["peer"]), ("signing keys", peer["file"])]
    return facts
