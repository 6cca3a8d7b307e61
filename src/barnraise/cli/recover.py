"""``barnraise recover``: asks that a run goes on without the members that are gone for good; operators sign it."""

from typing import Annotated, Final

from cyclopts import Parameter

from barnraise.cli import asking
from barnraise.cli.page import Directory, Json, print_facts, print_json
from barnraise.errors import ConfigError, LocalError
from barnraise.ids import short
from barnraise.swarm import petitions

_WARNING: Final = (
    "whatever the others agreed on after this is lost, and none of them can come back but with an empty directory. Be "
    "sure that they are gone for good; then add --yes"
)


def recover(
    *members: Annotated[str, Parameter(show_default=False)],
    directory: Directory = None,
    yes: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Json = False,
) -> int:
    """Ask that a run goes on with the members that are named, where too many of the others are gone for good.

    This begins a new epoch at the newest checkpoint that this machine knows. No quorum of the members is left to agree
    to it, so more than half of the operators have to sign it, each with the same command where his key is; it is in the
    run's log and among its checkpoints for ever. It never happens by itself.

    Args:
        members: Who goes on: ids of peers, or the ends of members' ids, as barnraise peers prints them.
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        yes: Sign it. Otherwise only say what would be signed.
        json: Print one object.
    """
    place = asking.place_of(directory)
    state = place.state
    if not members:
        raise ConfigError(f"nobody is named. The members are {', '.join(map(short, state.peers))}; name who goes on.")
    chosen = [asking.named_or_whole(state.peers, name) for name in members]
    try:
        body = petitions.recovery_of(state, chosen)
    except LocalError as error:
        raise ConfigError(f"the run cannot go on with them: {error}") from error
    if yes:
        asking.tell(asking.ask(place, body), json=json)
        return 0
    if json:
        print_json({"height": state.height, "vertex": state.vertex.hex(), "members": sorted(chosen), "signed": []})
        return 0
    print_facts(
        [
            ("goes on with", ", ".join(map(short, sorted(chosen)))),
            ("without", ", ".join(short(peer) for peer in state.peers if peer not in chosen)),
            ("from", f"checkpoint {state.vertex.hex()[:12]} of round {state.round}, entry {state.height} of the log"),
            ("signed", f"no: {_WARNING}"),
        ]
    )
    return 0
