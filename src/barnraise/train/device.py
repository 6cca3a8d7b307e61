"""Which device a trainer computes on, in which type, and why."""

from dataclasses import dataclass
from typing import Literal

import torch

from barnraise.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A device, what it multiplies matrices in, and the sentence that goes to the log."""

    device: torch.device
    reason: str
    dtype: torch.dtype = torch.float32

    @property
    def dtype_name(self) -> str:
        """Return the type as the configuration spells it."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products are computed in ``dtype``; it does nothing for float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def choose(wanted: str, precision: Literal["float32", "bfloat16"] = "float32") -> Choice:
    """Return the device for ``auto``, ``cpu``, ``cuda`` (also ``cuda:1``) or ``mps``; auto prefers cuda, then mps.

    Parameters stay float32 on all of them. MPS is supported and untested: nobody has run it yet.

    Args:
        wanted: the device.
        precision: of matrix products. A device without bfloat16 computes in float32: others of the run need not know.

    Raises:
        ConfigError: the device is unknown or not there.
    """
    device, reason = _device(wanted)
    if precision == "float32":
        return Choice(device=device, reason=reason)
    if not _has_bfloat16(device):
        return Choice(device=device, reason=f"{reason}; float32, since this {device.type} has no bfloat16")
    return Choice(device=device, reason=f"{reason}; bfloat16: inner.precision asks for it", dtype=torch.bfloat16)


def _device(wanted: str) -> tuple[torch.device, str]:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        kind = next(kind for kind, there in available.items() if there)
        missing = [name for name in ("cuda", "mps") if not available[name]]
        reason = f"auto: {' and '.join(missing)} not available" if kind == "cpu" else f"auto: {kind} is available"
        return torch.device(kind), reason
    kind = wanted.partition(":")[0]
    if kind not in available:
        raise ConfigError(f"device is {wanted!r} and must be auto, {', '.join(available)}")
    if not available[kind]:
        raise ConfigError(f"device {wanted} was asked for and is not available here: use --device auto or cpu")
    try:
        return torch.device(wanted), "asked for"
    except RuntimeError as error:
        raise ConfigError(f"device is {wanted!r}, which is no device: use {kind}, or {kind}:0") from error


def _has_bfloat16(device: torch.device) -> bool:
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "mps":
            return bool(torch.backends.mps.is_macos_or_newer(14, 0))
        case _:
            return True
