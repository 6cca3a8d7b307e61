"""What a run's parameters are worth: validation loss beside two baselines, and a sample of text.

python -m barnraise.train.report --config RUNCONFIG.toml --theta THETA.f32 --json
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from barnraise.config import RunConfig, load_run_config
from barnraise.data.baselines import Baselines, baselines
from barnraise.data.corpus import Corpus, load
from barnraise.errors import BarnraiseError
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.generate import generate
from barnraise.model.tensors import by_name, save_tensors
from barnraise.train import vectors
from barnraise.train.evaluate import evaluate

BASELINES_FILE = "baselines.json"
"""Beside the run's configuration: what counting reaches on its text, counted once for a text and not for each report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The figures that end a run."""

    val_bits_per_byte: float
    val_nats_per_byte: float
    val_bytes: int
    unigram_bits_per_byte: float
    five_gram_bits_per_byte: float
    num_parameters: int
    sample: str


class _Counted(msgspec.Struct, frozen=True):
    digest: str
    unigram: float
    five_gram: float


def report(
    config: RunConfig,
    theta: Path,
    *,
    prompt: str = "\n\n",
    sample_bytes: int = 300,
    save: Path | None = None,
    known: Path | None = None,
) -> Report:
    """Measure ``theta``, a file of float32[d], on the whole validation text and let it write ``sample_bytes`` bytes.

    Args:
        config: the run's.
        theta: the parameters.
        prompt: what the sample continues.
        sample_bytes: how much to write.
        save: where to write the parameters as safetensors, by name and shape; None: nowhere.
        known: file that remembers what counting reaches on the text; None: count.

    Raises:
        ConfigError: the data cannot be used, or the model is the user's own.
        LocalError: the file holds another model's parameters.
    """
    length = config.model.max_seq_len
    model = build(config.model, config.seed)
    corpus = load(config.data, window=length + 1)
    flat = flatten(model)
    flat.load(vectors.read(theta, flat.values.numel()))
    if save is not None:
        save_tensors(by_name(flat.layout, flat.numpy()), save)
    measured = evaluate(model, corpus.validation, length)
    counted = _baselines(corpus, known)
    text = generate(model, prompt.encode(), sample_bytes, context=length, seed=config.seed)
    return Report(
        val_bits_per_byte=measured.bits_per_byte,
        val_nats_per_byte=measured.nats / measured.tokens,
        val_bytes=measured.tokens,
        unigram_bits_per_byte=counted.unigram,
        five_gram_bits_per_byte=counted.five_gram,
        num_parameters=flat.values.numel(),
        sample=text.decode("utf-8", errors="replace").strip(),
    )


def _baselines(corpus: Corpus, known: Path | None) -> Baselines:
    """Return what counting reaches, from ``known`` if that is about this text; else count and write it there."""
    digest = corpus.digest.hex()
    if known is not None and known.is_file():
        try:
            found = msgspec.json.decode(known.read_bytes(), type=_Counted)
        except msgspec.DecodeError:
            found = _Counted("", 0.0, 0.0)
        if found.digest == digest:
            return Baselines(unigram=found.unigram, five_gram=found.five_gram)
    counted = baselines(corpus.train, corpus.validation)
    if known is not None:
        partial = known.with_name(known.name + ".partial")
        with contextlib.suppress(OSError):  # where nothing can be written, it is counted again
            partial.write_bytes(msgspec.json.encode(_Counted(digest, counted.unigram, counted.five_gram)))
            partial.replace(known)
    return counted


def main() -> int:
    """Print the report and return the exit code."""
    parser = argparse.ArgumentParser(prog="barnraise.train.report", description="Measure a run's parameters.")
    parser.add_argument("--config", type=Path, required=True, help="the run's configuration, TOML")
    parser.add_argument("--theta", type=Path, required=True, help="flat float32 parameters")
    parser.add_argument("--save", type=Path, help="write the parameters to this file, as safetensors")
    parser.add_argument("--prompt", default="\n\n", help="what the sample continues")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        config = load_run_config(arguments.config)
        known = arguments.config.with_name(BASELINES_FILE)
        found = report(config, arguments.theta, prompt=arguments.prompt, save=arguments.save, known=known)
        result = dataclasses.asdict(found)
    except BarnraiseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
