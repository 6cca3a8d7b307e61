"""Train one model together, on machines that nobody owns all of."""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from barnraise.api.compressor import Compressor as Compressor
    from barnraise.api.configs import NetworkConfig as NetworkConfig
    from barnraise.api.configs import TransformerConfig as TransformerConfig
    from barnraise.api.context import Context as Context
    from barnraise.api.context import discover as discover
    from barnraise.api.context import static_peers as static_peers
    from barnraise.api.coordinator import Coordinator as Coordinator
    from barnraise.api.differential import ParameterReceiver as ParameterReceiver
    from barnraise.api.differential import ParameterSender as ParameterSender
    from barnraise.api.node import Node as Node
    from barnraise.api.swarm import Swarm as Swarm
    from barnraise.api.swarm import join as join
    from barnraise.api.trainer import Trainer as Trainer
    from barnraise.codec.feedback import Residual as Residual

__version__ = "0.1.0"

_WHERE: Final = {
    "Compressor": "barnraise.api.compressor",
    "Context": "barnraise.api.context",
    "Coordinator": "barnraise.api.coordinator",
    "NetworkConfig": "barnraise.api.configs",
    "Node": "barnraise.api.node",
    "ParameterReceiver": "barnraise.api.differential",
    "ParameterSender": "barnraise.api.differential",
    "Residual": "barnraise.codec.feedback",
    "Swarm": "barnraise.api.swarm",
    "Trainer": "barnraise.api.trainer",
    "TransformerConfig": "barnraise.api.configs",
    "discover": "barnraise.api.context",
    "join": "barnraise.api.swarm",
    "static_peers": "barnraise.api.context",
}
"""What a program imports from here, and the module that has it: loaded when it is asked for, torch with it."""


def __getattr__(name: str) -> Any:
    """Load a name of `_WHERE` (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
