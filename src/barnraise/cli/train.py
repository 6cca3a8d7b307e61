"""``barnraise train``: checks what was asked, raises a swarm on this machine, and says what it came to."""

import dataclasses
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from barnraise import formats
from barnraise.cli import errand, faults, verify
from barnraise.cli.conduct import conduct, told
from barnraise.cli.launch import LogLevel, Swarm
from barnraise.codec.level import DEFAULT, spec_of
from barnraise.config import ENVIRONMENT_PREFIX, PRESETS, RunConfig, load_run_config, run_config
from barnraise.errors import ConfigError
from barnraise.net.addresses import LAN
from barnraise.net.addresses import listening as places_of
from barnraise.runs import directory as rundir
from barnraise.runs import places, reading
from barnraise.runs.directory import RunDirectory

MAX_PEERS: Final = 64
"""On one machine; each takes two processes and some 500 MB."""
CODEC_VARIABLE: Final = f"{ENVIRONMENT_PREFIX}ROUND__CODEC"


def train(
    *,
    peers: int = 4,
    data: str | None = None,
    preset: Literal["local", "small", "medium", "large"] | None = None,
    init: Path | None = None,
    compression_level: int | None = None,
    link_mbit: float | None = None,
    rounds: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    min_peers: int | None = None,
    strategy: Literal["diloco", "local_sgd", "fedavg", "synchronous"] | None = None,
    trust: Literal["home", "federation", "open"] | None = None,
    seed: int | None = None,
    config: Annotated[Path | None, Parameter(alias="-c")] = None,
    directory: Annotated[Path | None, Parameter(name="--dir")] = None,
    resume: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    listen: str | None = None,
    device: str = "auto",
    profile: int = 0,
    tensorboard: Path | None = None,
    wandb: str | None = None,
    kill: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    log_level: LogLevel = "info",
) -> int:
    """Raise a swarm on this machine and train one model with it: every peer is two processes of its own.

    Without options: four peers, the bundled Shakespeare, a few minutes, no network beyond loopback. It prints a line by
    which others join. Ctrl-C finishes the round and stops; --resume goes on from there. A value comes from --config, is
    overridden by the environment (BARNRAISE_RUN_MODEL__HIDDEN_SIZE=256), and that by an option.

    Args:
        peers: How many peers to start; they are numbered from 0, the most senior.
        data: Your own text: a file, a directory, or a .jsonl file with a field "text". The last 5 % are held out.
        preset: Size of the model: local has 0.9M parameters and suits a CPU, small 5M, medium and large want GPUs.
        init: Begin with the model in this directory, which barnraise export wrote.
        compression_level: How small updates travel, 1 (whole) to 9 (least); 3, int8, is the default. A codec that the
            configuration names goes first.
        link_mbit: Mbit/s of the slowest link that the run will use, which only you can know before others join: below 100
            the level counts as one more, below 10 as two more, from 1000 on as one less.
        rounds: How many rounds to train; they count from 0.
        steps: Steps that each peer takes by itself in a round.
        seconds: End a round's training after so long, with --steps as the most.
        min_peers: Train only while so many members are there.
        strategy: What becomes of a round's updates: diloco (default), local_sgd, fedavg, or synchronous.
        trust: Whose machines take part, for good: home (the default) are your own, which crash and do not lie; federation are
            organisations that you name and open are strangers, of whom fewer than a third may do anything. Both of these
            agree by PBFT, from four members on.
        seed: Fixes the first parameters and the order of the samples.
        config: A TOML or YAML file of the run's configuration, such as the run.toml of an earlier run.
        directory: Where to keep the run; made anew. Default: a new directory below runs, named by time and run id.
        resume: Go on with the run in --dir, or with the newest below runs, exactly where it was.
        listen: Address to listen on: 127.0.0.1 (the default) for this machine alone, lan for the local network, or one
            of this machine's own.
        device: What to compute on: cpu, cuda, mps, or auto.
        profile: Write a torch.profiler trace of so many rounds, from the second on, below each peer's directory.
        tensorboard: Write the run's figures to this directory, for TensorBoard.
        wandb: Write the run's figures to this project of Weights & Biases.
        kill: Kill a peer or a trainer when it begins a round: peer:2@round:3, trainer:1@round:2. May be repeated.
        json: Print one event a line, as JSON; the last is run.finished.
        log_level: What the peers write to their stderr.log; debug also shows tracebacks here.
    """
    flags = {
        "rounds": rounds,
        "steps": steps,
        "seconds": seconds,
        "min_peers": min_peers,
        "strategy": strategy,
        "trust": trust,
        "seed": seed,
        "data": data,
        "preset": preset,
        "init": init,
        "compression_level": compression_level,
        "link_mbit": link_mbit,
    }
    settings = {"log_level": log_level, "device": device, "profile_rounds": profile, **listening(listen)}
    with told(json=json):
        if resume:
            made = _reopened(directory, flags, config)
            asked = faults.parse(kill, num_peers=len(made.peers), rounds=made.resolved().round.rounds)
        else:
            run = _planned(flags, config, peers)
            asked = faults.parse(kill, num_peers=peers, rounds=run.round.rounds)
            made = rundir.create(run, peers, directory, datetime.now(), places.cluster_key())
        swarm = Swarm(
            directory=made,
            faults=asked,
            settings=settings,
            resume_command=f"barnraise train --resume --dir {made.path}",
            tensorboard=tensorboard,
            wandb=wandb,
        )
        conduct(swarm, json=json)
    return 0


