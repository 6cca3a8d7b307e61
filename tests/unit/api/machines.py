"""Several machines' work in one process: a thread each, and addresses on loopback that were free a moment ago."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def free_addresses(count: int) -> list[str]:
    """Return ``address:port`` of as many ports that nothing listens on."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]
    for one in taken:
        one.close()
    return addresses


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Do several machines' work, each in a thread."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]
