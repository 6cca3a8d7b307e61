"""What ``barnraise bench`` and the processes that measure for it say to each other: lines of JSON, and nothing measured."""

import msgspec


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is to measure, and with whom; its first line of stdin, since it may hold a key."""

    sizes_mb: tuple[float, ...]
    codecs: tuple[str, ...]
    schedules: tuple[str, ...]
    repetitions: int
    num_peers: int
    rank: int = 0
    addresses: tuple[str, ...] = ()
    """Of all, by rank; empty: they find each other."""
    bootstrap: tuple[str, ...] = ()
    listen: str = "lan:0"
    """Where nobody has a list."""
    name: str = "bench"
    cluster_key: str | None = None
    """A key, or its file; None: that of this user."""
    wait_s: float = 60.0
    """How long to wait for the others."""
    timeout_s: float = 300.0
    """Of one collective."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """A process listens."""

    address: str


class Joined(msgspec.Struct, frozen=True, kw_only=True, tag="joined"):
    """All are there."""

    rank: int
    world_size: int


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """What one kind of collective took; the same on all ranks."""

    size_mb: float
    codec: str
    schedule: str
    wall_s: float
    """Median over turns of the slowest rank's time."""
    cpu_s: float
    """Median over turns of all ranks' processes together."""
    turns_s: tuple[float, ...]


class Planned(msgspec.Struct, frozen=True, kw_only=True, tag="planned"):
    """What the planner would choose, by the links as they were measured meanwhile."""

    size_mb: float
    codec: str
    schedule: str
    predicted_s: float
    reasons: tuple[str, ...]
    """Sentences, for people."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It came to nothing."""

    exit_code: int
    why: str


Line = Opened | Joined | Measured | Planned | Failed
