"""The parameters that a run begins with: drawn from its seed, or taken from a directory that ``export`` wrote.

python -m barnraise.train.initial DIR --json
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from barnraise.config import ModelConfig, RunConfig
from barnraise.errors import BarnraiseError, ConfigError
from barnraise.model import pretrained
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.swarm.workspace import root_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Initial:
    """A model to begin with."""

    model: ModelConfig
    """Its shape; ``source`` and ``initial`` say where it comes from."""
    parameters: NDArray[np.float32]
    """float32[d]"""


def initial(directory: Path) -> Initial:
    """Read a directory that ``barnraise export`` wrote; it may come from anywhere.

    Raises:
        ConfigError: it is no such directory, or damaged.
    """
    model = pretrained.read(directory)
    parameters = flatten(model).numpy()
    config = pretrained.read_config(directory)
    found = dataclasses.replace(config, source=str(directory.resolve()), initial=root_of(parameters).hex())
    return Initial(model=found, parameters=parameters)


def first_parameters(config: RunConfig) -> NDArray[np.float32]:
    """Return the parameters, float32[d], that the run begins with.

    Where it begins with a directory's and that is on another machine, they are drawn from the seed instead. Their hash
    is then not ``model.initial``: the peer sees that, and takes from the others what the run has come to.

    Raises:
        ConfigError: the directory does not hold what the run was begun with.
    """
    model = config.model
    if not model.source:
        return flatten(build(model, config.seed)).numpy()
    found = initial(Path(model.source))
    if _shape(found.model) != _shape(model) or found.model.initial != model.initial:
        raise ConfigError(
            f"{model.source} holds parameters {found.model.initial[:12]} and the run was begun with "
            f"{model.initial[:12]}. Put the same model there, or begin a new run."
        )
    return found.parameters


def _shape(config: ModelConfig) -> dict[str, object]:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in pretrained.OF_THE_RUN}


def main() -> int:
    """Print what a directory holds, as the model part of a run's configuration; return the exit code."""
    parser = argparse.ArgumentParser(prog="barnraise.train.initial", description="Look at a model to begin with.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    try:
        found = dataclasses.asdict(initial(arguments.directory).model)
    except BarnraiseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found) if arguments.json else "\n".join(f"{key} = {value!r}" for key, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
