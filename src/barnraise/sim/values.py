"""What is proposed in a trial of agreement: names of values, for whom they are valid, whom they let in; no messages."""

import random
from dataclasses import dataclass

from barnraise.consensus.agreement import MAX_VALUE_BYTES
from barnraise.ids import PeerId


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """One proposal."""

    name: bytes
    height: int
    proposer: int
    is_valid: bool = True
    doubters: frozenset[int] = frozenset()
    """They do not find it valid before ``clear_s``."""
    clear_s: float = 0.0
    joins: PeerId | None = None
    leaves: PeerId | None = None
    """Who takes whose place when it is decided."""

    def is_valid_for(self, member: int, now: float) -> bool:
        """Tell whether this member finds it valid at this moment."""
        return self.is_valid and (now >= self.clear_s or member not in self.doubters)


class Values:
    """All that was ever proposed in a trial; anything else is not valid."""

    def __init__(self, rng: random.Random, num_peers: int, calm_s: float, contention: float) -> None:
        self._rng = rng
        self._num_peers = num_peers
        self._calm_s = calm_s
        self._contention = contention
        self._known: dict[bytes, Value] = {}

    def find(self, name: bytes) -> Value | None:
        """Return what was proposed under this name."""
        return self._known.get(name)

    def propose(self, proposer: int, height: int, members: tuple[PeerId, ...], spare: PeerId | None) -> bytes:
        """Return a new value of an honest member; with a spare, it may replace a member by it."""
        joins = leaves = None
        if spare is not None and self._rng.random() < 0.7:
            joins, leaves = spare, self._rng.choice(members)
        return self._note(proposer, height, is_valid=True, joins=joins, leaves=leaves)

    def tempt(self, proposer: int, height: int) -> bytes:
        """Return a new value of a traitor, which may be invalid."""
        return self._note(proposer, height, is_valid=self._rng.random() < 0.8)

    def oversized(self) -> bytes:
        """Return what is too long to be a value."""
        return bytes(MAX_VALUE_BYTES + 1)

    def _note(
        self,
        proposer: int,
        height: int,
        *,
        is_valid: bool,
        joins: PeerId | None = None,
        leaves: PeerId | None = None,
    ) -> bytes:
        name = f"value {len(self._known)} of peer {proposer} for height {height}".encode()
        rng = self._rng
        doubters: frozenset[int] = frozenset()
        if self._contention and rng.random() < self._contention:
            doubters = frozenset(rng.sample(range(self._num_peers), rng.randint(1, self._num_peers)))
        self._known[name] = Value(
            name=name,
            height=height,
            proposer=proposer,
            is_valid=is_valid,
            doubters=doubters,
            clear_s=rng.uniform(0, self._calm_s) if doubters else 0.0,
            joins=joins,
            leaves=leaves,
        )
        return name
