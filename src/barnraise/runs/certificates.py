"""What the runs on this machine can prove: a checkpoint's certificate, from a peer's log and the keys of its voters."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from barnraise.consensus.agreement import Decision
from barnraise.dag.proof import MAX_LAYOUT_BYTES, Certified, NotCertified, Proof, check
from barnraise.dag.proving import assemble
from barnraise.dag.store import Reader
from barnraise.errors import ConfigError
from barnraise.identity import ED25519_KEY_BYTES, PUBLIC_IDENTITY_BYTES, Identity, peer_id_of
from barnraise.ids import PeerId
from barnraise.runs import reading
from barnraise.runs.directory import IDENTITY_FILE
from barnraise.runs.reading import Checkpoint
from barnraise.swarm.records import Vertex

VOTERS_FILE: Final = "voters"
"""In a peer's directory: public keys of those whose votes it has checked, one a line."""
LAYOUT_FILE: Final = "layout.msgpack"
"""In a peer's directory: names and shapes of its trainer's tensors."""
PAGE_ENTRIES: Final = 64
"""Log entries read at once; with a hundred members' votes 15 MB."""


def certified(found: Checkpoint) -> tuple[Proof, Certified]:
    """Return a checkpoint's proof after checking it, and that its parameters are the ones it is about.

    Raises:
        ConfigError: something cannot be read.
        NotCertified: the proof or the parameters do not hold.
    """
    if not reading.holds(found.peer_dir, found.vertex.model):
        raise NotCertified(
            f"{found.theta_path}: is not what the members agreed on: the file is damaged. Move it away; "
            "the peer fetches it again when it is started."
        )
    proof = prove(found.peer_dir, found.vertex)
    return proof, check(proof)


def prove(peer_dir: Path, vertex: Vertex) -> Proof:
    """Return the proof of a checkpoint, from a peer's log and from the keys that are known beside it.

    Raises:
        ConfigError: the log cannot be read.
        LocalError: it is damaged.
        NotCertified: it does not lead to the checkpoint, or too few of the voters' keys are here.
    """
    config = reading.run_config(peer_dir)
    layout = _layout(peer_dir) if config.model.architecture == "custom" else b""
    with reading.opened(peer_dir) as reader:
        return assemble(config, _decisions(reader), vertex, identities(peer_dir), layout)


def identities(peer_dir: Path) -> dict[PeerId, bytes]:
    """Return the public keys that a peer knows, and those of the peers whose directories are beside its own."""
    found: dict[PeerId, bytes] = {}
    for home in {peer_dir, *reading.peer_directories(peer_dir.resolve().parent)}:
        for line in _lines(home / VOTERS_FILE):
            with contextlib.suppress(ValueError):  # cut short by a crash
                identity = bytes.fromhex(line)
                if len(identity) == PUBLIC_IDENTITY_BYTES:
                    found[peer_id_of(identity[1 : 1 + ED25519_KEY_BYTES])] = identity
        with contextlib.suppress(ConfigError):  # a key that this user may not read is not needed, as a rule
            own = Identity.load(home / IDENTITY_FILE)
            found[own.peer_id] = own.public.encode()
    return found


def _decisions(reader: Reader) -> Iterator[Decision]:
    height = 0
    while page := reader.log(height, PAGE_ENTRIES):
        yield from page
        height += len(page)


def _layout(peer_dir: Path) -> bytes:
    path = peer_dir / LAYOUT_FILE
    try:
        with path.open("rb") as file:
            return file.read(MAX_LAYOUT_BYTES)
    except OSError:
        return b""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return []
