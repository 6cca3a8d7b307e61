"""How a peer starts the trainer: ``python -m barnraise.train --socket PATH --config RUNCONFIG.toml``."""

import argparse
import logging
import sys
from pathlib import Path

import torch

from barnraise.config import load_run_config
from barnraise.errors import BarnraiseError
from barnraise.train.trace import Tracer
from barnraise.train.train import train


def main() -> int:
    """Parse the arguments, train, and return the exit code."""
    parser = argparse.ArgumentParser(prog="barnraise.train", description="Train for the peer that listens at a socket.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="the run's configuration, TOML")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile-rounds", type=int, default=0, help="trace so many rounds, from the second on")
    parser.add_argument("--profile-dir", type=Path, help="where to leave the traces")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(arguments.threads)
    try:
        tracer = Tracer(arguments.profile_dir, arguments.profile_rounds)
        train(arguments.socket, load_run_config(arguments.config), arguments.device, tracer)
    except BarnraiseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
