"""What a user can set, and where each value comes from: file < environment < flag.

`RunConfig` is the run's genesis: model, data, rules; it is hashed into the run id and the same on every peer.
`PeerConfig` is this machine's own: paths, ports, device; it is never hashed. Both refuse unknown keys.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import blake3
import msgspec

from barnraise import formats
from barnraise.errors import ConfigError
from barnraise.ids import DIGEST_BYTES, PeerId, RunId

FORMAT_VERSION = 1
ENVIRONMENT_PREFIX = "BARNRAISE_RUN_"

_LOCAL = ("data.source", "model.source")
"""Paths on one machine: what lies there is fixed by a digest."""

PEER_TABLE = "peer"
"""The table of a run's file that holds one machine's settings, `PeerConfig`'s keys; no part of the run."""
CONTROL_PORT = 52415
BULK_PORT = 52416
"""Where a long-lived peer listens unless told otherwise; other peers take free ports."""
CLOUD_PORT = 9000
"""Control plane of the preset ``cloud``; the bulk plane's is the next one."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model: the built-in one's shape, or what fixes a model that the run's creator brought along."""

    architecture: Literal["lfm2", "custom"] = "lfm2"
    """``lfm2``: the built-in one, which `transformers` knows under that name; ``custom``: the user's own."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_layers: int = 4
    num_heads: int = 2
    max_seq_len: int = 128
    """Bytes of context; also the length of a training sample."""
    vocab_size: int = 256
    """The byte tokenizer has 256."""
    dropout: float = 0.0
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    layout: str = ""
    """BLAKE3 (hex) of the tensors' names and shapes; "": of the built-in model, which its shape fixes."""
    initial: str = ""
    """BLAKE3 (hex) of the first parameters; "": each peer draws the same ones from the seed."""
    source: str = ""
    """Directory to take the first parameters from, on the creator's machine; not hashed, ``initial`` is."""
    parent: str = ""
    """Checkpoint of another run (hex) that ``initial`` are the parameters of: this run is a fork of it, a fine-tune."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What to train on."""

    kind: Literal["text", "own"] = "text"
    """``text``: the samples are windows of a text that all peers hold; ``own``: each peer has data of its own."""
    source: str = "bundled"
    """``bundled``, or the path of a text file, a directory of them, or a .jsonl file."""
    digest: str = ""
    """BLAKE3 (hex) of the text, training and validation; this, not the path, is what the run id hashes."""
    validation_fraction: float = 0.05
    """Share of the user's own text held out, at its end; the bundled corpus holds out whole plays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerConfig:
    """The optimiser of the local steps; its state never leaves the trainer."""

    optimizer: Literal["muon", "adamw", "sgd"] = "muon"
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
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in forward and backward (autocast); parameters and updates are float32 always."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterConfig:
    """How DiLoCo applies a round's aggregate; the same arithmetic on every peer. Other strategies average plainly."""

    lr: float = 0.9
    momentum: float = 0.3
    momentum_rounds: int = 0
    """The momentum rises linearly from 0 over so many rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundConfig:
    """How long a round is and when it goes on without somebody."""

    rounds: int = 12
    steps: int = 25
    """Inner steps per round (DiLoCo's H)."""
    seconds: float = 0.0
    """A round's training ends after so long, with ``steps`` as the most; 0: always ``steps``."""
    min_peers: int = 1
    """Fewer members than this train nothing: they wait for more."""
    codec: str = "int8"
    """How updates travel, such as ``grid16``, ``int8``, ``int4``, ``int2``, or ``topk:0.016+int2+zstd``."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsensusConfig:
    """How the members agree on what a round came to."""

    protocol: Literal["", "raft", "pbft"] = ""
    """``raft``: members crash and do not lie; ``pbft``: fewer than a third may do anything; "": the profile's own."""
    timeout_s: float = 5.0
    """A leader silent for this long is passed over; doubles with each view."""
    max_committee: int = 100
    """``pbft``: so many of the most senior members vote; the others follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The genesis of a run. Hashed; equal on every peer."""

    profile: Literal["home", "federation", "open"] = "home"
    """``home``: my own machines; ``federation``: named organisations, some of which may lie; ``open``: strangers."""
    strategy: Literal["diloco", "local_sgd", "fedavg", "synchronous"] = "diloco"
    seed: int = 1
    founders: tuple[str, ...] = ()
    """Peer ids of the first members."""
    operators: tuple[str, ...] = ()
    """Peer ids of whose keys sign upgrades, revocations and recoveries, more than half of them; (): the founders'."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)

    @property
    def operator_ids(self) -> tuple[str, ...]:
        """Return whose signatures count as an operator's: none, where there are too many founders to be operators."""
        known = self.operators or self.founders
        return tuple(sorted(known)) if len(known) <= MAX_OPERATORS else ()

    @property
    def protocol(self) -> str:
        """Return the name of the protocol that the members agree by."""
        return self.consensus.protocol or PROTOCOLS[self.profile]

    def canonical_bytes(self) -> bytes:
        """Return the bytes that are hashed: sorted ``(dotted key, text)`` pairs, no path and no float among them."""
        pairs = sorted((key, repr(value)) for key, value in flatten(self).items() if key not in _LOCAL)
        return msgspec.msgpack.encode([FORMAT_VERSION, pairs])

    @property
    def run_id(self) -> RunId:
        """Return BLAKE3 of the canonical bytes."""
        return run_id_of(self.canonical_bytes())


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
    trainer_socket: str = ""
    """Where to wait for a trainer that somebody else starts, instead of starting one."""
    data: str = ""
    """Where this machine keeps the run's text; "": where the run's configuration says."""
    run_id: str = ""
    """The run to join (hex), where its configuration is not here yet: a peer of it is asked."""
    mdns: bool = False
    """Announce this peer on the local network, and look there for others."""
    max_peers: int = 100
    """Most peers to be connected to at once."""
    connection_timeout_s: float = 5.0
    """How long one attempt to reach a peer may take."""
    max_retries: int = 3
    """Attempts to reach a run before a peer that wants to join gives up."""
    profile_rounds: int = 0
    """Write a torch.profiler trace of so many rounds, from the second on."""
    bulk_connections: int = 0
    """Parallel connections per peer, 1 to 8; 0: by the link's bandwidth-delay product."""
    congestion: str = "auto"
    """TCP congestion control of bulk connections, as the system knows it; ``auto``: bbr over long links where there is one."""
    peer_timeout_s: float = 30.0
    """A peer silent for this long counts as gone."""
    keep_checkpoints: int = 2
    """Checkpoints whose tensors stay on disk: so many, the newest; the log stays for ever."""
    keep_every: int = 0
    """... and besides them every one whose round is a multiple of this; 0: no others."""
    encrypt: Literal["", "cluster", "passphrase"] = ""
    """Seal tensors on disk: by a key from the cluster key, or from $BARNRAISE_PASSPHRASE; "": they lie in the open."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


PRESETS: Mapping[str, ModelConfig] = types.MappingProxyType(
    {
        "local": ModelConfig(),
        "small": ModelConfig(hidden_size=256, num_layers=6, num_heads=8, max_seq_len=256),
        "medium": ModelConfig(hidden_size=768, num_layers=12, num_heads=12, max_seq_len=1024),
        "large": ModelConfig(hidden_size=1024, num_layers=24, num_heads=16, max_seq_len=1024),
    }
)

PEER_PRESETS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "local": types.MappingProxyType(
            {"listen": f"/ip4/127.0.0.1/tcp/{CONTROL_PORT}", "bulk_listen": f"127.0.0.1:{BULK_PORT}"}
        ),
        "distributed": types.MappingProxyType(
            {"listen": f"/ip4/lan/tcp/{CONTROL_PORT}", "bulk_listen": f"lan:{BULK_PORT}", "mdns": True}
        ),
        "cloud": types.MappingProxyType(
            {"listen": f"/ip4/lan/tcp/{CLOUD_PORT}", "bulk_listen": f"lan:{CLOUD_PORT + 1}", "bulk_connections": 8}
        ),
        "edge": types.MappingProxyType({"listen": "/ip4/lan/tcp/0", "bulk_listen": "lan:0", "max_peers": 16}),
    }
)
"""Kinds of settings of a long-lived peer. The rest is alike.

``local``: loopback alone. ``distributed``: this machine's address on its network, found there by mDNS. ``cloud``: a server
in a data centre, at a port of its own, with as many parallel connections as there may be over long links; the address is the
machine's own, so one behind a provider's translation must be named in ``listen``. ``edge``: a small machine that dials others
and is dialled by few. There is no traversal of NATs, no relay and no WebSocket yet: of two peers, one must be able to dial
the other. A new run's codec goes with the last two: `COMPRESSION_LEVELS`.
"""

COMPRESSION_LEVELS: Mapping[str, int] = types.MappingProxyType({"cloud": 5, "edge": 9})
"""Presets whose new runs compress more than level 3, the default; `codec.level` says how."""

ELSEWHERE: Mapping[str, str] = types.MappingProxyType(
    {
        "port": "peer.listen",
        "discovery_port": "peer.listen",
        "listen_addresses": "peer.listen",
        "gradient_port": "peer.bulk_listen",
        "bootstrap_nodes": "peer.bootstrap",
        "max_connections": "peer.max_peers",
        "peer_timeout": "peer.peer_timeout_s",
        "timeout": "peer.peer_timeout_s",
        "connection_timeout_ms": "peer.connection_timeout_s",
        "max_retries": "peer.max_retries",
        "max_peers": "peer.max_peers",
        "min_peers": "round.min_peers",
        "protocol": "consensus.protocol",
        "sync_every": "round.steps",
        "sync_frequency": "round.steps",
        "algorithm": "strategy",
        "compression_level": "round.codec",
        "compression_ratio": "round.codec",
        "preset": "model",
    }
)
"""Keys by the names that other programs have for them; the error about an unknown key says ours."""


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
    """Read a run's TOML or YAML file, then let ``BARNRAISE_RUN_<KEY>`` of the environment override it.

    A table `PEER_TABLE` in it is passed over: `load_peer_table` reads it.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value has the wrong type or range.
    """
    values = formats.read(path)
    values.pop(PEER_TABLE, None)
    return run_config(_overridden(values, environment or {}), str(path))


def load_peer_config(path: Path) -> PeerConfig:
    """Read this machine's TOML or YAML file. Raises `ConfigError` like `load_run_config`."""
    return build(PeerConfig, formats.read(path), str(path))


def load_peer_table(path: Path, defaults: Mapping[str, Any]) -> PeerConfig:
    """Read this machine's settings from the table `PEER_TABLE` of a run's file.

    Args:
        path: the file.
        defaults: values of keys that the table lacks, or may lack; the rest is as `PeerConfig` says.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    table = formats.read(path).get(PEER_TABLE, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: {PEER_TABLE} = {table!r} is no table. Write its keys below [{PEER_TABLE}].")
    return build(PeerConfig, {**defaults, **table}, str(path), f"{PEER_TABLE}.")


def run_id_of(canonical: bytes) -> RunId:
    """Return the id of the run with these canonical bytes, whichever version wrote them."""
    return RunId(blake3.blake3(canonical, derive_key_context="barnraise 1 run id").digest())


def parse_run_id(text: str) -> RunId:
    """Read `PeerConfig.run_id`; raises `ConfigError`."""
    try:
        name = bytes.fromhex(text)
    except ValueError:
        name = b""
    if len(name) != DIGEST_BYTES:
        raise ConfigError(f"run_id = {text!r} is not {2 * DIGEST_BYTES} hexadecimal digits. Copy it again.")
    return RunId(name)


def parse_run_config(text: str, where: str) -> RunConfig:
    """Read a run's configuration from TOML that came from elsewhere; ``where`` names its origin in errors.

    Raises:
        ConfigError: it is no TOML, or a key or value in it is wrong.
    """
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from error
    return run_config(values, where)


def run_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """Build and check a `RunConfig` from nested mappings; ``where`` names their origin in errors."""
    config = build(RunConfig, values, where)
    check_ranges(config, where)
    check_heads(config.model, where)
    check_codec(config.round.codec, config.profile, where)
    check_protocol(config, where)
    check_operators(config.operators, where)
    check_parent(config.model, where)
    return config


def save(config: RunConfig | PeerConfig, path: Path) -> None:
    """Write the resolved config, TOML or YAML by the suffix, as `load_run_config` or `load_peer_config` read it."""
    path.write_text(formats.written(dataclasses.asdict(config), path), encoding="utf-8")


def to_toml(config: RunConfig | PeerConfig) -> str:
    """Return the config as TOML: plain keys first, then a table for each nested part."""
    return formats.to_toml(dataclasses.asdict(config))


def build(kind: type[T], values: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """Build a config dataclass from a mapping, refusing what it does not know.

    Raises:
        ConfigError: an unknown key, a wrong type, or a missing key; the message names the key and the choices.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        here = f" It is called {name} here." if (name := ELSEWHERE.get(unknown[0])) else ""
        raise ConfigError(
            f"{where}: unknown key {prefix + unknown[0]!r}.{here} Known here: {', '.join(sorted(hints))}. "
            "Remove or rename it."
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
    if kind is not Path:
        raise NotImplementedError(kind)
    if not isinstance(value, str | Path):
        raise TypeError("a path is text")
    return Path(value).expanduser()


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


def check_ranges(config: RunConfig, where: str) -> None:
    """Check that each number is in its range; raises `ConfigError`."""
    flat = flatten(config)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {key} = {value} is not a number to compute with. Change the value.")
    for key, (low, high) in RANGES.items():
        if not low <= flat[key] <= high:
            raise ConfigError(f"{where}: {key} = {flat[key]} is outside {low} .. {high}. Change the value.")


def check_protocol(config: RunConfig, where: str) -> None:
    """Check that the members can agree by the protocol that was asked for; raises `ConfigError`."""
    if config.protocol == "raft" and config.profile != "home":
        raise ConfigError(
            f"{where}: consensus.protocol = 'raft' believes whatever a leader says, and in profile {config.profile!r} some may "
            "lie. Leave consensus.protocol out, or take profile 'home' for machines that are all your own."
        )


def check_operators(operators: Collection[str], where: str) -> None:
    """Check that each operator is a peer, is named once, and that they are few enough; raises `ConfigError`."""
    if len(operators) > MAX_OPERATORS:
        raise ConfigError(f"{where}: {len(operators)} operators; at most {MAX_OPERATORS} are possible. Name fewer.")
    if len(set(operators)) < len(operators):
        raise ConfigError(f"{where}: an operator is named twice. Name each one once.")
    if not operators:
        return
    from barnraise.identity import ed25519_of  # cryptography, for those who do name operators

    for operator in operators:
        try:
            ed25519_of(PeerId(operator))
        except ValueError as error:
            raise ConfigError(
                f"{where}: operators: {operator!r:.80} is no peer id. barnraise key shows the ids of this machine."
            ) from error


def check_parent(model: ModelConfig, where: str) -> None:
    """Check that a fork names a checkpoint and the parameters that it begins with; raises `ConfigError`."""
    if not model.parent:
        return
    try:
        size = len(bytes.fromhex(model.parent))
    except ValueError:
        size = 0
    if size != DIGEST_BYTES:
        raise ConfigError(
            f"{where}: model.parent = {model.parent!r} is not {2 * DIGEST_BYTES} hexadecimal digits. barnraise show "
            "prints a checkpoint's id."
        )
    if not model.initial:
        raise ConfigError(f"{where}: model.parent without model.initial, the hash of its parameters. Add that one.")


def check_codec(name: str, profile: str, where: str) -> None:
    """Check that updates, which are on the int16 grid, can travel by a codec in a profile; raises `ConfigError`.

    A codec that is not exact decodes to the same integers on the same kind of machine only. Where others decode an update
    again, to check what was made of it, they would accuse honest peers.
    """
    from barnraise.codec.chain import codec_of  # numpy and the compressors, for those who do have a run

    try:
        is_exact = codec_of(name, "int16").is_exact
    except ConfigError as error:
        raise ConfigError(f"{where}: round.codec: {error}") from error
    if not is_exact and profile not in INEXACT_PROFILES:
        raise ConfigError(
            f"{where}: round.codec = {name!r} decodes by float arithmetic, which differs from machine to machine, and in "
            f"profile {profile!r} peers check each other's results. Take another codec, or profile 'home'."
        )


def check_heads(model: ModelConfig, where: str) -> None:
    """Check that attention's heads are alike and can be rotated; raises `ConfigError`, which begins with ``where``."""
    hidden, heads = model.hidden_size, model.num_heads
    if hidden % heads:
        raise ConfigError(
            f"{where}: model.hidden_size = {hidden} is not a multiple of model.num_heads = {heads}. Change one of them."
        )
    if hidden // heads % 2:
        raise ConfigError(
            f"{where}: model.hidden_size = {hidden} over model.num_heads = {heads} is odd, and positions rotate pairs. "
            "Change one of them."
        )


PROTOCOLS: Mapping[str, str] = types.MappingProxyType({"home": "raft", "federation": "pbft", "open": "pbft"})
"""What the members of each profile agree by, unless the configuration says otherwise."""
MAX_OPERATORS = 13
"""More than half of them, and whoever asks, sign an entry of the log: 8 signatures of 3.4 kB are the most that fit."""
INEXACT_PROFILES = frozenset({"home"})
"""Here one peer alone decodes an update, the one that aggregates the shard; the others take its word."""

RANGES: Mapping[str, tuple[float, float]] = {
    "model.hidden_size": (8, 65536),
    "model.num_layers": (1, 1024),
    "model.num_heads": (1, 1024),
    "model.max_seq_len": (8, 1 << 20),
    "model.vocab_size": (256, 1 << 20),
    "model.dropout": (0.0, 0.9),
    "data.validation_fraction": (0.001, 0.5),
    "inner.lr": (0.0, 10.0),
    "inner.muon_lr": (0.0, 10.0),
    "inner.batch_size": (1, 1 << 16),
    "outer.lr": (0.0, 10.0),
    "outer.momentum": (0.0, 0.999),
    "outer.momentum_rounds": (0, 1 << 20),
    "round.rounds": (1, 1 << 20),
    "round.steps": (1, 1 << 20),
    "round.seconds": (0.0, 86400.0),
    "round.min_peers": (1, 1000),
    "round.grid_exponent": (0, 40),
    "round.max_missed": (1, 1000),
    "round.grace_min_s": (0.05, 3600.0),
    "round.grace_factor": (0.0, 100.0),
    "round.exchange_timeout_s": (0.05, 3600.0),
    "consensus.timeout_s": (0.05, 3600.0),
    "consensus.max_committee": (4, 1000),
}
