"""Where one round's time and bytes went, as this peer saw it."""

import math
import time
from dataclasses import dataclass, field

from barnraise.observe.counters import Meter
from barnraise.swarm.effects import Commit
from barnraise.swarm.records import MICRO


def _now() -> float:
    return time.perf_counter()


@dataclass(kw_only=True)
class RoundBooks:
    """Marks of one round; a later attempt's marks replace an earlier one's."""

    sent: int = 0
    """Bytes that this peer had sent before the round."""
    received: int = 0
    began: float = field(default_factory=_now)
    trained_at: float | None = None
    voting_since: float | None = None
    """When this peer cast its first vote on the cut."""
    cut_at: float | None = None
    exchanged_at: float | None = None
    stepped_at: float | None = None
    apply_s: float = 0.0
    moved_at_cut: tuple[int, int] = (0, 0)
    """Bytes sent and received by then."""
    moved: tuple[int, int] = (0, 0)
    """Bytes sent and received between the cut and the aggregate's arrival, whatever they were for."""

    def trained(self) -> None:
        """Mark the trainer's end."""
        self.trained_at = _now()

    def voted(self) -> None:
        """Mark a vote; before the cut only the first one counts, after it none."""
        if self.voting_since is None and self.cut_at is None:
            self.voting_since = _now()

    def cut(self, sent: int, received: int) -> None:
        """Mark the cut's agreement; ``sent`` and ``received`` are bytes so far."""
        self.cut_at = _now()
        self.moved_at_cut = sent, received

    def exchanged(self, sent: int, received: int) -> None:
        """Mark the aggregate's arrival; ``sent`` and ``received`` are bytes so far."""
        self.exchanged_at = _now()
        self.moved = sent - self.moved_at_cut[0], received - self.moved_at_cut[1]

    def stepped(self) -> None:
        """Mark the end of the step on the copy."""
        self.stepped_at = _now()

    def applied(self, took_s: float) -> None:
        """Add the time that making the step durable took."""
        self.apply_s += took_s

    def figures(self) -> dict[str, float]:
        """Return the seconds of each part, in the order of a round; parts that did not happen are 0."""
        end = _now()
        trained = self.trained_at or self.cut_at or end
        cut = max(self.cut_at or end, trained)
        exchanged = max(self.exchanged_at or cut, cut)
        stepped = max(self.stepped_at or exchanged, exchanged)
        on_the_cut = max(0.0, cut - max(self.voting_since or cut, trained))
        return {
            "train_s": round(trained - self.began, 4),
            "wait_s": round(cut - trained - on_the_cut, 4),
            "exchange_s": round(exchanged - cut, 4),
            "apply_s": round(stepped - exchanged + self.apply_s, 4),
            "agree_s": round(on_the_cut + max(0.0, end - stepped - self.apply_s), 4),
            "took_s": round(end - self.began, 4),
        }

    @property
    def exchange_s(self) -> float:
        """Return how long the exchange took; 0 where there was none."""
        return max(0.0, self.exchanged_at - self.cut_at) if self.exchanged_at and self.cut_at else 0.0

    def metered(self, meter: Meter, effect: Commit, sent: int, received: int) -> Meter:
        """Return the meter of exchanges with this round in it; ``sent`` and ``received`` are bytes so far."""
        sent_bytes, received_bytes = sent - self.sent, received - self.received
        failed = effect.event.attempt
        return meter.plus(took_s=self.exchange_s, sent_bytes=sent_bytes, received_bytes=received_bytes, failed=failed)

    def committed(self, effect: Commit, sent: int, received: int) -> dict[str, object]:
        """Return the fields of the round's ``round.committed``; ``sent`` and ``received`` are bytes so far."""
        event, metrics = effect.event, effect.event.metrics
        is_measured = metrics.validation_loss >= 0
        return {
            "round": event.round,
            "vertex": event.vertex.hex(),
            "theta": event.theta_root.hex(),
            "members": list(effect.state.peers),
            "contributors": [member for member, _ in effect.vertex.contributors],
            "missed": [member.peer for member in effect.state.members if member.missed] + list(event.left),
            "train_loss": metrics.train_loss / MICRO,
            "val_bits_per_byte": metrics.validation_loss / MICRO / math.log(2) if is_measured else None,
            "tokens": metrics.tokens,
            "failed_attempts": event.attempt,
            "bytes_sent": sent - self.sent,
            "bytes_received": received - self.received,
            **self.figures(),
        }
