"""What a peer and its trainer say to each other over their Unix socket; tensors travel beside it, in mapped files.

Conversation, one line a message:

    trainer                                  peer
    Hello  (version, layout of the model) -> checks that it is the run's model
                                          <- Initialise (where to write the first parameters), on a new run
    Initialised                           ->
                                          <- Begin (one round's work)
    Progress, at most once a second       ->
    Done (the update is in the file)      ->
                                          <- Begin ... or Stop, which end a round that is under way
    Leave (the user's loop is done)       ->
                                          <- Finished (the last parameters), at the run's end or ours

A frame is four bytes of little-endian length and that many bytes of msgpack. The peer owns the parameters
(``theta``), the trainer the inner optimiser's state and its random numbers; both are on disk at every boundary,
so a trainer that died is started again and given the same `Begin`. This file imports neither torch nor trio.
"""

from collections.abc import Sequence
from typing import Final

import blake3
import msgspec

from barnraise.swarm.records import Decoder
from barnraise.swarm.slots import Segment as Segment

VERSION: Final = 2
MAX_FRAME_BYTES: Final = 1024 * 1024
"""The largest frame is a `Hello` with the layout of a model of some thousands of tensors."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True, forbid_unknown_fields=True):
    pass


class Tensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One named tensor of the model; the flat vector holds them in the order of the layout, buffers last."""

    name: str
    shape: tuple[int, ...]
    is_buffer: bool = False
    """Running statistics and the like: averaged plainly, whatever the strategy does with parameters."""


class Hello(_Message, frozen=True):
    """Trainer to peer, once: who is there and what it trains."""

    version: int
    pid: int
    layout: tuple[Tensor, ...]
    data_digest: bytes
    """BLAKE3 of the training text: peers of one run must hold the same."""
    device: str
    dtype: str = "float32"
    """What forward and backward compute in."""
    reason: str = ""
    """Why that device."""


class Initialise(_Message, frozen=True):
    """Peer to trainer: write the run's first parameters, float32[d], to ``path``."""

    path: str


class Initialised(_Message, frozen=True):
    """Trainer to peer: the first parameters are in the file."""


class Begin(_Message, frozen=True):
    """Peer to trainer: one round's work. Everything needed to do it again, bit for bit, is in here."""

    round: int
    fragment: int
    order: int
    """Tells this work from what was given before for the same round; `Done` says it again."""
    theta_path: str
    """float32[d], read only."""
    update_path: str
    """float32[d], to be written: theta - w, "before minus after"."""
    segments: tuple[Segment, ...]
    """``steps * batch_size`` samples in the order of use."""
    steps: int
    first_step: int
    """Inner steps that the run has behind it; the learning rate's schedule counts from here."""
    total_steps: int
    """Inner steps that the run is planned for."""
    seconds: float
    """End the round after so long, with ``steps`` as the most; 0: take all steps. At least one step is taken."""
    num_members: int
    snapshot_in: str
    """The trainer's state (optimiser, random numbers) at the round's start; empty: a fresh start."""
    snapshot_out: str
    """Where to leave that state at the round's end."""
    evaluate: Segment
    """Windows of the validation text on which to measure ``theta`` before training; count 0: none."""


class Progress(_Message, frozen=True):
    """Trainer to peer: where it is."""

    round: int
    step: int
    loss: float
    """Mean of the steps since the last one, nats per token."""


class Done(_Message, frozen=True):
    """Trainer to peer: the update and the snapshot are written."""

    round: int
    order: int
    """Of the `Begin` that it answers."""
    steps: int
    samples: int
    tokens: int
    loss: float
    """Mean over the round, nats per token."""
    validation_nats: float
    """Sum over the validation windows asked for."""
    validation_tokens: int
    took_s: float


class Failed(_Message, frozen=True):
    """Trainer to peer: this round cannot be trained (a loss that is not finite, say)."""

    round: int
    reason: str


class Leave(_Message, frozen=True):
    """Trainer to peer: whoever drives the trainer is done; finish the round and leave the run."""


class Finished(_Message, frozen=True):
    """Peer to trainer: no round comes after this; the parameters that were agreed last are in the file."""

    round: int
    theta_path: str


class Stop(_Message, frozen=True):
    """Peer to trainer: leave at once."""


FromTrainer = Hello | Initialised | Progress | Done | Failed | Leave
FromPeer = Initialise | Begin | Finished | Stop

_encode = msgspec.msgpack.Encoder().encode
_from_trainer: Decoder[FromTrainer] = Decoder(msgspec.msgpack.Decoder(FromTrainer))
_from_peer: Decoder[FromPeer] = Decoder(msgspec.msgpack.Decoder(FromPeer))


def layout_digest(layout: Sequence[Tensor]) -> str:
    """Return BLAKE3 (hex) of names, shapes and kinds, in order: models that agree on it can be trained together."""
    return blake3.blake3(_encode(tuple(layout)), derive_key_context="barnraise 1 layout").hexdigest()


def frame(message: FromTrainer | FromPeer) -> bytes:
    """Return the bytes to write for one message."""
    body = _encode(message)
    return len(body).to_bytes(4, "little") + body


def body_length(prefix: bytes) -> int:
    """Return the length that a 4-byte prefix announces.

    Raises:
        ValueError: it is over ``MAX_FRAME_BYTES``; nothing was allocated.
    """
    size = int.from_bytes(prefix, "little")
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    return size


def from_trainer(body: bytes) -> FromTrainer:
    """Decode what a trainer sent; raises `msgspec.DecodeError`."""
    return _from_trainer.decode(body)


def from_peer(body: bytes) -> FromPeer:
    """Decode what the peer sent; raises `msgspec.DecodeError`."""
    return _from_peer.decode(body)
