"""How a bulk connection fills its link: TCP's congestion control, how many connections, and what TCP measures of it.

A long link with a little loss starves a control that takes loss for a full queue: at 100 Mbit/s, 50 ms and 0.1 % loss
one cubic connection used 14 % of the link, eight 84 %, one bbr 93 %. A short link wants no pacing: over loopback bbr
moved 4.7 GB/s, reno 8.7. So `auto` gives long links bbr where the kernel offers it to us, more connections where it
does not, and takes bbr off short ones where it is the system's default.

bbr helps with idle links too: Linux lets every other control begin again with a small window after an idle while
(RFC 5681 section 4.1), and only ``net.ipv4.tcp_slow_start_after_idle``, which is the operator's, would stop that.
"""

import contextlib
import math
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from barnraise.errors import ConfigError

AUTO: Final = "auto"
LONG_ROUND_TRIP_S: Final = 0.005
"""Longer is no local network."""
MAX_CONNECTIONS: Final = 8
PACED: Final = "bbr"
UNPACED: Final = "reno"
"""What every Linux offers to everybody."""
LOSSY_WINDOW_BYTES: Final = 64 * 1024
"""What one connection keeps under way at 0.1 % loss if loss is what it goes by: 1.22 segments of 1448 bytes over the
root of 0.001 (Mathis et al. 1997) is 56 kB."""
BUFFER_WINDOW_BYTES: Final = 2 * 1024 * 1024
"""What one connection keeps under way at most: half of Linux's usual largest send buffer of 4 MiB."""
BUSY_SHARE: Final = 0.9
"""Of the time between two looks a connection must have been busy for what it delivered to be what it can."""

_KNOWN: Final = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_INFO: Final = struct.Struct("=7xB 8x I 48x I 76x I 8x QQ 16x I")
"""Of Linux's tcp_info: app_limited at 7, snd_mss at 16, rtt at 68, min_rtt at 148, delivery_rate at 160, busy_time at
168, delivered at 192."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the kernel knows of one connection."""

    round_trip_s: float
    """The shortest seen."""
    bandwidth_bytes_s: float
    """Of what was acknowledged lately; 0 if nothing was."""
    is_bound_by_us: bool
    """The connection waited for bytes of ours, so it may do more."""
    delivered_bytes: int
    """Since it began, in whole segments; also what arrived out of order. Begins again at 2**32 segments."""
    busy_s: float
    """For so long since it began it had bytes of ours to deliver."""


def check(name: str) -> None:
    """See that a congestion control can be had here.

    Raises:
        ConfigError: the system does not have it, or does not let us use it.
    """
    if name == AUTO:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if _set(probe, name):
            return
    with contextlib.suppress(OSError):
        raise ConfigError(
            f"congestion control {name!r} cannot be had here. Say auto, or one of: {_KNOWN.read_text().strip()}."
        )
    raise ConfigError(f"congestion control {name!r} cannot be had on this system. Say auto.")


def control(sock: socket.socket, name: str, round_trip_s: float) -> bool:
    """Set a connection's congestion control, by its round trip if ``name`` is auto; say whether it is paced (bbr).

    What the kernel refuses is left as it is.
    """
    in_force = _get(sock)
    wanted = name
    if name == AUTO:
        is_long = round_trip_s > LONG_ROUND_TRIP_S
        wanted = PACED if is_long else UNPACED if in_force == PACED else in_force
    if wanted != in_force and _set(sock, wanted):
        in_force = wanted
    return in_force == PACED


def connections_for(round_trip_s: float, bandwidth_bytes_s: float | None, *, is_paced: bool) -> int:
    """Return how many connections a link wants, 1 to `MAX_CONNECTIONS`.

    Enough that together they keep the bandwidth-delay product under way. One on a local network: it fills that, and
    each more costs a thread's and the cache's time. One can keep little under way where it takes every loss for a full
    queue, much if it is paced. Of a bandwidth not measured yet the worst is assumed if losses would cost. Paced, one has
    to do: frames take turns on the connections, so they are as fast as the slowest, and of bbr's some always probe or
    drain. Over 100 Mbit/s, 50 ms and 0.1 % loss one used 87 % of the link, three 64 %; one is enough for 335 Mbit/s.

    Args:
        round_trip_s: seconds.
        bandwidth_bytes_s: of the link, in this direction; None if it was not measured.
        is_paced: the connections use bbr.
    """
    if round_trip_s <= LONG_ROUND_TRIP_S:
        return 1
    if bandwidth_bytes_s is None:
        bandwidth_bytes_s = 0.0 if is_paced else math.inf
    window_bytes = BUFFER_WINDOW_BYTES if is_paced else LOSSY_WINDOW_BYTES
    wanted = bandwidth_bytes_s * round_trip_s / window_bytes
    return max(1, math.ceil(min(wanted, MAX_CONNECTIONS)))


def measured(sock: socket.socket) -> Measured | None:
    """Return what the kernel knows of a connection; None where it does not say."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:
        return None
    if len(info) < _INFO.size:
        return None
    flags, segment_bytes, smoothed_us, shortest_us, rate, busy_us, num_segments = _INFO.unpack(info)
    # A shortest of 0xffffffff says that there was no sample yet.
    round_trip_us = min(shortest_us, smoothed_us) if smoothed_us else 0
    return Measured(
        round_trip_s=round_trip_us / 1e6,
        bandwidth_bytes_s=float(rate),
        is_bound_by_us=bool(flags & 1),
        delivered_bytes=num_segments * segment_bytes,
        busy_s=busy_us / 1e6,
    )


def rate(before: Sequence[Measured], after: Sequence[Measured], elapsed_s: float) -> tuple[float, bool]:
    """Return how fast a stream's connections are together, in bytes a second, and whether we held them up.

    What all of them delivered between two looks, if none lacked bytes of ours meanwhile. Else of one connection the
    kernel's figure, which is of a burst; of several, which send at the same time (`striping`), the sum of what each
    delivered between two looks while it had something to.

    Args:
        before: the connections' earlier look; empty: there is none.
        after: their later one.
        elapsed_s: between the two.
    """
    pairs = list(zip(before, after, strict=True)) if before else []
    delivered = [max(0, new.delivered_bytes - old.delivered_bytes) for old, new in pairs]
    busy_s = [new.busy_s - old.busy_s for old, new in pairs]
    had_bytes = pairs and elapsed_s > 0 and not any(each.is_bound_by_us for each in after)
    if had_bytes and min(busy_s) >= BUSY_SHARE * elapsed_s:
        return sum(delivered) / elapsed_s, False
    if len(after) == 1:
        return after[0].bandwidth_bytes_s, after[0].is_bound_by_us
    return sum(size / took_s for size, took_s in zip(delivered, busy_s, strict=True) if took_s > 0), True


def _get(sock: socket.socket) -> str:
    if not hasattr(socket, "TCP_CONGESTION"):
        return ""
    with contextlib.suppress(OSError):
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode("ascii", "replace")
    return ""


def _set(sock: socket.socket, name: str) -> bool:
    if not hasattr(socket, "TCP_CONGESTION") or not name:
        return False
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except (OSError, UnicodeError):
        return False
    return True
