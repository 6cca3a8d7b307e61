"""``barnraise bench``: how fast the user's own machines add up tensors, by each codec and schedule; here or among them."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from cyclopts import Parameter

from barnraise.cli.page import Json, print_json, print_table
from barnraise.errors import Aborted, BarnraiseError, ConfigError, LocalError, Unavailable
from barnraise.identity import ClusterKey
from barnraise.observe.measurements import Failed, Joined, Line, Measured, Opened, Orders, Planned

MEASURER: Final = "barnraise.api.bench"
"""Runs in processes of its own: what the user types first loads no libp2p."""
NAMED_AGAIN: Final = Parameter(negative="", show_default=False)
END_S: Final = 10.0
_ERRORS: Final[dict[int, type[BarnraiseError]]] = {kind.exit_code: kind for kind in (ConfigError, Unavailable, Aborted)}


@dataclass(kw_only=True)
class Findings:
    """What the processes said so far."""

    world_size: int = 0
    measured: list[Measured] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each kind of collective."""
        return [_row(found, self.world_size) for found in self.measured]


def bench(
    what: Literal["allreduce"],
    /,
    *,
    peers: int = 4,
    address: Annotated[tuple[str, ...], NAMED_AGAIN] = (),
    rank: int | None = None,
    join: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    bootstrap: Annotated[tuple[str, ...], NAMED_AGAIN] = (),
    listen: str = "lan:0",
    name: str = "bench",
    cluster_key: Annotated[Path | None, Parameter(show_default=False)] = None,
    mb: str = "1,25,100",
    codec: str = "fp32,bf16,int8",
    schedule: str = "auto,ring,shards",
    repetitions: int = 7,
    plot: Annotated[Path | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """Measure how fast peers add up tensors: on this machine, or among several, by the same command on each.

    Without `--address` and `--join` it raises its peers here, on loopback. Times are of the slowest peer, from the moment
    at which all have come. The bus bandwidth is what a ring of this speed would send over each link: it can be compared
    with the link's own, whatever the number of peers.

    Args:
        what: What to measure: allreduce.
        peers: How many peers: to raise here, or to wait for with `--join`.
        address: host:port of a peer, once for each of them, by rank; the same list on every machine.
        rank: Which of the addresses is this machine's, from 0.
        join: Find the other machines on the local network; each runs this with the same number of peers.
        bootstrap: Multiaddress of a peer to ask for the others, where the local network does not reach them.
        listen: address:port of this machine with `--join`; lan:0 is its address on its network, and a free port.
        name: Machines of one name belong together.
        cluster_key: File of the cluster's key, the same on every machine. Default: the key of this user's runs.
        mb: Sizes in 10^6 bytes of float32, with commas.
        codec: What travels, with commas: fp32, bf16, int8, int4, int2, chains such as topk:0.01+int8+zstd, or a level such
            as auto:5.
        schedule: Who sends what to whom, with commas; auto is what the planner chooses.
        repetitions: Turns of each kind that count; two more warm up.
        plot: Draw times over sizes into this file, .svg or .png.
        json: Print one object.
    """
    del what
    orders = Orders(
        sizes_mb=_sizes(mb),
        codecs=_words("--codec", codec),
        schedules=_words("--schedule", schedule),
        repetitions=_at_least_one("--repetitions", repetitions),
        num_peers=_at_least_one("--peers", peers),
        addresses=address,
        bootstrap=bootstrap,
        listen=listen,
        name=name,
        cluster_key=None if cluster_key is None else ClusterKey.load(cluster_key).to_text(),
    )
    draw = None if plot is None else _drawing(plot)
    every = _orders_of_all(orders, rank, is_joining=join)
    _tell(_intention(orders, every), json=json)
    findings = Findings()
    for line in _raised(every):
        _hear(line, findings, json=json)
    if json:
        planned = [_planned_row(line) for line in findings.planned]
        print_json({"world_size": findings.world_size, "measured": findings.rows(), "planned": planned})
    else:
        _print(findings)
    if draw is not None and plot is not None:
        draw(findings.rows(), plot)
        _tell(f"drawn: {plot}", json=json)
    return 0


def _orders_of_all(orders: Orders, rank: int | None, *, is_joining: bool) -> list[Orders]:
    """Return the orders of each process to start here.

    Raises:
        ConfigError: it is not clear who takes part.
    """
    if orders.addresses and is_joining:
        raise ConfigError("--address is a list of all machines, --join looks for them. Give one of the two.")
    if orders.addresses:
        if rank is None:
            raise ConfigError(
                f"--rank: which of the {len(orders.addresses)} addresses is this machine's? Count from 0."
            )
        return [msgspec.structs.replace(orders, rank=rank, num_peers=len(orders.addresses))]
    if rank is not None:
        raise ConfigError("--rank goes with --address host:port, once for each machine. Give both or none.")
    if is_joining:
        return [orders]
    key = ClusterKey.generate().to_text()
    here = tuple(f"127.0.0.1:{port}" for port in _free_ports(orders.num_peers))
    return [msgspec.structs.replace(orders, rank=index, addresses=here, cluster_key=key) for index in range(len(here))]


def _intention(orders: Orders, every: Sequence[Orders]) -> str:
    sizes = ", ".join(f"{size:g}" for size in orders.sizes_mb)
    kinds = f"{sizes} MB; {', '.join(orders.codecs)}; {', '.join(orders.schedules)}; {orders.repetitions} turns of each"
    if every[0].addresses and not orders.addresses:
        return f"raising {len(every)} peers on this machine: {kinds}"
    if orders.addresses:
        return f"rank {every[0].rank} of {len(orders.addresses)}, waiting for the others: {kinds}"
    return f"looking for {orders.num_peers - 1} other peers on this network: {kinds}"


def _raised(every: Sequence[Orders]) -> Iterator[Line]:
    """Start a process for each of the orders; yield what the first one says.

    Raises:
        BarnraiseError: one could not do it.
    """
    command = [sys.executable, "-P", "-m", MEASURER]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for orders in every:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL if started else subprocess.PIPE}
            process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
            started.append(process)
            with contextlib.suppress(BrokenPipeError):  # its own words follow
                process.stdin.write(msgspec.json.encode(orders) + b"\n")
                process.stdin.close()
        yield from _lines(started[0])
        for process in started:
            process.wait(END_S)
    finally:
        for process in started:
            process.kill()
            process.wait()


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[Line]:
    assert process.stdout is not None
    with process.stdout as output:
        for text in output:
            line: Line = msgspec.json.decode(text, type=Line)
            if isinstance(line, Failed):
                raise _ERRORS.get(line.exit_code, LocalError)(line.why)
            yield line
    if process.wait(END_S):
        raise LocalError(f"{MEASURER} ended with code {process.returncode}; its own words are above")


def _hear(line: Line, findings: Findings, *, json: bool) -> None:
    match line:
        case Joined():
            findings.world_size = line.world_size
            _tell(f"rank {line.rank} of {line.world_size}: all are there", json=json)
        case Measured():
            findings.measured.append(line)
            if sys.stderr.isatty():
                print(f"{line.size_mb:g} MB {line.codec} {line.schedule}: {1e3 * line.wall_s:.1f} ms", file=sys.stderr)
        case Planned():
            findings.planned.append(line)
        case Opened() | Failed():
            pass


def _row(found: Measured, world_size: int) -> dict[str, Any]:
    """Return what a table and a program want to know."""
    speed = found.size_mb / found.wall_s
    return {
        "mb": found.size_mb,
        "codec": found.codec,
        "schedule": found.schedule,
        "median_ms": round(1e3 * found.wall_s, 2),
        "mb_per_s": round(speed, 1),
        "bus_mb_per_s": round(speed * 2 * (world_size - 1) / world_size, 1),
        "cpu_ms": round(1e3 * found.cpu_s, 1),
        "turns_ms": [round(1e3 * turn_s, 2) for turn_s in found.turns_s],
    }


def _print(findings: Findings) -> None:
    titles = ("MB", "codec", "schedule", "median ms", "MB/s", "bus MB/s", "CPU ms")
    rows = [
        (
            f"{row['mb']:g}",
            row["codec"],
            row["schedule"],
            *(f"{row[key]:.1f}" for key in ("median_ms", "mb_per_s", "bus_mb_per_s", "cpu_ms")),
        )
        for row in findings.rows()
    ]
    print_table(titles, rows, numbers=("MB", "median ms", "MB/s", "bus MB/s", "CPU ms"))

    if findings.planned:
        print("\nBy the links as they were measured meanwhile, the planner would choose:")
    for line in findings.planned:
        print(f"  {line.size_mb:g} MB {line.codec}: {line.schedule}. {'; '.join(line.reasons)}")


def _planned_row(line: Planned) -> dict[str, Any]:
    return {
        "mb": line.size_mb,
        "codec": line.codec,
        "schedule": line.schedule,
        "predicted_ms": round(1e3 * line.predicted_s, 2),
        "reasons": list(line.reasons),
    }


def _tell(text: str, *, json: bool) -> None:
    """Say how it goes; programs that read the one object are not told."""
    if not json:
        print(text, flush=True)


def _sizes(text: str) -> tuple[float, ...]:
    try:
        sizes = tuple(float(word) for word in _words("--mb", text))
    except ValueError:
        raise ConfigError(f"--mb {text}: sizes in 10^6 bytes with commas, such as 1,25,100") from None
    for size in sizes:
        if not 1e-5 <= size <= 1e5:
            raise ConfigError(f"--mb {size:g}: sizes are 0.00001 to 100000")
    return sizes


def _words(option: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise ConfigError(f"{option} {text!r} names nothing. Write one or more, with commas.")
    return words


def _at_least_one(option: str, number: int) -> int:
    if not 1 <= number <= 64:
        raise ConfigError(f"{option} {number}: 1 to 64")
    return number


def _free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in taken]


def _drawing(path: Path) -> Any:
    """Return what draws, before minutes are spent on what is to be drawn."""
    from barnraise.cli import curves

    curves.check(path)
    return curves.draw
