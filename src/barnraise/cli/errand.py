"""Sends a module of the trainer's side on an errand in a process of its own, since this one loads no torch."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from barnraise.errors import BarnraiseError, ConfigError, LocalError, Unavailable

TIMEOUT_S: Final = 1800.0
"""Reading and writing the largest model on a slow disk."""
_KINDS: Final[Mapping[int, type[BarnraiseError]]] = {2: ConfigError, 3: Unavailable}

T = TypeVar("T")


def run(module: str, options: Sequence[str | Path], kind: type[T]) -> T:
    """Run ``python -m module`` with ``options`` and ``--json``; return what it prints.

    Args:
        module: full name of a module of the trainer's side.
        options: of its command line.
        kind: what its output is decoded as.

    Raises:
        ConfigError, Unavailable: in the module's own words.
        LocalError: it failed otherwise, or said something else.
    """
    command = [sys.executable, "-P", "-m", module, *map(str, options), "--json"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"{module} took longer than {TIMEOUT_S:.0f} s. Try again on a less busy machine.") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-2000:]
        known = _KINDS.get(done.returncode)
        raise known(words) if known else LocalError(f"{module} failed with exit code {done.returncode}: {words}")
    try:
        return msgspec.json.decode(done.stdout, type=kind)
    except msgspec.DecodeError as error:
        raise LocalError(f"{module} said something else than was asked: {error}") from error
