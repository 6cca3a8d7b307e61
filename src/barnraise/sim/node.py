"""One peer of the simulated world: the machine that ships, a small real workspace, and a disk that outlives a crash."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import blake3
import numpy as np

from barnraise.codec.chain import codec_of
from barnraise.codec.grid import Float32
from barnraise.config import RunConfig
from barnraise.consensus.agreement import Decision, Record
from barnraise.identity import SIGNATURE_BYTES
from barnraise.ids import DIGEST_BYTES, PeerId
from barnraise.swarm.adopt import adopt
from barnraise.swarm.member import Member
from barnraise.swarm.slots import Segment
from barnraise.swarm.state import genesis
from barnraise.swarm.workspace import Workspace, root_of

SIZE = 200
BLOCKS = ((0, 70), (70, 200))
PEER_TIMEOUT_S = 30.0
PADDING = bytes(SIGNATURE_BYTES - DIGEST_BYTES)


@dataclass(kw_only=True)
class Disk:
    """What outlives a crash."""

    ballot: Record | None = None
    log: list[Decision] = field(default_factory=list)
    theta: Float32
    momentum: Float32
    residual: Float32

    @classmethod
    def fresh(cls, *, is_hollow: bool = False) -> "Disk":
        """Return the disk of a peer that has not been here; hollow: it cannot draw the first parameters by itself."""
        zeros = np.zeros(SIZE, np.float32)
        return cls(theta=zeros if is_hollow else first_parameters(), momentum=zeros, residual=zeros)


@dataclass(kw_only=True)
class Node:
    """One simulated peer."""

    index: int
    peer: PeerId
    disk: Disk
    member: Member
    workspace: Workspace
    alive: bool = True
    life: int = 0
    """Counts restarts: what an earlier life had scheduled is void."""
    paused_until: float = 0.0
    leaving_since: float | None = None
    """It has finished its part and stays for those who are behind."""
    performed: dict[tuple[int, str], int] = field(default_factory=dict)
    encoded_round: int = -1
    train_order: int = 0
    is_hollow: bool = False

    @classmethod
    def fresh(cls, index: int, peer: PeerId, config: RunConfig, now: float, *, is_hollow: bool = False) -> "Node":
        """Return a peer that has nothing but its keys and the run's configuration."""
        disk = Disk.fresh(is_hollow=is_hollow)
        member = member_of(peer, disk, config, now, is_hollow=is_hollow)
        workspace = workspace_of(disk, config)
        return cls(index=index, peer=peer, disk=disk, member=member, workspace=workspace, is_hollow=is_hollow)

    def start_again(self, config: RunConfig, now: float) -> None:
        """Begin another life with what is on the disk."""
        self.member = member_of(self.peer, self.disk, config, now, is_hollow=self.is_hollow)
        self.workspace = workspace_of(self.disk, config)


def first_parameters() -> Float32:
    """Return what every run here begins with, float32[SIZE]."""
    return np.arange(SIZE, dtype=np.float32) / np.float32(SIZE)


def member_of(peer: PeerId, disk: Disk, config: RunConfig, now: float, *, is_hollow: bool = False) -> Member:
    """Return a peer's machine, as far as its disk goes."""
    state = genesis(config, len(BLOCKS), root_of(first_parameters()), root_of(np.zeros(SIZE, np.float32)))
    return Member(
        me=peer,
        state=adopt(state, disk.log, verify).state,
        sign=lambda context, message: sign(peer, context, message),
        verify=verify,
        now=now,
        peer_timeout_s=PEER_TIMEOUT_S,
        ballot=disk.ballot,
        recent=disk.log,
        is_fresh=not disk.log and disk.ballot is None,
        is_hollow=is_hollow,
    )


def workspace_of(disk: Disk, config: RunConfig) -> Workspace:
    """Return a peer's tensors."""
    codec = codec_of(config.round.codec, np.int16)
    return Workspace(BLOCKS, disk.theta, disk.momentum, disk.residual, codec=codec)


def update_of(theta: Float32, slot: Sequence[Segment]) -> Float32:
    """Return a pseudo-gradient: towards zero, and a part that depends on the samples."""
    seed = b"".join(segment.first.to_bytes(8, "little") for segment in slot)
    noise = np.frombuffer(blake3.blake3(seed).digest(length=SIZE), np.int8).astype(np.float32)
    return np.asarray(theta * np.float32(0.1) + noise * np.float32(1e-4), np.float32)


def sign(peer: PeerId, context: str, message: bytes) -> bytes:
    """Return an ideal signature, as long as a real one: in this world nobody forges."""
    return blake3.blake3(f"{peer}|{context}|".encode() + message).digest() + PADDING


def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    """Tell whether an ideal signature holds."""
    return signature == sign(peer, context, message)
