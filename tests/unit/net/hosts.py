"""Hosts of our own over libp2p, and waiting for what they do: for tests of the control plane."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from barnraise.identity import ClusterKey, Identity
from barnraise.net.host import Libp2pNetwork, open_network
from barnraise.net.seam import Network, NetworkEvent

PATIENCE_S: Final = 20
KEY: Final = ClusterKey(bytes(32))


@asynccontextmanager
async def network(identity: Identity, *, key: ClusterKey = KEY, **options: Any) -> AsyncIterator[Libp2pNetwork]:
    options = {"run": b"run", "rng": random.Random(1), **options}
    async with open_network(identity, key, **options) as opened:
        yield opened


async def next_event(network: Network) -> NetworkEvent:
    with trio.fail_after(PATIENCE_S):
        return await network.events.receive()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await trio.sleep(0.01)
