"""Where a peer of the user's own loop keeps its run: founds one, joins one, or finds the one that was begun there.

Only files are made here; the peer's process reads them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config, run_config, save
from barnraise.errors import ConfigError
from barnraise.runs import directory as rundir
from barnraise.runs import invitation

MAX_ROUNDS: Final = 1 << 20
"""Of a run that goes on for as long as somebody trains: twelve days at a round a second."""
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A peer's files. The run's own is not there yet when it is joined: the peer fetches and writes it."""

    path: Path
    run_file: Path
    settings: PeerConfig
    founded: bool
    """We founded the run just now: nobody else can be in it."""

    def write_settings(self) -> Path:
        """Save the peer's configuration; return its file."""
        file = self.settings.data_dir / rundir.PEER_FILE
        save(self.settings, file)
        return file

    @property
    def config(self) -> RunConfig:
        """Return the run's configuration; raises `ConfigError` while it is not there."""
        return load_run_config(self.run_file)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a founder may say of its run; the rest is the configuration's defaults."""

    sync_every: int | str
    rounds: int | None
    batch_size: int
    min_peers: int
    strategy: str
    overrides: Mapping[str, Any]
    """Nested, like a configuration file; laid over the rest."""


def found(rules: Rules, *, layout: str, initial: str, path: Path | None, now: datetime) -> Place:
    """Found a run with one peer, this one.

    Args:
        rules: how it shall be trained.
        layout: digest of the model's layout.
        initial: hash (hex) of the first parameters.
        path: the directory to make; None: one below ``runs/``.
        now: the local time, for that one's name.

    Raises:
        ConfigError: a rule is out of range, or the directory cannot be made.
    """
    values: dict[str, Any] = {
        "strategy": rules.strategy,
        "data": {"kind": "own"},
        "model": {"architecture": "custom", "layout": layout, "initial": initial},
        "inner": {"batch_size": rules.batch_size},
        "round": {
            "rounds": MAX_ROUNDS if rules.rounds is None else rules.rounds,
            "min_peers": rules.min_peers,
            **interval(rules.sync_every),
        },
    }
    made = rundir.create(run_config(_laid_over(values, rules.overrides), "barnraise.join"), 1, path, now)
    return Place(path=made.path, run_file=made.run_file, settings=made.peer_config(0), founded=True)


def join(text: str, *, path: Path | None, now: datetime) -> Place:
    """Make a peer's place for a run that goes on elsewhere.

    Args:
        text: the invitation, or the path of a file that holds it.
        path: the directory to make; None: one below ``runs/``.
        now: the local time, for that one's name.

    Raises:
        ConfigError: it is no invitation, or the directory cannot be made.
    """
    made = rundir.join(invitation.parse(text), path, now)
    return Place(path=made.path, run_file=made.run_file, settings=made.peer_config(0), founded=False)


def find(path: Path) -> Place | None:
    """Return the peer that has its place in a directory already; None: there is none."""
    file = path.absolute() / "peer-0" / rundir.PEER_FILE
    if not file.exists():
        return None
    settings = load_peer_config(file)
    return Place(path=path.absolute(), run_file=path.absolute() / rundir.RUN_FILE, settings=settings, founded=False)


def interval(sync_every: int | str) -> dict[str, float]:
    """Return the round's length as configuration: so many steps, or a time such as ``30s`` or ``2m``.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(sync_every, int):
        return {"steps": sync_every}
    unit = sync_every.lstrip("0123456789. ")
    number = sync_every.removesuffix(unit).strip()
    if unit not in _UNITS or not number.replace(".", "", 1).isdecimal():
        raise ConfigError(
            f"sync_every = {sync_every!r} is no time. Give a number of steps, or a time such as '30s' or '2m'."
        )
    return {"seconds": float(number) * _UNITS[unit], "steps": MAX_ROUNDS}


def _laid_over(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _laid_over(below, value) if nested else value  # type: ignore[arg-type]  # `nested` says so
    return merged


def with_settings(place: Place, **changes: Any) -> Place:
    """Return the place with some of the peer's settings changed."""
    return dataclasses.replace(place, settings=dataclasses.replace(place.settings, **changes))
