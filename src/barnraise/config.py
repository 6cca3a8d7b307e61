"""What a user can set, and where each value comes from: file < environment < flag.

`RunConfig` is the run's genesis: model, data, rules; it is hashed into the run id and the same on every peer.
`PeerConfig` is this machine's own: paths, ports, device; it is never hashed. Both refuse unknown keys.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import blake3
import msgspec

from barnraise.errors import ConfigError
from barnraise.ids import RunId

FORMAT_VERSION = 1
ENVIRONMENT_PREFIX = "BARNRAISE_RUN_"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The default transformer's shape."""

    hidden_size: int = 128
    """Width of the residual stream."""
    num_layers: int = 4
    num_heads: int = 2
    max_seq_len: int = 128
    """Bytes of context; also the length of a training sample."""
    vocab_size: int = 256
    """The byte tokenizer has 256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The text to train on."""

    source: str = "bundled"
    """``bundled``, or the path of a text file, a directory of them, or a .jsonl file."""
    digest: str = ""
    """BLAKE3 (hex) of the text, training and validation; this, not the path, is what the run id hashes."""
    validation_fraction: float = 0.05
    """Share of the user's own text held out, at its end; the bundled corpus holds out whole plays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerConfig:
    """The optimiser of the local steps; its state never leaves the trainer."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """``muon``: Muon on the matrices inside blocks, AdamW on embeddings and head."""
    lr: float = 0.01
    """Learning rate of AdamW."""
    muon_lr: float = 0.02
    muon_momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 leaves them alone."""
    warmup_steps: int = 20
    final_lr_fraction: float = 0.1
    """The cosine ends at this share of the learning rate."""
    batch_size: int = 8
    """Samples per step and peer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterConfig:
    """The optimiser that applies a round's aggregate; the same arithmetic on every peer."""

    optimizer: Literal["nesterov", "average"] = "nesterov"
    lr: float = 0.9
    momentum: float = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundConfig:
    """How long a round is and when it goes on without somebody."""

    rounds: int = 12
    steps: int = 25
    """Inner steps per round (DiLoCo's H)."""
    grid_exponent: int = 16
    """The first round's updates are rounded to multiples of 2**-grid_exponent; later rounds adapt."""
    max_missed: int = 3
    """A member absent from this many cuts in a row leaves the member set."""
    grace_factor: float = 1.0
    """The coordinator waits for late commitments this many times as long as it trained itself, ..."""
    grace_min_s: float = 10.0
    """... but at least this long."""
    exchange_timeout_s: float = 30.0
    """An exchange that takes longer is voided and tried again without those who kept it waiting."""
    agree_timeout_s: float = 5.0
    """A coordinator silent for this long is passed over; doubles with each view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The genesis of a run. Hashed; equal on every peer."""

    profile: Literal["home"] = "home"
    seed: int = 1
    founders: tuple[str, ...] = ()
    """Peer ids of the first members."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    round: RoundConfig = field(default_factory=RoundConfig)

    def canonical_bytes(self) -> bytes:
        """Return the bytes that are hashed: sorted ``(dotted key, text)`` pairs, no path and no float among them."""
        pairs = sorted((key, repr(value)) for key, value in flatten(self).items() if key != "data.source")
        return msgspec.msgpack.encode([FORMAT_VERSION, pairs])

    @property
    def run_id(self) -> RunId:
        """Return BLAKE3 of the canonical bytes."""
        return RunId(blake3.blake3(self.canonical_bytes(), derive_key_context="barnraise 1 run id").digest())


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerConfig:
    """This machine's own settings. Never hashed, never sent."""

    data_dir: Path
    """Where this peer keeps its key, log, blobs and snapshots."""
    cluster_key_file: Path
    """The secret that admits peers to this cluster."""
    listen: str = "/ip4/127.0.0.1/tcp/0"
    """Control plane; loopback unless you say otherwise."""
    bulk_listen: str = "127.0.0.1:0"
    """Bulk plane, host:port; port 0 picks a free one."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddresses of peers to find the others through."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``mps``, or ``auto``."""
    threads: int = 1
    """Threads of the trainer's tensor library."""
    trainer: tuple[str, ...] = ()
    """Command of the trainer process; empty: the built-in one."""
    bulk_connections: int = 2
    """Parallel connections per peer."""
    peer_timeout_s: float = 30.0
    """A peer silent for this long counts as gone."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


PRESETS: Mapping[str, ModelConfig] = types.MappingProxyType(
    {
        "local": ModelConfig(),
        "small": ModelConfig(hidden_size=256, num_layers=6, num_heads=8, max_seq_len=256),
        "medium": ModelConfig(hidden_size=768, num_layers=12, num_heads=12, max_seq_len=1024),
        "large": ModelConfig(hidden_size=1024, num_layers=24, num_heads=16, max_seq_len=1024),
    }
)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return ``{"model.hidden_size": 128, ...}`` for a tree of config dataclasses."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{item.name}.")
        else:
            flat[prefix + item.name] = value
    return flat


def load_run_config(path: Path, environment: Mapping[str, str] | None = None) -> RunConfig:
    """Read a run's TOML file, then let ``BARNRAISE_RUN_<KEY>`` of the environment override it.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value has the wrong type or range.
    """
    return run_config(_overridden(_read(path), environment or {}), str(path))


def load_peer_config(path: Path) -> PeerConfig:
    """Read this machine's TOML file. Raises `ConfigError` like `load_run_config`."""
    return build(PeerConfig, _read(path), str(path))


