"""Which device a trainer computes on, and why."""

from dataclasses import dataclass

import torch

from barnraise.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A device and the sentence that goes to the log."""

    device: torch.device
    reason: str


def choose(wanted: str) -> Choice:
    """Return the device for ``auto``, ``cpu``, ``cuda`` (also ``cuda:1``) or ``mps``; auto prefers cuda, then mps.

    Parameters stay float32 on all of them. CUDA and MPS are supported and untested: nobody has run them yet.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        kind = next(kind for kind, there in available.items() if there)
        missing = [name for name in ("cuda", "mps") if not available[name]]
        reason = f"auto: {' and '.join(missing)} not available" if kind == "cpu" else f"auto: {kind} is available"
        return Choice(device=torch.device(kind), reason=reason)
    kind = wanted.partition(":")[0]
    if kind not in available:
        raise ConfigError(f"device is {wanted!r} and must be auto, {', '.join(available)}")
    if not available[kind]:
        raise ConfigError(f"device {wanted} was asked for and is not available here: use --device auto or cpu")
    return Choice(device=torch.device(wanted), reason="asked for")
