"""Which rules of a run may change, what a change makes of them, and whose signatures it takes; pure, checks no signature."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, assert_never

import blake3

from barnraise import config as configuration
from barnraise.config import RunConfig
from barnraise.errors import ConfigError, LocalError
from barnraise.ids import Digest
from barnraise.swarm.records import NEWEST, RULES_VERSION, Change, Readmit, Revoke, Rotate, Upgrade

AMENDABLE: Final = (
    "consensus.timeout_s",
    "outer.lr",
    "outer.momentum",
    "outer.momentum_rounds",
    "round.exchange_timeout_s",
    "round.grace_factor",
    "round.grace_min_s",
    "round.max_missed",
    "round.min_peers",
    "round.rounds",
    "round.seconds",
    "round.steps",
)
"""What every peer looks up in the agreed state, and nowhere else. Not here: what the run is (model, data, founders,
operators, profile, protocol), and what a peer or its trainer sets up once, from the run's file (codec, inner optimiser)."""


def check_upgrade(config: RunConfig, version: int, upgrade: Upgrade) -> None:
    """Raise `LocalError` where rules and version of records cannot become what an upgrade says."""
    if upgrade.version > NEWEST:
        raise LocalError(
            f"the members agreed on records of version {upgrade.version}, and this barnraise reads up to {NEWEST}. "
            "Install a newer one; it goes on where this one stopped."
        )
    if not version <= upgrade.version:
        raise LocalError(f"records of version {upgrade.version} cannot follow those of version {version}")
    if upgrade.version == version and not upgrade.rules:
        raise LocalError("an upgrade that changes nothing")
    if upgrade.rules and upgrade.version < RULES_VERSION:
        raise LocalError(f"rules change from records of version {RULES_VERSION} on: those name the rules in force")
    keys = [key for key, _ in upgrade.rules]
    if keys != sorted(set(keys)):
        raise LocalError("an upgrade's rules are not in order, or one is named twice")
    amended(config, upgrade.rules)


def amended(config: RunConfig, rules: Sequence[tuple[str, str]]) -> RunConfig:
    """Return a configuration with some rules changed.

    Args:
        config: The rules in force.
        rules: ``(dotted key, value as text)``.

    Raises:
        LocalError: a key may not change, or its value cannot be.
    """
    tables: dict[str, dict[str, str]] = {}
    changed: dict[str, Any] = {}
    for key, value in rules:
        if key not in AMENDABLE:
            raise LocalError(f"{key} is fixed for a run; these may change: {', '.join(AMENDABLE)}")
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    try:
        for table, values in tables.items():
            changed[table] = _with(getattr(config, table), values)
        after = replace(config, **changed)
        configuration.check_ranges(after, "an upgrade")
    except ConfigError as error:
        raise LocalError(str(error)) from error
    return after


def rules_root(config: RunConfig) -> Digest:
    """Return the hash of the rules in force, by which a checkpoint names them."""
    return Digest(blake3.blake3(config.canonical_bytes(), derive_key_context="barnraise 1 rules").digest())


def signers_wanted(change: Change) -> tuple[frozenset[str], bool]:
    """Return whose signatures a change takes, and whether it takes those of more than half of the operators as well.

    Where a key is given up, its own signature is enough, or the operators' are: `is_backed`.
    """
    match change:
        case Upgrade():
            return frozenset(), True
        case Rotate():
            return frozenset((change.old, change.new)), False
        case Revoke():
            return frozenset((change.peer,)), False
        case Readmit():
            return frozenset((change.new,)), True
        case _:
            assert_never(change)


def may_sign(operators: Collection[str], change: Change, signer: str) -> bool:
    """Tell whether somebody's signature counts for a change."""
    own, takes_operators = signers_wanted(change)
    return signer in own or ((takes_operators or isinstance(change, Revoke)) and signer in operators)


def is_backed(operators: Collection[str], change: Change, signers: Collection[str]) -> bool:
    """Tell whether those who signed are enough for a change."""
    own, takes_operators = signers_wanted(change)
    majority = is_majority(operators, signers)
    if isinstance(change, Revoke):
        return majority or own <= set(signers)
    return own <= set(signers) and (majority or not takes_operators)


def is_majority(operators: Collection[str], signers: Collection[str]) -> bool:
    """Tell whether more than half of the operators are among those who signed; of no operators nobody is."""
    return 2 * len(set(operators).intersection(signers)) > len(operators)


def _with(table: object, values: Mapping[str, str]) -> object:
    """Return a table of the configuration with some values read from text."""
    kind = type(table)
    known = {name: getattr(table, name) for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    return configuration.build(kind, {**known, **values}, "an upgrade", "")
