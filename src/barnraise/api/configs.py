"""What a node is made of, as two small objects: how it meets others, and the shape of the built-in model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from barnraise.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """How a node meets the others. Every field is one of `PeerConfig`'s or of the run's, under the same name.

    >>> network = NetworkConfig(min_peers=2, listen="/ip4/lan/tcp/52416")
    >>> sorted(network.peer_settings().items())[2]
    ('listen', '/ip4/lan/tcp/52416')
    """

    run: str | None = None
    """An invitation, or the file that holds one; None: found a run, unless ``BARNRAISE_JOIN`` holds an invitation."""
    directory: str | Path | None = None
    """Where to keep the run; None: a new directory below ``runs``. Where one was begun, it is gone on with."""
    min_peers: int = 1
    """A founder's: train only while so many are there."""
    strategy: str = "diloco"
    """A founder's: ``diloco``, ``local_sgd``, ``fedavg`` or ``synchronous``."""
    listen: str = "/ip4/127.0.0.1/tcp/0"
    """Control plane; loopback unless you say otherwise."""
    bulk_listen: str = "127.0.0.1:0"
    """Where tensors come in, host:port."""
    mdns: bool = False
    """Announce this node on the local network, and look there for others."""
    max_peers: int = 100
    """Most peers to be connected to at once."""
    peer_timeout_s: float = 30.0
    """A peer silent for this long counts as gone."""
    connection_timeout_s: float = 5.0
    """How long one attempt to reach a peer may take."""
    max_retries: int = 3
    """Attempts to reach the run before joining is given up."""

    def peer_settings(self) -> dict[str, Any]:
        """Return the fields of `barnraise.config.PeerConfig` that these are."""
        return {
            "listen": self.listen,
            "bulk_listen": self.bulk_listen,
            "mdns": self.mdns,
            "max_peers": self.max_peers,
            "peer_timeout_s": self.peer_timeout_s,
            "connection_timeout_s": self.connection_timeout_s,
            "max_retries": self.max_retries,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """The shape of the built-in model, a causal language model over ``vocab_size`` symbols (`barnraise.model.lfm2`).

    >>> TransformerConfig(hidden_size=64, num_heads=2).model_config().hidden_size
    64
    """

    vocab_size: int = 256
    """256 or more: the default tokens are bytes."""
    max_seq_len: int = 128
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 2
    dropout: float = 0.0

    def model_config(self) -> ModelConfig:
        """Return it as the run's configuration has it."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            max_seq_len=self.max_seq_len,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            dropout=self.dropout,
        )
