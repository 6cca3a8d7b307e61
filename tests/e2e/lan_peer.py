"""One peer of `test_lan`: the two planes on an address of a real interface, or found by mDNS; no run, no trainer.

It reads one JSON object from its arguments, prints where it listens, then whom it met and what came over the bulk
plane, and leaves when its stdin ends.
"""

import ipaddress
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import structlog
import trio

from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId, RunId
from barnraise.net.addresses import bulk_endpoint, listening
from barnraise.net.announcement import Announcement, cluster_tag
from barnraise.net.bulk import open_bulk
from barnraise.net.discovery import announce, look
from barnraise.net.host import open_network
from barnraise.net.seam import PeerUp

KEY = ClusterKey(bytes(32))
RUN = RunId(bytes(range(32)))
PAYLOAD = bytes(range(256)) * 12_000


def say(**fields: Any) -> None:
    """Tell the test something."""
    print(json.dumps(fields), flush=True)


async def main(number: int, host: str, bootstrap: list[str], others: int, find_on: str) -> None:
    """Be a peer until stdin ends."""
    identity = Identity(bytes([number]) * 32, bytes(32))
    listen, bulk_listen = listening(host, 0, 0)
    bulk_host, bulk_port = bulk_endpoint(bulk_listen, listen)
    bodies: dict[PeerId, bytearray] = {}
    came: list[PeerId] = []

    def sink(sender: PeerId, header: bytes, size: int) -> memoryview:
        return memoryview(bodies.setdefault(sender, bytearray(size)))

    if find_on:
        with trio.fail_after(60):
            while not bootstrap:
                bootstrap = [seen.address for seen in await look(cluster_tag(KEY), 1.5, find_on)]
    async with AsyncExitStack() as stack:
        bulk = await stack.enter_async_context(
            open_bulk(
                identity, KEY, sink=sink, arrived=lambda sender, _: came.append(sender), host=bulk_host, port=bulk_port
            )
        )
        network = await stack.enter_async_context(
            open_network(
                identity, KEY, run=RUN, hello=msgspec.msgpack.encode(bulk.address), listen=listen, bootstrap=bootstrap
            )
        )
        ours = Announcement(
            peer=identity.peer_id, run=RUN, address=network.addresses[0], cluster_tag=cluster_tag(KEY), label="lan"
        )
        await stack.enter_async_context(announce(ours, lambda seen: network.meet([seen.place])))
        say(address=network.addresses[0], bulk=bulk.address[0])
        met: dict[PeerId, str] = {}
        async for event in network.events:
            if isinstance(event, PeerUp):
                where, port = msgspec.msgpack.decode(event.hello, type=tuple[str, int])
                met[event.peer] = str(ipaddress.ip_address(where))
                bulk.learn(event.peer, where, port)
            if len(met) == others:
                break
        for peer in met:
            await bulk.send(peer, b"", [memoryview(PAYLOAD)])
        while len(came) < others:  # noqa: ASYNC110  # it comes in worker threads, which set no trio event
            await trio.sleep(0.05)
        say(met=met, whole=[peer for peer, body in bodies.items() if body == PAYLOAD])
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    settings = json.loads(sys.argv[1])
    trio.run(main, settings["number"], settings["host"], settings["bootstrap"], settings["others"], settings["find_on"])
