"""``barnraise upgrade``: asks the members of a run for other rules, or for newer records; operators sign it."""

from typing import Annotated

from cyclopts import Parameter

from barnraise.cli import asking
from barnraise.cli.page import Directory, Json
from barnraise.errors import ConfigError
from barnraise.swarm import petitions
from barnraise.swarm.records import NEWEST, RULES_VERSION, Upgrade


def upgrade(
    *rules: Annotated[str, Parameter(show_default=False)],
    directory: Directory = None,
    records: Annotated[int | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """Ask the members of a run for other rules; they hold from the end of the round on in which the members agree.

    More than half of the operators have to ask for the same: each gives the same command where his key is. A run's
    operators are named when it is begun; where none were, its founders are.

    Args:
        rules: What shall hold, as KEY=VALUE, such as outer.lr=0.5 or round.rounds=40.
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        records: Version of the records that members write. They begin to when enough of them can read it. Default: the
            one that a run's rules can change with, and, without rules, the newest.
        json: Print one object.
    """
    place = asking.place_of(directory)
    state = place.state
    change = Upgrade(
        number=state.num_upgrades + 1,
        version=max(state.version, RULES_VERSION if rules else NEWEST) if records is None else records,
        rules=tuple(sorted(map(_rule, rules))),
    )
    asking.tell(asking.ask(place, petitions.wish_of(state.run, change)), json=json)
    return 0


def _rule(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"{text}: is no KEY=VALUE. Write, say, outer.lr=0.5.")
    return key, value
