"""Names for the byte strings and texts that identify things; nothing here computes."""

from typing import NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, e.g. ``12D3KooW...``: the identity multihash of an Ed25519 public key."""

Digest = NewType("Digest", bytes)
"""32 bytes of BLAKE3."""

RunId = NewType("RunId", bytes)
"""32 bytes: BLAKE3 of the canonical bytes of the run's genesis."""

DIGEST_BYTES = 32
EMPTY_DIGEST = Digest(bytes(DIGEST_BYTES))
"""Stands where a record has a field for a hash and this profile has nothing to hash."""


def short(name: str | bytes) -> str:
    """Return the few characters by which a person tells peers or digests apart."""
    return name[-6:] if isinstance(name, str) else name[:6].hex()