def listening(host: str | None, control_port: int = 0, bulk_port: int = 0) -> dict[str, object]:
    """Return the keys of `PeerConfig` for an address to listen on; none, where it stays what it is.

    Raises:
        ConfigError: it is no address of this machine's own.
    """
    if host is None:
        return {}
    control, bulk = places_of(host, control_port, bulk_port)
    if host == LAN:  # resolved at each start: the address may be another one then
        control, bulk = f"/ip4/{LAN}/tcp/{control_port}", f"{LAN}:{bulk_port}"
    return {"listen": control, "bulk_listen": bulk}


def _planned(flags: Mapping[str, Any], config: Path | None, num_peers: int) -> RunConfig:
    """Return the configuration of a new run; nothing is made yet, so that a mistake leaves nothing behind."""
    if not 1 <= num_peers <= MAX_PEERS:
        raise ConfigError(f"--peers {num_peers} is outside 1 .. {MAX_PEERS}. Choose a number in between.")
    return resolve(config, flags)


def _reopened(directory: Path | None, flags: Mapping[str, Any], config: Path | None) -> RunDirectory:
    """Return the directory of a run that was begun before."""
    given = [name for name, value in {**flags, "config": config}.items() if value is not None]
    if given:
        raise ConfigError(
            f"--resume goes on with a run as it was begun, and --{given[0].replace('_', '-')} would change it. "
            "Leave it out, or begin a new run."
        )
    return rundir.reopen(directory or reading.newest_run())


def resolve(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> RunConfig:
    """Return the run's configuration: file < environment < flags; a flag that is None was not given.

    Raises:
        ConfigError: a value is wrong, or the text cannot be read or is not the one that the file's digest names.
    """
    # An empty file stands for none, so that the environment is laid over the defaults by the same code.
    base = load_run_config(Path(os.devnull) if file is None else file, environment)
    values = dataclasses.asdict(base)
    for name in ("seed", "strategy"):
        if flags.get(name) is not None:
            values[name] = flags[name]
    for name in ("rounds", "steps", "seconds", "min_peers"):
        if flags.get(name) is not None:
            values["round"][name] = flags[name]
    if flags.get("trust") is not None:
        values["profile"] = flags["trust"]
    level, link_mbit = flags.get("compression_level"), flags.get("link_mbit")
    if level is not None or link_mbit is not None:
        named = spec_of(DEFAULT if level is None else level, link_mbit)
        values["round"]["codec"] = codec_named(file, environment) or named
    if flags.get("preset") is not None:
        values["model"] = dataclasses.asdict(PRESETS[flags["preset"]])
    if flags.get("init") is not None:
        verify.check_exported(flags["init"])
        values["model"] = errand.run("barnraise.train.initial", [flags["init"]], dict[str, Any])
    if flags.get("data") is not None:
        values["data"] |= {"source": flags["data"], "digest": ""}
    given = any(value is not None for value in flags.values())
    return _with_digest(run_config(values, "the command line" if given else str(file or "the environment")))


def codec_named(file: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the codec that the file or the environment names, which a level does not override; "" if neither does."""
    if CODEC_VARIABLE in environment:
        return environment[CODEC_VARIABLE]
    table = {} if file is None else formats.read(file).get("round", {})
    return str(table.get("codec", "")) if isinstance(table, Mapping) else ""


def _with_digest(config: RunConfig) -> RunConfig:
    """Read the text once, to know that it can be read and what the run id shall say of it."""
    from barnraise.data import corpus

    data = config.data
    if data.source != corpus.BUNDLED:
        data = dataclasses.replace(data, source=str(Path(data.source).expanduser().resolve()))
    digest = corpus.load(data, window=config.model.max_seq_len + 1).digest.hex()
    return dataclasses.replace(config, data=dataclasses.replace(data, digest=digest))
