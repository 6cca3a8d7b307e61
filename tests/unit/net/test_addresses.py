"""Where a peer may be told to listen: one address of this machine, the same for both planes, never all of them."""

import socket
from typing import Any

import pytest

from barnraise.errors import ConfigError
from barnraise.net import addresses
from barnraise.net.addresses import bulk_endpoint, control_endpoint, lan_address, listening


@pytest.mark.parametrize(
    ("host", "control", "bulk"),
    [
        ("127.0.0.1", "/ip4/127.0.0.1/tcp/4001", "127.0.0.1:4002"),
        ("localhost", "/ip4/127.0.0.1/tcp/4001", "127.0.0.1:4002"),
        ("192.0.2.7", "/ip4/192.0.2.7/tcp/4001", "192.0.2.7:4002"),
        ("2001:DB8:0::7", "/ip6/2001:db8::7/tcp/4001", "[2001:db8::7]:4002"),
    ],
)
def test_both_planes_listen_on_the_host_that_was_named(host: str, control: str, bulk: str) -> None:
    assert listening(host, 4001, 4002) == (control, bulk)
    assert bulk_endpoint(bulk, control) == (bulk.rpartition(":")[0].strip("[]"), 4002)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0:0:0:0:0:0:0:0"])  # noqa: S104
def test_every_interface_at_once_is_refused_with_the_alternative(host: str) -> None:
    with pytest.raises(ConfigError, match=r"every interface.*--listen lan"):
        listening(host, 0, 0)
    with pytest.raises(ConfigError, match=r"every interface.*--listen lan"):
        bulk_endpoint(f"{host}:0", "/ip4/192.0.2.7/tcp/0")
    with pytest.raises(ConfigError, match=r"every interface.*--listen lan"):
        bulk_endpoint("192.0.2.7:0", f"/ip{6 if ':' in host else 4}/{host}/tcp/0")


@pytest.mark.parametrize("host", ["", "barn.example.org", "224.0.0.1", "fe80::1%eth0", "1.2.3", "127.0.0.1:80"])
def test_what_is_no_address_of_a_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="is not an"):
        listening(host, 0, 0)


@pytest.mark.parametrize("ports", [(-1, 0), (0, 65536)])
def test_a_port_out_of_range_is_refused(ports: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="between 0 and 65535"):
        listening("127.0.0.1", *ports)


@pytest.mark.parametrize("text", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ":1", "127.0.0.1:²"])
def test_a_bulk_endpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        bulk_endpoint(text, "/ip4/127.0.0.1/tcp/0")


@pytest.mark.parametrize(
    ("bulk", "control"), [("127.0.0.1:0", "/ip4/192.0.2.7/tcp/0"), ("192.0.2.7:0", "/ip4/127.0.0.1/tcp/0")]
)
def test_one_plane_on_loopback_and_the_other_not_is_refused(bulk: str, control: str) -> None:
    with pytest.raises(ConfigError, match="the same host in both"):
        bulk_endpoint(bulk, control)


@pytest.mark.parametrize("port", [0, 65536])
def test_lan_may_stand_for_the_host_of_both(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "lan_address", lambda: "192.0.2.7")
    if port > 65535:
        with pytest.raises(ConfigError, match="65536"):
            control_endpoint(f"/ip4/lan/tcp/{port}")
        return
    assert control_endpoint("/ip4/lan/tcp/52415") == "/ip4/192.0.2.7/tcp/52415"
    assert bulk_endpoint("lan:52416", "/ip4/lan/tcp/52415") == ("192.0.2.7", 52416)
    with pytest.raises(ConfigError, match="the same host in both"):
        bulk_endpoint("127.0.0.1:0", "/ip4/lan/tcp/52415")
    assert control_endpoint("/ip4/127.0.0.1/tcp/0") == "/ip4/127.0.0.1/tcp/0"


class Routes:
    """A socket class whose kernel routes what it is told to: the one thing that differs from machine to machine."""

    def __init__(self, ways: dict[int, str]) -> None:
        self._ways = ways

    def __call__(self, family: int, kind: int) -> Any:
        self._family = family
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def connect(self, address: tuple[str, int]) -> None:
        if self._family not in self._ways:
            raise OSError(101, "Network is unreachable")

    def getsockname(self) -> tuple[str, int]:
        return self._ways[self._family], 40000


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ({socket.AF_INET: "192.0.2.7", socket.AF_INET6: "2001:db8::7"}, "192.0.2.7"),
        ({socket.AF_INET6: "2001:db8::7"}, "2001:db8::7"),
        ({socket.AF_INET: "127.0.0.1", socket.AF_INET6: "2001:db8::7"}, "2001:db8::7"),
    ],
)
def test_the_lan_address_is_where_the_route_begins(
    ways: dict[int, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses.socket, "socket", Routes(ways))
    assert lan_address() == expected
    assert expected in listening("lan", 0, 0)[0]


@pytest.mark.parametrize("ways", [{}, {socket.AF_INET: "127.0.0.1"}, {socket.AF_INET6: "fe80::1"}])
def test_a_machine_without_a_route_has_no_lan_address(ways: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses.socket, "socket", Routes(ways))
    with pytest.raises(ConfigError, match="no route to others"):
        listening("lan", 0, 0)
