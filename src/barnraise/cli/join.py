"""``barnraise join``: makes one peer on this machine for a run that goes on elsewhere, and takes part in it."""

import contextlib
import sys
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from barnraise.cli.conduct import conduct, told
from barnraise.cli.launch import LogLevel, Patience, Swarm
from barnraise.cli.train import listening
from barnraise.errors import ConfigError, Unavailable
from barnraise.runs import directory as rundir
from barnraise.runs import invitation as invitations
from barnraise.runs import places
from barnraise.runs.directory import RunDirectory
from barnraise.runs.invitation import Invitation

FIND_S: Final = 3.0
FOR_EVER: Final = Patience(waiting_s=float("inf"))
"""Somebody who is awaited may come back to a run that several machines share."""


def join(
    invitation: str | None = None,
    /,
    *,
    data: Path | None = None,
    directory: Annotated[Path | None, Parameter(name="--dir")] = None,
    listen: str | None = None,
    device: str = "auto",
    threads: int = 1,
    tensorboard: Path | None = None,
    wandb: str | None = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    log_level: LogLevel = "info",
) -> int:
    """Take part in a run that goes on elsewhere: fetch its newest checkpoint, count from the round after the next.

    Ctrl-C finishes the round and leaves; the others go on. A second one leaves at once.

    Args:
        invitation: The word that the run printed, or a file that holds it, or a directory in which a run was joined
            before. Without it, runs of this machine's cluster key are looked for on the local network.
        data: Where this machine keeps the run's text, if it is not the bundled one; it must be the same, byte for byte.
        directory: Where to keep what the peer needs; made anew. Default: a new directory below runs.
        listen: Address to listen on: 127.0.0.1 for this machine alone, lan for the local network, or one of this
            machine's own. Default: lan, if the run is on other machines.
        device: What to compute on: cpu, cuda, mps, or auto.
        threads: Threads of the trainer's tensor library.
        tensorboard: Write the run's figures to this directory, for TensorBoard.
        wandb: Write the run's figures to this project of Weights & Biases.
        json: Print one event a line, as JSON.
        log_level: What the peer writes to its stderr.log; debug also shows tracebacks here.
    """
    settings: dict[str, object] = {"log_level": log_level, "device": device, "threads": threads}
    if data is not None:
        settings["data"] = str(data.expanduser().resolve())
    with told(json=json):
        made = _place(invitation, directory, listen)
        swarm = Swarm(
            directory=made,
            settings=settings | listening(_host(made, listen)),
            patience=FOR_EVER,
            resume_command=f"barnraise join {made.path}",
            tensorboard=tensorboard,
            wandb=wandb,
        )
        conduct(swarm, json=json)
    return 0


def _place(text: str | None, directory: Path | None, listen: str | None) -> RunDirectory:
    """Return the directory of the peer: a new one, or the one that a run was joined in before."""
    if text is not None and (Path(text) / rundir.CLUSTER_KEY_FILE).is_file():
        return rundir.reopen(Path(text))
    invitation = _found_nearby(listen) if text is None else invitations.parse(text)
    return rundir.join(invitation, directory, datetime.now())


def _host(directory: RunDirectory, listen: str | None) -> str | None:
    """Return where to listen: a run on other machines cannot reach back to this one's loopback."""
    told = directory.invitation.addresses if directory.invitation else ()
    is_far = bool(told) and not any(f"/{host}/" in address for address in told for host in ("127.0.0.1", "::1"))
    return "lan" if is_far and listen is None else listen


def _found_nearby(listen: str | None) -> Invitation:
    """Look for runs of this machine's cluster key on the local network; let the user choose between several.

    Raises:
        Unavailable: there is none.
        ConfigError: there are several, and nobody to ask.
    """
    from barnraise.net.addresses import lan_address
    from barnraise.net.announcement import cluster_tag
    from barnraise.net.discovery import find

    key = places.cluster_key()
    hosts = ["127.0.0.1"] if listen in (None, "127.0.0.1") else []
    with contextlib.suppress(ConfigError):  # no network: then this machine alone
        hosts.append(lan_address())
    found = []
    for host in hosts:
        try:
            found += find(cluster_tag(key), FIND_S, host)
        except Unavailable as error:
            print(f"barnraise: nothing can be looked for from {host}: {error}", file=sys.stderr)
    runs = {run: list(peers) for run, peers in groupby(sorted(found, key=lambda seen: seen.run), lambda seen: seen.run)}
    if not runs:
        raise Unavailable(
            f"no run with this machine's cluster key was found nearby within {FIND_S * len(hosts):.0f} s. Use the line "
            f"that a run prints, or copy the cluster key of its machine to {places.cluster_key_file()}."
        )
    chosen = runs[_choose([(run.hex()[:12], peers[0].label) for run, peers in runs.items()], list(runs))]
    return Invitation(run=chosen[0].run, addresses=tuple(seen.address for seen in chosen), secret=key.secret)


def _choose(described: list[tuple[str, str]], runs: list[bytes]) -> bytes:
    """Return the run that the user wants."""
    if len(runs) == 1:
        return runs[0]
    lines = [f"{number}  run {name} on {label}" for number, (name, label) in enumerate(described, start=1)]
    if not sys.stdin.isatty():
        raise ConfigError(f"several runs are nearby: {'; '.join(lines)}. Use the line that one of them printed.")
    print("\n".join(lines))
    answer = input(f"Which one, 1 to {len(runs)}? ").strip()
    if not answer.isdecimal() or not 1 <= int(answer) <= len(runs):
        raise ConfigError(f"{answer!r} is none of 1 to {len(runs)}. Ask again: barnraise join")
    return runs[int(answer) - 1]
