"""``barnraise generate``: lets the newest checkpoint of a run, or an exported model, continue a text."""

import math
import tempfile
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from barnraise.cli import errand, verify
from barnraise.cli.page import Json, print_json
from barnraise.config import save
from barnraise.errors import ConfigError
from barnraise.runs import certificates, reading, unsealing

MAX_BYTES: Final = 100_000
"""Some minutes of the default model on a CPU."""
MAX_PROMPT_BYTES: Final = 100_000
"""An argument of a process must be shorter than 128 KiB; a model looks back on far less."""
_CONFIG_FILE: Final = "config.json"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer's side wrote: the prompt and what follows it."""

    text: str


def generate(
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)],
    num_bytes: Annotated[int, Parameter(name="--bytes")] = 300,
    temperature: float = 0.8,
    seed: int = 1,
    source: Annotated[Path | None, Parameter(name=("--from", "--dir"), show_default=False)] = None,
    json: Json = False,
) -> int:
    """Let the trained model continue a text, byte by byte.

    Args:
        prompt: The text to continue.
        num_bytes: How many bytes to add.
        temperature: 0 takes the likeliest byte each time; higher is more varied.
        seed: Of the draws: the same seed writes the same text.
        source: Directory of a run, of one peer, or of an exported model. Default: the run of this user in which
            something happened last. Where there is a certificate, it must hold.
        json: Print one object: prompt, text (the prompt and what follows).
    """
    _check(prompt, num_bytes, temperature)
    options = ("--bytes", str(num_bytes), "--temperature", str(temperature), "--seed", str(seed), f"--prompt={prompt}")
    if source is not None and (source / _CONFIG_FILE).is_file():
        verify.check_exported(source)
        sample = errand.run("barnraise.train.sample", ("--model", source, *options), Sample)
    else:
        sample = _from_run(source, options)
    if json:
        print_json({"prompt": prompt, "text": sample.text})
    else:
        print(sample.text)
    return 0


def _from_run(source: Path | None, options: tuple[str, ...]) -> Sample:
    found = reading.newest_checkpoint(reading.find(source))
    certificates.certified(found)
    plain = unsealing.plain(found.peer_dir, found.theta_path)
    with plain as theta, tempfile.TemporaryDirectory(prefix="barnraise-") as scratch:
        config = Path(scratch) / "run.toml"
        save(found.config, config)
        where = ("--config", config, "--theta", theta)
        return errand.run("barnraise.train.sample", (*where, *options), Sample)


def _check(prompt: str, num_bytes: int, temperature: float) -> None:
    """Raise `ConfigError` for a value that the model could not use."""
    if not prompt or "\0" in prompt or len(prompt.encode(errors="surrogateescape")) > MAX_PROMPT_BYTES:
        raise ConfigError(f"--prompt must have 1 to {MAX_PROMPT_BYTES} bytes and no zero byte. Change the text.")
    if not 1 <= num_bytes <= MAX_BYTES:
        raise ConfigError(f"--bytes {num_bytes} is outside 1 .. {MAX_BYTES}. Choose a number in between.")
    if not (math.isfinite(temperature) and 0 <= temperature <= 100):
        raise ConfigError(f"--temperature {temperature} is outside 0 .. 100. 0.8 is a good one to start with.")
