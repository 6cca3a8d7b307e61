"""``barnraise train``: checks what was asked, raises a swarm on this machine, and says what it came to."""

import dataclasses
import os
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import trio
from cyclopts import Parameter

from barnraise.cli import faults, rundir, summary
from barnraise.cli.display import Display, display
from barnraise.cli.launch import LogLevel, Swarm, raise_swarm
from barnraise.config import PRESETS, RunConfig, flatten, load_run_config, run_config
from barnraise.errors import BarnraiseError, ConfigError

MAX_PEERS: Final = 64
"""On one machine; each takes two processes and some 500 MB."""


def train(
    *,
    peers: int = 4,
    data: str | None = None,
    preset: Literal["local", "small", "medium", "large"] | None = None,
    rounds: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    config: Path | None = None,
    directory: Annotated[Path | None, Parameter(name="--dir")] = None,
    kill: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    log_level: LogLevel = "info",
) -> int:
    """Raise a swarm on this machine and train one model with it: every peer is two processes of its own.

    Without options: four peers, the bundled Shakespeare, a few minutes, no network beyond loopback. A value comes from
    --config, is overridden by the environment (BARNRAISE_RUN_MODEL__HIDDEN_SIZE=256), and that
    by an option.

    Args:
        peers: How many peers to start; they are numbered from 0, the most senior.
        data: Your own text: a file, a directory, or a .jsonl file with a field "text". The last 5 % are held out.
        preset: Size of the model: local has 0.8M parameters and suits a CPU, small 5M, medium and large want GPUs.
        rounds: How many rounds to train; they count from 0.
        steps: Steps that each peer takes by itself in a round.
        seed: Fixes the first parameters and the order of the samples.
        config: A TOML file of the run's configuration, such as the run.toml of an earlier run.
        directory: Where to keep the run; made anew. Default: a new directory below runs, named by time and run id.
        kill: Kill a peer or a trainer when it begins a round: peer:2@round:3, trainer:1@round:2. May be repeated.
        json: Print one event a line, as JSON; the last is run.finished.
        log_level: What the peers write to their stderr.log; debug also shows tracebacks here.
    """
    flags = {"rounds": rounds, "steps": steps, "seed": seed, "data": data, "preset": preset}
    try:
        if not 1 <= peers <= MAX_PEERS:
            raise ConfigError(f"--peers {peers} is outside 1 .. {MAX_PEERS}. Choose a number in between.")
        resolved = resolve(config, flags)
        asked = faults.parse(kill, num_peers=peers, rounds=resolved.round.rounds)
        made = rundir.create(resolved, peers, directory, datetime.now())
        carry_out(Swarm(directory=made, faults=asked, log_level=log_level), json=json)
    except BarnraiseError as error:
        if json:
            print(summary.error_line(error), flush=True)
        raise
    return 0


def carry_out(swarm: Swarm, *, json: bool, report_command: Sequence[str] = summary.REPORT_COMMAND) -> None:
    """Show a swarm from its first process to its last on stdout, then what it came to.

    Raises:
        BarnraiseError: the run or its report failed.
        KeyboardInterrupt: the user stopped it.
    """
    with display(json=json) as shown:
        if not json:
            _introduce(swarm, shown)
        view = trio.run(raise_swarm, swarm, shown)
    outcome = summary.measure(view, swarm.directory, report_command)
    print(summary.json_line(outcome) if json else summary.text(outcome), flush=True)


def resolve(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> RunConfig:
    """Return the run's configuration: file < environment < flags; a flag that is None was not given.

    Raises:
        ConfigError: a value is wrong, or the text cannot be read or is not the one that the file's digest names.
    """
    # An empty file stands for none, so that the environment is laid over the defaults by the same code.
    base = load_run_config(Path(os.devnull) if file is None else file, environment)
    values = dataclasses.asdict(base)
    if flags["seed"] is not None:
        values["seed"] = flags["seed"]
    for name in ("rounds", "steps"):
        if flags[name] is not None:
            values["round"][name] = flags[name]
    if flags["preset"] is not None:
        values["model"] = dataclasses.asdict(PRESETS[flags["preset"]])
    if flags["data"] is not None:
        values["data"] |= {"source": flags["data"], "digest": ""}
    given = any(value is not None for value in flags.values())
    return _with_digest(run_config(values, "the command line" if given else str(file or "the environment")))


def _with_digest(config: RunConfig) -> RunConfig:
    """Read the text once, to know that it can be read and what the run id shall say of it."""
    from barnraise.data import corpus

    data = config.data
    if data.source != corpus.BUNDLED:
        data = dataclasses.replace(data, source=str(Path(data.source).expanduser().resolve()))
    digest = corpus.load(data, window=config.model.max_seq_len + 1).digest.hex()
    return dataclasses.replace(config, data=dataclasses.replace(data, digest=digest))


def _introduce(swarm: Swarm, shown: Display) -> None:
    """Show the resolved configuration and where all of it will be kept."""
    settings = (f"{key}={value}" for key, value in flatten(swarm.directory.config).items() if key != "founders")
    shown.note(textwrap.fill(" ".join(settings), 110, break_long_words=False, break_on_hyphens=False))
    shown.note(f"run directory: {swarm.directory.path}")