def run_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Build and check a `RunConfig` from nested mappings; ``where`` names their origin in errors."""
    config = build(RunConfig, values, where)
    _check_ranges(config, where)
    return config


def save(config: RunConfig | PeerConfig, path: Path) -> None:
    """Write the resolved config as TOML that `load_run_config` or `load_peer_config` reads back unchanged."""
    path.write_text(to_toml(config), encoding="utf-8")


def to_toml(config: object) -> str:
    """Return the config as TOML: plain keys first, then a table for each nested part."""
    plain: list[str] = []
    tables: list[str] = []
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            tables.append(f"\n[{item.name}]\n{to_toml(value)}")
        else:
            plain.append(f"{item.name} = {_toml_value(value)}\n")
    return "".join(plain + tables)


def build(kind: type[T], values: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """Build a config dataclass from a mapping, refusing what it does not know.

    Raises:
        ConfigError: an unknown key, a wrong type, or a missing key; the message names the key and the choices.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {prefix + unknown[0]!r}. Known here: {', '.join(sorted(hints))}. Remove or rename it."
        )
    known: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            known[name] = build(typing.cast(type[Any], hint), value, where, f"{prefix}{name}.")
        else:
            known[name] = _convert(value, hint, f"{where}: {prefix}{name}")
    try:
        return kind(**known)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}. Add the missing key.") from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, hint, strict=not isinstance(value, str) or hint is str, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where} = {value!r}: {error}. Change the value.") from error


def _path(kind: type[Any], value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a readable TOML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason}). Name a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}. Mend that line.") from error


def _overridden(values: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return ``values`` with ``BARNRAISE_RUN_MODEL__HIDDEN_SIZE=256`` and the like laid over them."""
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        *tables, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        target = values
        for table in tables:
            target = target.setdefault(table, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{variable}: {table} is a value and has no keys. Remove or rename the variable.")
        target[key] = text
    return values


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case _:
            return msgspec.json.encode(str(value)).decode()


def _check_ranges(config: RunConfig, where: str) -> None:
    flat = flatten(config)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {key} = {value} is not a number to compute with. Change the value.")
    for key, (low, high) in _RANGES.items():
        if not low <= flat[key] <= high:
            raise ConfigError(f"{where}: {key} = {flat[key]} is outside {low} .. {high}. Change the value.")
    model = config.model
    if model.hidden_size % model.num_heads:
        raise ConfigError(
            f"{where}: model.hidden_size = {model.hidden_size} is not a multiple of model.num_heads = "
            f"{model.num_heads}. Change one of them."
        )


_RANGES: Mapping[str, tuple[float, float]] = {
    "model.hidden_size": (8, 65536),
    "model.num_layers": (1, 1024),
    "model.num_heads": (1, 1024),
    "model.max_seq_len": (8, 1 << 20),
    "model.vocab_size": (256, 1 << 20),
    "data.validation_fraction": (0.001, 0.5),
    "inner.lr": (0.0, 10.0),
    "inner.muon_lr": (0.0, 10.0),
    "inner.batch_size": (1, 1 << 16),
    "outer.lr": (0.0, 10.0),
    "outer.momentum": (0.0, 0.999),
    "round.rounds": (1, 1 << 20),
    "round.steps": (1, 1 << 20),
    "round.grid_exponent": (0, 40),
    "round.max_missed": (1, 1000),
    "round.grace_min_s": (0.05, 3600.0),
    "round.grace_factor": (0.0, 100.0),
    "round.exchange_timeout_s": (0.05, 3600.0),
    "round.agree_timeout_s": (0.05, 3600.0),
}
