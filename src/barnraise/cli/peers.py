"""``barnraise peers``: whom one peer of this machine takes for a member, is connected to, how far away they are."""

import time
from typing import Annotated, Any

from cyclopts import Parameter

from barnraise.cli import planning
from barnraise.cli.page import Directory, Json, print_json, print_table
from barnraise.cli.status import is_named
from barnraise.errors import ConfigError
from barnraise.observe.figures import bandwidth, latency
from barnraise.observe.status import Status
from barnraise.runs import reading
from barnraise.runs.reading import PeerNow


def peers(
    *,
    directory: Directory = None,
    node: Annotated[str | None, Parameter(show_default=False)] = None,
    plan: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    mb: Annotated[float | None, Parameter(show_default=False)] = None,
    codec: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """List the members of a run and the other peers that are connected, as one peer of this machine sees them.

    Latency is one way, from heartbeats or from TCP; bandwidth is from real transfers, so it is not known before some
    were sent. With --plan: the links between all members, and how the planner would move a vector over them, and why.

    Args:
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        node: Whose view: a peer's id or the end of it, or its directory, such as peer-0. Default: the first that runs.
        plan: Print the link graph, the clusters in it, and what the planner would choose.
        mb: Plan for so many megabytes of float32. Default: the run's parameters.
        codec: Plan with this codec for float32, or with what a compression level comes to: auto:1 to auto:9. Default:
            the one that the run's rounds use.
        json: Print one object.
    """
    path = reading.find(directory)
    peer, state = _viewer(reading.peers_now(path), node, str(path))
    age = max(0.0, time.time() - state.time) if peer.is_alive else 0.0
    rows = _rows(state, age)
    wants_plan = plan or mb is not None or codec is not None
    found = planning.outlook(peer, state, mb, codec) if wants_plan else None
    if json:
        whole = {"peer": state.peer, "time": state.time, "is_alive": peer.is_alive, "peers": rows}
        print_json(whole | ({"plan": planning.record(found)} if found else {}))
        return 0
    alive = "is running" if peer.is_alive else "is not running; this is what it knew last"
    print(f"{peer.directory.name} ({state.peer}) {alive}; it listens on {state.address or 'no address yet'}\n")
    if found:
        _print_plan(found)
        return 0
    titles = ("peer", "member", "counts from round", "missed", "connected", "heard", "latency", "bandwidth")
    numbers = ("counts from round", "missed", "heard", "latency", "bandwidth")
    print_table(titles, [_cells(row) for row in rows], numbers=numbers)
    return 0


def _print_plan(found: planning.Outlook) -> None:
    if found.links:
        titles = ("from", "to", "latency", "bandwidth")
        print_table(titles, planning.table(found), numbers=titles[2:])
        print()
    print(planning.text(found))


def _viewer(found: list[PeerNow], node: str | None, where: str) -> tuple[PeerNow, Status]:
    wanted = [peer for peer in found if node is None or is_named(peer, node)]
    for peer in sorted(wanted, key=lambda peer: not peer.is_alive):
        if peer.status is not None:
            return peer, peer.status
    if wanted:
        raise ConfigError(f"{where}: its peers have said nothing yet. Wait some seconds, or look into stderr.log.")
    known = ", ".join(peer.directory.name for peer in found)
    raise ConfigError(f"--node {node} is none of the peers here: {known}. Name one of them.")


def _rows(state: Status, age_s: float) -> list[dict[str, object]]:
    """Return members by seniority, then the others that are connected."""
    members = {member.peer: member for member in state.members}
    heard = {entry.peer: entry for entry in state.connected}
    rows: list[dict[str, object]] = []
    for ident in [*members, *sorted(heard.keys() - members.keys())]:
        member, entry = members.get(ident), heard.get(ident)
        rows.append(
            {
                "peer": ident,
                "is_self": ident == state.peer,
                "is_member": member is not None,
                "counts_from": member.counts_from if member else None,
                "missed": member.missed if member else None,
                "is_connected": ident in heard,
                "silent_s": round(entry.silent_s + age_s, 1) if entry else None,
                "latency_s": entry.latency_s if entry else None,
                "bandwidth_bytes_s": entry.bandwidth_bytes_s if entry else None,
                "num_refused": entry.num_refused if entry else 0,
            }
        )
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    way = ("", "")
    if row["is_self"]:
        connected, heard = "itself", ""
    else:
        connected = "yes" if row["is_connected"] else "no"
        heard = "" if row["silent_s"] is None else f"{row['silent_s']} s ago"
        if row["num_refused"]:
            heard += f", {row['num_refused']} bad messages"
        if row["is_connected"]:
            way = latency(row["latency_s"]), bandwidth(row["bandwidth_bytes_s"])
    member = "yes" if row["is_member"] else "no"
    counts = "" if row["counts_from"] is None else str(row["counts_from"])
    missed = "" if row["missed"] is None else str(row["missed"])
    return str(row["peer"]), member, counts, missed, connected, heard, *way
