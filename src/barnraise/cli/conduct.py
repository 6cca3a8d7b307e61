"""Conducts this machine's part of a run, from its first process to its last words on stdout; for the verbs that train."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence

import trio

from barnraise.cli import summary
from barnraise.cli.display import Display, display
from barnraise.cli.launch import Swarm, raise_swarm
from barnraise.config import flatten
from barnraise.errors import BarnraiseError
from barnraise.observe import writers
from barnraise.observe.view import View


def conduct(swarm: Swarm, *, json: bool, report_command: Sequence[str] = summary.REPORT_COMMAND) -> None:
    """Show a swarm from its first process to its last on stdout, then what it came to.

    Raises:
        BarnraiseError: the run or its report failed.
        KeyboardInterrupt: the user stopped it at once.
    """
    figures = writers.opened(tensorboard=swarm.tensorboard, wandb=swarm.wandb, name=swarm.directory.path.name)
    with figures as writer, display(json=json) as shown:
        if not json:
            _introduce(swarm, shown)
        view = trio.run(raise_swarm, swarm, shown, writer.event)
    if not any(row.finished for row in view.peers):
        _say_how_to_go_on(swarm, view, json=json)
        return
    if summary.is_sealed(view):
        if not json:
            print("finished; the parameters are sealed: barnraise export writes them out, in the open", flush=True)
        return
    outcome = summary.measure(view, swarm.directory, report_command)
    print(summary.json_line(outcome) if json else summary.text(outcome), flush=True)


@contextlib.contextmanager
def told(*, json: bool) -> Iterator[None]:
    """Have an error be the last event as well, for a program that reads them."""
    try:
        yield
    except BarnraiseError as error:
        if json:
            print(summary.error_line(error), flush=True)
        raise


def _introduce(swarm: Swarm, shown: Display) -> None:
    """Show the resolved configuration and where all of it will be kept."""
    if swarm.directory.config is not None:
        settings = (f"{key}={value}" for key, value in flatten(swarm.directory.config).items() if key != "founders")
        shown.note(textwrap.fill(" ".join(settings), 110, break_long_words=False, break_on_hyphens=False))
    shown.note(f"run directory: {swarm.directory.path}")


def _say_how_to_go_on(swarm: Swarm, view: View, *, json: bool) -> None:
    """Say what was left, and the command that goes on with it."""
    if json:
        return  # the peers' own run.left has it all
    rounds = max((row.left.rounds for row in view.peers if row.left), default=0)
    print(f"left after {rounds} rounds; go on with them: {swarm.resume_command}", flush=True)
