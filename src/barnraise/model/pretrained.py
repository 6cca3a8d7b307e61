"""A trained model as a directory: config.json, model.safetensors, tokenizer.json and a README; written and read.

What is read may come from anywhere: no code is in it, its size is known before memory is taken, and a value that does
not fit is refused by name.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import nn

from barnraise import config as configuration
from barnraise.config import ModelConfig
from barnraise.errors import ConfigError
from barnraise.model import conversion, lfm2
from barnraise.model.build import build
from barnraise.model.exported import UNCENTRED_FILE, uncentred
from barnraise.model.flat import flatten
from barnraise.model.shape import num_parameters
from barnraise.model.tensors import read_tensors, save_tensors
from barnraise.model.tokenizer import tokenizer, tokenizer_config

CONFIG_FILE: Final = "config.json"
TENSORS_FILE: Final = "model.safetensors"
MODEL_TYPE: Final = "lfm2"
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 64 << 30
"""Room for the largest model that fits into one float32 file of a user's machine; config.json must ask for as much."""
OF_THE_RUN: Final = ("dropout", "gradient_checkpointing", "layout", "initial", "source")
"""What a `ModelConfig` says of a run and not of the model that came out of it."""

Array = NDArray[np.float32]


class _Kind(msgspec.Struct, frozen=True):
    model_type: str = ""


class _Lfm2(msgspec.Struct, frozen=True):
    """The keys of a config.json of LFM2 that decide what it computes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    layer_types: list[str]
    max_position_embeddings: int
    norm_eps: float = 1e-5
    conv_taps: int = msgspec.field(default=3, name="conv_L_cache")
    conv_bias: bool = False
    block_auto_adjust_ff_dim: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None


def write(
    directory: Path, config: ModelConfig, tensors: Mapping[str, Array], certificate: tuple[str, bytes] | None = None
) -> None:
    """Write a model as a directory that was not there, or was empty: all of it or nothing.

    Args:
        directory: to be made.
        config: of the model; ``custom`` gets no config.json, since nothing but its program can build it.
        tensors: by name, as in the model's ``named_parameters``.
        certificate: a file to put beside them, name and bytes; then what the conversion for transformers changes is
            written as it was as well, so that the certificate can be checked.

    Raises:
        ConfigError: something is there already, or it cannot be written.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"{directory} holds something already. Name a directory that is empty or not there yet.")
    staging = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        _fill(staging, directory.name, config, tensors, certificate)
        staging.rename(directory)
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be written ({error.strerror}). Name a directory whose parent you may write to."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read(directory: Path) -> nn.Module:
    """Return the model of a directory, in float32 on the CPU; its ``config`` says what it is.

    Raises:
        ConfigError: files are missing or damaged, do not fit each other, or are of another kind of model.
    """
    config = read_config(directory)
    file = directory / TENSORS_FILE
    size, least = _size(file, MAX_FILE_BYTES), 4 * num_parameters(config)
    if size < least:
        raise ConfigError(
            f"{file}: {size} bytes are too few for the {least} that config.json promises. Fetch it again."
        )
    model = build(config, seed=0)
    flat = flatten(model)
    shapes = {tensor.name: tensor.shape for tensor in flat.layout}
    tensors = read_tensors(file, shapes | conversion.gains(config))
    try:
        found = conversion.from_transformers(config, tensors)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}. Only models that barnraise exported are read back.") from error
    flat.load(np.concatenate([found[tensor.name].reshape(-1) for tensor in flat.layout]))
    return model


def read_config(directory: Path) -> ModelConfig:
    """Return the shape of a directory's model.

    Raises:
        ConfigError: there is none, or not of a kind that is built in; the message names those.
    """
    file = directory / CONFIG_FILE
    _size(file, MAX_CONFIG_BYTES)
    text = file.read_bytes()
    if (kind := _decode(text, _Kind, file).model_type) != MODEL_TYPE:
        raise ConfigError(
            f"{file}: model_type is {kind[:80]!r}. Built in is {MODEL_TYPE!r} over bytes, as `barnraise export` writes it; "
            "other models train in a loop of your own (barnraise.join)."
        )
    found = _decode(text, _Lfm2, file)
    config = _shape(found, file)
    expected = lfm2.transformers_config(config)
    for key, value in msgspec.to_builtins(found).items():
        if value != expected[key]:
            raise ConfigError(
                f"{file}: {key} is {str(value)[:80]} and must be {str(expected[key])[:80]}. "
                "Of LFM2, only the shape that `barnraise export` writes is built in."
            )
    return config


def _shape(found: _Lfm2, file: Path) -> ModelConfig:
    values = {
        "vocab_size": found.vocab_size,
        "hidden_size": found.hidden_size,
        "num_layers": found.num_hidden_layers,
        "num_heads": found.num_attention_heads,
        "max_seq_len": found.max_position_embeddings,
    }
    return configuration.run_config({"model": values}, str(file)).model


def _fill(
    directory: Path,
    name: str,
    config: ModelConfig,
    tensors: Mapping[str, Array],
    certificate: tuple[str, bytes] | None,
) -> None:
    if certificate is not None:
        (directory / certificate[0]).write_bytes(certificate[1])
    if config.architecture == "lfm2":
        if certificate is not None:
            save_tensors(uncentred(config, tensors), directory / UNCENTRED_FILE)
        tensors = conversion.to_transformers(config, tensors)
        _write_json(directory / CONFIG_FILE, lfm2.transformers_config(config))
        _write_json(directory / "tokenizer.json", tokenizer())
        _write_json(directory / "tokenizer_config.json", tokenizer_config(config))
    save_tensors(tensors, directory / TENSORS_FILE)
    (directory / "README.md").write_text(_readme(name, config, certificate is not None), encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _decode(text: bytes, kind: type[Any], file: Path) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}. Name a directory that `barnraise export` wrote.") from error


def _size(file: Path, limit: int) -> int:
    """Return a file's size in bytes. Raises `ConfigError` unless it is a plain file within the limit."""
    if not file.is_file():
        raise ConfigError(f"{file} is not there. Name a directory that `barnraise export` wrote.")
    size = file.stat().st_size
    if size > limit:
        raise ConfigError(f"{file} has {size} bytes and the limit is {limit}.")
    return size


_LOADS: Final[Mapping[str, str]] = {
    "lfm2": """\
A model over bytes, trained with barnraise, in a shape that `transformers` knows as LFM2. It loads without remote code:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({name!r})
tokenizer = AutoTokenizer.from_pretrained({name!r})
```

Where barnraise is installed, plain PyTorch loads it too:

```python
import barnraise.model
model = barnraise.model.load({name!r})
```

Token ids are the values of the UTF-8 bytes. The model was trained on {context} of them at a time.
""",
    "custom": """\
Parameters of a model that its user brought along, trained with barnraise. Their names are those of the module's
`named_parameters` and `named_buffers`. Only the program that trained it can build the module:

```python
from safetensors.torch import load_file
model = ...  # the same module as in that program
model.load_state_dict(load_file("model.safetensors"), strict=False)
```
""",
}


_CHECKED: Final = """
The members of the run agreed on these parameters. `barnraise verify {name}` checks their certificate, offline.
"""


def _readme(name: str, config: ModelConfig, is_certified: bool) -> str:
    text = _LOADS[config.architecture] + (_CHECKED if is_certified else "")
    return f"# {name}\n\n" + text.format(name=name, context=config.max_seq_len)
