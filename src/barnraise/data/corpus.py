"""The training text as two byte arrays, from the bundled corpus or from the user's file, directory or .jsonl."""

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import blake3
import msgspec
import numpy as np
from numpy.typing import NDArray

from barnraise.config import DataConfig
from barnraise.errors import ConfigError
from barnraise.ids import Digest

BUNDLED: Final = "bundled"
PLAY_SEPARATOR: Final = b"\f"
VALIDATION_PLAYS: Final = (1, 20)
"""Counted from 0 in the order of the bundle: As You Like It and Measure for Measure, 5 % of the text."""
_PROSE: Final = {".txt", ".md", ".rst", ".tex", ".csv", ".html", ".xml", ".json", ".toml", ".yaml", ".yml"}
_SOURCE: Final = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts", ".sh", ".sql"}
TEXT_SUFFIXES: Final = frozenset(_PROSE | _SOURCE)
"""What a directory is searched for; everything else in it is left out."""
MAX_TEXT_BYTES: Final = 2 * 1024**3
"""The text is held in memory by every trainer."""
_FILE_SEPARATOR: Final = b"\n\n"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A text to train on and one to measure on, with the digest by which peers compare what they hold."""

    train: Bytes
    """uint8[n]"""
    validation: Bytes
    """uint8[m]"""
    digest: Digest
    """BLAKE3 over both parts, each behind its length."""


def load(config: DataConfig, *, window: int = 2) -> Corpus:
    """Read the text that ``config.source`` names and split it.

    Args:
        config: where the text is, and how much of the user's own is held out at its end.
        window: bytes that one sample needs (context + 1); each part must hold at least one.

    Raises:
        ConfigError: the text is missing, unreadable, empty, too long, too short for one window, or not the run's.
    """
    if not 0.0 < config.validation_fraction < 1.0:
        raise ConfigError(
            f"data.validation_fraction is {config.validation_fraction} and must lie between 0 and 1: try 0.05"
        )
    train, validation = _bundled() if config.source == BUNDLED else _held_out(config)
    for name, part in (("training", train), ("validation", validation)):
        if len(part) < window:
            raise ConfigError(
                f"the {name} text of {config.source} has {len(part)} bytes and one sample needs {window}: "
                "give more text, change data.validation_fraction, or lower model.max_seq_len"
            )
    found = digest(train, validation)
    if config.digest not in ("", found.hex()):
        raise ConfigError(
            f"the text of {config.source} has digest {found.hex()[:12]}... and the run was begun with "
            f"{config.digest[:12]}...: use the same text, split alike, or begin a new run"
        )
    return Corpus(train=_as_array(train), validation=_as_array(validation), digest=found)


def digest(train: bytes, validation: bytes) -> Digest:
    """Return BLAKE3 over both parts, each behind its length in 8 little-endian bytes."""
    hasher = blake3.blake3(derive_key_context="barnraise 1 corpus")
    for part in (train, validation):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return Digest(hasher.digest())


def bundled_plays() -> list[bytes]:
    """Return the bundled plays, in order."""
    packed = resources.files("barnraise.data").joinpath("corpus/plays.txt.xz").read_bytes()
    return lzma.decompress(packed).split(PLAY_SEPARATOR)


def _bundled() -> tuple[bytes, bytes]:
    plays = bundled_plays()
    train = [play for index, play in enumerate(plays) if index not in VALIDATION_PLAYS]
    return b"\n".join(train), b"\n".join(plays[index] for index in VALIDATION_PLAYS)


def _held_out(config: DataConfig) -> tuple[bytes, bytes]:
    text = _read(Path(config.source).expanduser())
    cut = len(text) - int(len(text) * config.validation_fraction)
    return text[:cut], text[cut:]


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            return _read_directory(path)
        _check_size(path, path.stat().st_size)
        text = _read_jsonl(path) if path.suffix == ".jsonl" else path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read data.source {path}: {error.strerror}; give a text file, a directory, a .jsonl, or {BUNDLED!r}"
        ) from error
    if not text.strip():
        raise ConfigError(f"{path} holds no text; give a text file, a directory, a .jsonl, or {BUNDLED!r}")
    return text


def _read_directory(directory: Path) -> bytes:
    found = (path for path in directory.rglob("*") if path.suffix.lower() in TEXT_SUFFIXES and path.is_file())
    files = sorted(found, key=lambda path: path.relative_to(directory).as_posix())
    _check_size(directory, sum(path.stat().st_size for path in files))
    text = _FILE_SEPARATOR.join(path.read_bytes() for path in files)
    if not text.strip():
        raise ConfigError(f"{directory} holds no text in files ending in {' '.join(sorted(TEXT_SUFFIXES))}")
    return text


def _read_jsonl(path: Path) -> bytes:
    return _FILE_SEPARATOR.join(_jsonl_texts(path))


def _jsonl_texts(path: Path) -> Iterator[bytes]:
    decode = msgspec.json.Decoder(_Record).decode
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield decode(line).text.encode("utf-8")
        except msgspec.DecodeError as error:
            raise ConfigError(
                f'{path}, line {number}: {error}; each line must be an object with a string field "text"'
            ) from error


class _Record(msgspec.Struct):
    text: str


def _check_size(path: Path, size_bytes: int) -> None:
    if size_bytes > MAX_TEXT_BYTES:
        raise ConfigError(f"{path} holds {size_bytes} bytes and the limit is {MAX_TEXT_BYTES}: give a part of it")


def _as_array(text: bytes) -> Bytes:
    return np.frombuffer(text, dtype=np.uint8)
