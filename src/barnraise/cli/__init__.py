"""The command line: finds the verb, turns whatever goes wrong into one paragraph and an exit code.

A verb is a module that is imported when it is asked for. The help of ``barnraise`` itself is printed without loading
the argument parser, so that it comes at once; both know the verbs from the same table.
"""

import itertools
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from barnraise import __version__
from barnraise.errors import BarnraiseError, ConfigError

VERBS: Final = {
    "train": "Raise a swarm on this machine and train one model with it.",
    "join": "Take part in a run that goes on elsewhere, by the line that it printed.",
    "start": "Be one long-lived peer, as a configuration file says.",
    "status": "Say how a run on this machine is doing.",
    "peers": "List the peers that a peer of this machine is connected to.",
    "log": "List what the members agreed on, round by round.",
    "show": "Show one checkpoint: where it comes from and who contributed.",
    "doctor": "Examine the peers of this machine, and mend what can be mended.",
    "dag": "Draw the checkpoints of a run, each below those that came of it.",
    "verify": "Check a checkpoint's certificate and the model beside it, offline.",
    "generate": "Let the trained model continue a text.",
    "export": "Write the trained model as files that other programs load.",
    "presets": "List the sizes of models and kinds of settings that have a name.",
    "config": "Write a configuration file to start from.",
    "key": "Show, make, replace or revoke the keys of this machine and its cluster.",
    "upgrade": "Ask the members of a run for other rules.",
    "recover": "Ask that a run goes on without members that are gone for good.",
    "bench": "Measure how fast machines add up tensors.",
    "simulate": "Try to break agreement in simulated worlds, with peers that crash and lie.",
}
"""Each is a module of this package with a function of the same name."""

START_HERE: Final = """\
Start here:
  barnraise train                       four peers on this machine train a small model; some minutes
  barnraise join INVITATION             take part in a run that goes on elsewhere, by the line that it printed
  with barnraise.join(model, optimizer) as swarm: ...
                                        your own PyTorch loop, in Python: swarm.step() after optimizer.step()"""

FAILED: Final = 1
PARAGRAPH_WIDTH: Final = 110


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code: 0 ok, 1 failed, 2 usage, 3 no peers, 4 aborted by vote."""
    match list(arguments):
        case []:
            print(f"{_root_help()}\n{START_HERE}")
            return 0
        case ["--help" | "-h"]:
            print(_root_help())
            return 0
        case ["--version"]:
            print(__version__)
            return 0
        case _:
            return _guarded(lambda: _dispatch(arguments), debug=_wants_debug(arguments))


def sole(error: BaseException) -> BaseException:
    """Return the only exception inside nested groups of one, which nurseries put round it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _root_help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}      {what}" for verb, what in VERBS.items())
    return f"""\
barnraise {__version__}: train one model together, on machines that nobody owns all of.

Usage: barnraise COMMAND [OPTIONS]

Commands:
{verbs}

Options:
  --help, -h  Show this. `barnraise COMMAND --help` explains a command.
  --version   Show the version.
"""


def _dispatch(arguments: Sequence[str]) -> int:
    """Parse the words and run the verb that they name.

    Raises:
        ConfigError: an unknown verb or flag, or a value of the wrong type.
    """
    from cyclopts import App, CycloptsError

    app = App(name="barnraise", version=__version__, suppress_keyboard_interrupt=False)
    for verb in VERBS:
        app.command(f"barnraise.cli.{verb}:{verb}", name=verb)
    try:
        code = app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        verb = f"{arguments[0]} " if arguments[0] in VERBS else ""
        raise ConfigError(f"{error} `barnraise {verb}--help` lists what there is.") from error
    return int(code or 0)


def _guarded(run: Callable[[], int], *, debug: bool) -> int:
    """Run a command; tell what went wrong in one paragraph on stderr, with its traceback only in debug."""
    try:
        return run()
    except BaseException as raised:
        error = sole(raised)
        if debug and isinstance(error, Exception):
            traceback.print_exception(error)
        return _told(error)


def _told(error: BaseException) -> int:
    """Say what an exception means to the user; return the exit code. One that is not for them goes on."""
    match error:
        case BarnraiseError():
            _tell(str(error))
            return error.exit_code
        case KeyboardInterrupt():
            _tell(f"stopped. {error}".rstrip())
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would trip over it again
        case Exception():
            _tell(
                f"this is a defect of barnraise: {type(error).__name__}: {error}. "
                "Run it again with --log-level debug and report the traceback."
            )
        case _:
            raise error
    return FAILED


def _tell(text: str) -> None:
    width = PARAGRAPH_WIDTH if sys.stderr.isatty() else sys.maxsize
    paragraph = " ".join(f"barnraise: {text}".split())
    print(textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False), file=sys.stderr)


def _wants_debug(arguments: Sequence[str]) -> bool:
    return "--log-level=debug" in arguments or ("--log-level", "debug") in itertools.pairwise(arguments)
