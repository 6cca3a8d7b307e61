"""Lets a run's parameters, or a model's directory, continue a text.

python -m barnraise.train.sample --model DIR --prompt=TEXT --json
python -m barnraise.train.sample --config RUNCONFIG.toml --theta THETA.f32 --prompt=TEXT --json
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import barnraise.model
from barnraise.config import load_run_config
from barnraise.errors import BarnraiseError
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.generate import generate
from barnraise.train import vectors


def model_of_run(config_file: Path, theta: Path) -> nn.Module:
    """Return a run's model with the parameters of a file of float32[d].

    Raises:
        ConfigError: the configuration cannot be read, or the model is the user's own.
        LocalError: the file holds another model's parameters.
    """
    config = load_run_config(config_file)
    model = build(config.model, config.seed)
    flat = flatten(model)
    flat.load(vectors.read(theta, flat.values.numel()))
    return model.eval()


def main() -> int:
    """Print the text and return the exit code."""
    parser = argparse.ArgumentParser(prog="barnraise.train.sample", description="Continue a text.")
    parser.add_argument("--model", type=Path, help="a directory that `barnraise export` wrote")
    parser.add_argument("--config", type=Path, help="a run's configuration, ...")
    parser.add_argument("--theta", type=Path, help="... and flat float32 parameters")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--bytes", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if arguments.model is not None:
            model = barnraise.model.load(arguments.model)
        else:
            model = model_of_run(arguments.config, arguments.theta)
    except BarnraiseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    config: Any = model.config
    text = generate(
        model,
        os.fsencode(arguments.prompt),
        arguments.bytes,
        context=config.max_seq_len,
        seed=arguments.seed,
        temperature=arguments.temperature,
    ).decode("utf-8", errors="replace")
    print(json.dumps({"text": text}) if arguments.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
