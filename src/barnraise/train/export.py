"""Writes a run's agreed parameters as a directory that other programs load; the peers' files are only read.

python -m barnraise.train.export --config RUNCONFIG.toml --theta THETA.f32 --to DIR --json
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from barnraise.config import RunConfig, load_run_config
from barnraise.errors import BarnraiseError, ConfigError
from barnraise.link.messages import MAX_FRAME_BYTES, Tensor
from barnraise.model import pretrained
from barnraise.model.build import build
from barnraise.model.flat import layout as layout_of
from barnraise.model.tensors import by_name, num_elements
from barnraise.train import vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    directory: str
    architecture: str
    files: list[str]
    num_parameters: int


def export(
    config: RunConfig, theta: Path, to: Path, layout_file: Path | None = None, certificate: Path | None = None
) -> Exported:
    """Write ``theta``, a file of float32[d], as a directory.

    Args:
        config: the run's.
        theta: the parameters.
        to: the directory, which must not be there or be empty.
        layout_file: names and shapes of the user's own model, as its trainer told its peer.
        certificate: a file to put into the directory, under its own name; what it takes to compare the model with it
            is then written as well.

    Raises:
        ConfigError: ``to`` is taken, or the model is the user's own and nothing says how its tensors are called.
        LocalError: the file holds another model's parameters.
    """
    layout = _own_layout(layout_file) if config.model.architecture == "custom" else layout_of(build(config.model, 0))
    flat = vectors.read(theta, num_elements(layout))
    added = None if certificate is None else (certificate.name, certificate.read_bytes())
    pretrained.write(to, config.model, by_name(layout, flat), added)
    return Exported(
        directory=str(to),
        architecture=config.model.architecture,
        files=sorted(file.name for file in to.iterdir()),
        num_parameters=len(flat),
    )


def _own_layout(file: Path | None) -> tuple[Tensor, ...]:
    """Return the layout that a peer keeps of its user's own model."""
    if file is None or not file.is_file():
        raise ConfigError(
            "the run trains a model of its user's own, and no layout of it is on this machine: which number belongs to "
            "which tensor is not known. Save the model in the program that trained it, or export where a peer ran."
        )
    try:
        if file.stat().st_size > MAX_FRAME_BYTES:
            raise ConfigError(f"{file} has {file.stat().st_size} bytes and the limit is {MAX_FRAME_BYTES}.")
        return msgspec.msgpack.decode(file.read_bytes(), type=tuple[Tensor, ...])
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is no layout: {error}. Export from another peer's directory.") from error


def main() -> int:
    """Export, say what was written, and return the exit code."""
    parser = argparse.ArgumentParser(prog="barnraise.train.export", description="Write a run's parameters as files.")
    parser.add_argument("--config", type=Path, required=True, help="the run's configuration")
    parser.add_argument("--theta", type=Path, required=True, help="flat float32 parameters")
    parser.add_argument("--to", type=Path, required=True, help="the directory to make")
    parser.add_argument("--layout", type=Path, help="names and shapes of the user's own model, msgpack")
    parser.add_argument("--certificate", type=Path, help="a file to put beside the model")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    try:
        config = load_run_config(arguments.config)
        done = export(config, arguments.theta, arguments.to, arguments.layout, arguments.certificate)
        found = dataclasses.asdict(done)
    except BarnraiseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}: {value}" for key, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
