"""``barnraise presets``: what the names of `--preset` stand for."""

from typing import Any

from barnraise.cli.page import Json, print_json, print_table
from barnraise.config import PEER_PRESETS, PRESETS, ModelConfig, PeerConfig
from barnraise.model.shape import num_parameters

SIZE = "size of the model"
SETTINGS = "where a peer listens"


def presets(*, json: Json = False) -> int:
    """List the names that --preset takes: sizes of the model, and kinds of settings of a long-lived peer.

    Everything else is as the configuration's defaults have it. "local" is both: the default model, on loopback alone.

    Args:
        json: Print one object for each, in a list.
    """
    if json:
        print_json([*map(_size, PRESETS), *map(_settings, PEER_PRESETS)])
        return 0
    sizes = [_size_cells(name, model) for name, model in PRESETS.items()]
    print_table(("preset", "layers x width", "parameters", "context"), sizes, numbers=("parameters", "context"))
    print()
    kinds = [(name, str(keys["listen"]), str(keys["bulk_listen"]), _found_by(keys)) for name, keys in _kinds().items()]
    print_table(("preset", "listens on", "bulk plane", "found by"), kinds)
    return 0


def _size_cells(name: str, model: ModelConfig) -> tuple[str, ...]:
    shape = f"{model.num_layers} x {model.hidden_size}"
    return name, shape, f"{num_parameters(model) / 1e6:.1f}M", f"{model.max_seq_len} bytes"


def _kinds() -> dict[str, dict[str, Any]]:
    defaults = {name: PeerConfig.__dataclass_fields__[name].default for name in ("listen", "bulk_listen", "mdns")}
    return {name: {**defaults, **keys} for name, keys in PEER_PRESETS.items()}


def _found_by(keys: dict[str, Any]) -> str:
    return "invitation, and mDNS on the local network" if keys["mdns"] else "invitation"


def _size(name: str) -> dict[str, Any]:
    model = PRESETS[name]
    shape = ("num_layers", "hidden_size", "num_heads", "max_seq_len", "vocab_size")
    return {
        "name": name,
        "kind": SIZE,
        **{key: getattr(model, key) for key in shape},
        "num_parameters": num_parameters(model),
    }


def _settings(name: str) -> dict[str, Any]:
    return {"name": name, "kind": SETTINGS, **_kinds()[name]}
