"""How a verb asks the members of a run for something: it signs a petition with the keys at hand and leaves it in a file.

No verb of its own. A peer that runs in the directory takes the file up and hands it to the members.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from barnraise.cli.page import print_facts, print_json
from barnraise.errors import ConfigError
from barnraise.identity import MAX_PEER_ID_CHARS, Identity
from barnraise.ids import PeerId, short
from barnraise.peer.petitions import DIRECTORY, MAX_FILE_BYTES, SUFFIX
from barnraise.runs import folding, reading
from barnraise.runs.directory import IDENTITY_FILE
from barnraise.swarm import petitions, records
from barnraise.swarm.petitions import Petition, Voucher
from barnraise.swarm.records import MAX_SEALS
from barnraise.swarm.state import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A run's directory, or one peer's, as far as asking for something goes."""

    homes: tuple[Path, ...]
    """Directories of the peers there."""
    state: State
    """What the one of them that is farthest knows to be agreed."""
    keys: Mapping[PeerId, Identity]
    """Of the peers there."""


def place_of(directory: Path | None) -> Place:
    """Look at a run's or a peer's directory; raises `ConfigError` where no peer of a run has begun there."""
    path = reading.find(directory)
    homes = tuple(reading.peer_directories(path))
    identities = [Identity.load(home / IDENTITY_FILE) for home in homes]
    return Place(
        homes=homes,
        state=folding.state_of(reading.farthest(path)),
        keys={identity.peer_id: identity for identity in identities},
    )


def ask(place: Place, body: bytes, extra: Iterable[Identity] = (), given: Petition | None = None) -> dict[str, Any]:
    """Sign a petition with every key at hand whose word counts for it, and leave it where the peers find it.

    Args:
        place: where.
        body: what is asked for.
        extra: keys besides those of the peers there.
        given: the same petition, as others have signed it.

    Returns:
        What a verb prints.

    Raises:
        ConfigError: it cannot be done, or no key at hand counts.
    """
    state, read = place.state, petitions.read_body(body)
    if reason := petitions.why_not(state, read):
        raise ConfigError(f"the members cannot agree to that: {reason}")
    vouchers = {voucher.signer: voucher for voucher in given.vouchers} if given else {}
    vouchers |= {voucher.signer: voucher for home in place.homes for voucher in _kept(_file(home, body))}
    keys = dict(place.keys) | {identity.peer_id: identity for identity in extra}
    ours = [peer for peer in sorted(keys) if petitions.may_sign(state, read, peer)]
    for peer in ours:
        if peer not in vouchers and not petitions.is_backed(state, read, vouchers) and len(vouchers) < MAX_SEALS:
            vouchers[peer] = petitions.signed(body, peer, keys[peer].public.encode(), keys[peer].sign)
    if not ours:
        raise ConfigError(f"no key at hand counts for it. {_whose(state)}")
    files = [_leave(home, body, vouchers.values()) for home in place.homes]
    return {
        "asks": petitions.asks(read),
        "signed": sorted(vouchers),
        "enough": petitions.is_backed(state, read, vouchers),
        "files": [str(file) for file in files],
    }


def tell(found: Mapping[str, Any], *, json: bool) -> None:
    """Print what became of a petition."""
    if json:
        print_json(found)
        return
    signed = ", ".join(map(short, found["signed"]))
    if found["enough"]:
        then = "a peer that runs there hands it to the members; barnraise log shows when they have agreed to it"
    else:
        then = (
            f"others have to sign it: the same command where their keys are, or barnraise key sign {found['files'][0]}"
        )
    print_facts([("asks", found["asks"]), ("signed by", signed), ("petition", found["files"][0]), ("next", then)])


def named(peers: Collection[PeerId], text: str) -> PeerId:
    """Return the peer whose id ends in ``text``, as ids are printed; raises `ConfigError` for none or several."""
    found = [peer for peer in peers if peer.endswith(text)]
    if len(found) != 1:
        known = ", ".join(map(short, peers)) or "nobody"
        what = "no peer" if not found else f"{len(found)} peers"
        raise ConfigError(f"{text}: is the end of the id of {what} here. Name one of: {known}.")
    return found[0]


def named_or_whole(peers: Collection[PeerId], text: str) -> PeerId:
    """Return the peer whose id ends in ``text``, or, where that is a whole id, that one, whoever it is."""
    return PeerId(text) if len(text) == MAX_PEER_ID_CHARS else named(peers, text)


def read_file(path: Path) -> Petition:
    """Return the petition in a file; raises `ConfigError` where there is none."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: is over {MAX_FILE_BYTES} bytes, so it is no petition. Name another file.")
        petition = petitions.decode_petition.decode(path.read_bytes())
        petitions.read_body(petition.body)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a petition's file.") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: is no petition ({error}). Name another file.") from error
    return petition


def _whose(state: State) -> str:
    operators = state.founded.operator_ids
    if not operators:
        return "The run has no operators: more founders than can be, and none were named when it was begun."
    return f"Sign where the key of an operator is: {', '.join(map(short, operators))}."


def _file(home: Path, body: bytes) -> Path:
    return home / DIRECTORY / f"{records.digest(body).hex()[:16]}{SUFFIX}"


def _kept(file: Path) -> tuple[Voucher, ...]:
    """Return the signatures of a petition that is left there already."""
    return read_file(file).vouchers if file.exists() else ()


def _leave(home: Path, body: bytes, vouchers: Iterable[Voucher]) -> Path:
    file = _file(home, body)
    file.parent.mkdir(exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_bytes(petitions.encode(Petition(body=body, vouchers=tuple(vouchers))))
    return partial.replace(file)
