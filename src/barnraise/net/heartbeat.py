"""Round trips of one link: which pings are out, what their answers say of the latency, what is too much; no I/O.

Theory of operation. A ping is a nonce that the other side sends back at once. Answers come in the order of the pings,
since a link is a stream; so an answer that is not the oldest nonce was never asked for, and ends the link. Whoever
answers cannot make a link look shorter than it is: it would have to know a nonce that it has not read yet. Making it
look longer only costs itself work.

A round trip through py-libp2p holds some milliseconds of two event loops besides the line's own, and now and then a
hundred, where a process was busy. So what is averaged is the least of the last `WINDOW` round trips. A line that really
became slower is believed after that many pings; one that became faster at once.

Where the kernel tells the shortest round trip of the connection (`Link.latency_s`) and it is less, that counts.
"""

import secrets
from collections import deque
from typing import Final

from barnraise.errors import PeerError
from barnraise.ids import PeerId

NONCE_BYTES: Final = 8
EVERY_S: Final = 2.0
COMPANY_S: Final = 1.1
"""How long a ping that is due waits for something to go with: a member says once a second that it is there."""
HASTE_S: Final = 0.25
"""Between the first `WINDOW` pings of a link: whoever plans by its latency need not wait for it."""
WINDOW: Final = 8
ALPHA: Final = 0.2
"""The weight of a new sample, as in `collective.links`."""
MAX_UNANSWERED: Final = 8
"""Pings that may be out. A peer that is paused finds no more than these when it wakes up."""
MAX_CREDIT: Final = 2 * MAX_UNANSWERED
"""Pings that may come at once: those of a pause, and the first ones of a link."""
CREDIT_PER_S: Final = 1.0
"""Twice as many as an honest peer sends."""


class Heartbeat:
    """What one end of a link knows of it. Times are seconds on any clock that does not go backwards."""

    def __init__(self, peer: PeerId) -> None:
        """``peer``: who is at the other end."""
        self._peer = peer
        self._unanswered: deque[tuple[bytes, float]] = deque()
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._round_trip_s: float | None = None
        self._credit = float(MAX_CREDIT)
        self._credited_at: float | None = None

    @property
    def latency_s(self) -> float | None:
        """Return the one-way latency, half of a round trip; None before the first answer."""
        return None if self._round_trip_s is None else self._round_trip_s / 2

    @property
    def may_ask(self) -> bool:
        """Tell whether another ping may go out."""
        return len(self._unanswered) < MAX_UNANSWERED

    def silent_s(self, now: float) -> float:
        """Return for how long the oldest ping that is out has been without an answer; 0: none is out."""
        return now - self._unanswered[0][1] if self._unanswered else 0.0

    def ask(self, now: float) -> bytes:
        """Return the nonce of a ping that leaves now."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._unanswered.append((nonce, now))
        return nonce

    def answered(self, now: float, nonce: bytes) -> None:
        """Take in an answer.

        Raises:
            PeerError: it is none to the oldest ping.
        """
        if not self._unanswered or self._unanswered[0][0] != nonce:
            raise PeerError(self._peer, "answered a ping that was not sent, or not in turn", nonce[:NONCE_BYTES])
        _, sent_at = self._unanswered.popleft()
        self._recent.append(now - sent_at)
        least_s = min(self._recent)
        known_s = least_s if self._round_trip_s is None else self._round_trip_s
        self._round_trip_s = known_s + ALPHA * (least_s - known_s)

    def asked(self, now: float, nonce: bytes) -> None:
        """Take in the other side's ping, which is to be answered with the same nonce.

        Raises:
            PeerError: it has another length, or pings come faster than anybody needs.
        """
        if len(nonce) != NONCE_BYTES:
            raise PeerError(self._peer, f"a ping of {len(nonce)} bytes; it has {NONCE_BYTES}", nonce[:NONCE_BYTES])
        passed_s = 0.0 if self._credited_at is None else now - self._credited_at
        self._credited_at = now
        self._credit = min(MAX_CREDIT, self._credit + CREDIT_PER_S * passed_s) - 1
        if self._credit < 0:
            limit = f"{MAX_CREDIT} at once and {CREDIT_PER_S:g} a second"
            raise PeerError(self._peer, f"pings without end: more than {limit}", nonce)
