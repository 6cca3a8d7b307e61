"""Which codec a name stands for: stages joined by "+", in this order, each at most once, at least one; pure.

    which entries    topk:R  topkc:R  randomk:R  powersgd:K      R: a share, over 0, at most 1; K: a rank, 1 to 256
    what they become fp32 (float32 alone)  grid16 (int16 alone)  fp16  bf16  int8  int8s  int4  int4s  int2
    how bytes shrink zstd:L  lz4:L  snappy                       L: 1 to 9; zstd alone means zstd:3, lz4 alone lz4:1

"topk:0.016+int2+zstd" sends 1.6 % of the entries with 2 bits each and compresses the whole. Where the second stage is
left out, values stay as they are (fp32, grid16), but chosen float32 entries become bf16, which suits any magnitude.
PowerSGD's factors are float32, whatever its shard is; the second stage is about those, and fp32 where it is left out.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from barnraise.codec.blockwise import Blockwise
from barnraise.codec.casts import cast_of
from barnraise.codec.codec import Codec
from barnraise.codec.lossless import LIBRARIES, Lossless
from barnraise.codec.powersgd import PowerSgd
from barnraise.codec.randomk import RandomK
from barnraise.codec.topk import ChunkTopK, TopK
from barnraise.errors import ConfigError

MAX_SPEC_LENGTH: Final = 64
MAX_RANK: Final = 256
MAX_LEVEL: Final = 9
SELECTIONS: Final = ("topk", "topkc", "randomk", "powersgd")
ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType({"fp32": 4, "grid16": 2, "fp16": 2, "bf16": 2})
"""Codecs that write numbers of one size, which are shuffled before they are compressed. The keys are all casts."""
BLOCKWISE: Final = ("int8", "int8s", "int4", "int4s", "int2")

DType = np.dtype[np.int16] | np.dtype[np.float32]
Stages = dict[str, tuple[str, str | None]]
"""``{kind: (name, what follows its colon)}``."""

_STAGE: Final = re.compile(r"([a-z][a-z0-9]*)(?::([0-9.]+(?:e-?[0-9]+)?))?")
_KINDS: Final = ("selection", "values", "bytes")
_KIND_OF: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(SELECTIONS, "selection")
    | dict.fromkeys((*ITEM_BYTES, *BLOCKWISE), "values")
    | dict.fromkeys(LIBRARIES, "bytes")
)


def codec_of(spec: str, dtype: Any) -> Codec:
    """Return the codec that a name stands for, a new one each time: PowerSGD's remembers what it has encoded.

    Args:
        spec: such as ``int8``, ``topk:0.016+int2+zstd``, ``powersgd:4``; see the module.
        dtype: ``np.int16``, the agreed grid, or ``np.float32``.

    Raises:
        ConfigError: there is no such codec; the message names the stages that there are.
    """
    kind: DType = np.dtype(dtype)
    stages = _parsed(spec)
    raw = "fp32" if kind == np.float32 else "grid16"
    selection, number = stages.get("selection", ("", None))
    default = {"": raw, "powersgd": "fp32"}.get(selection, "bf16" if kind == np.float32 else raw)
    name, extra = stages.get("values", (default, None))
    if extra is not None:
        raise ConfigError(f"codec {spec!r}: {name} takes no number. Write {name!r}.")
    values = _leaf(spec, name, np.dtype(np.float32) if selection == "powersgd" else kind)
    dense = Blockwise(8, kind)
    match selection:
        case "topk":
            codec: Codec = TopK(_ratio(spec, selection, number), values, dense)
        case "topkc":
            codec = ChunkTopK(_ratio(spec, selection, number), values, dense)
        case "randomk":
            codec = RandomK(_ratio(spec, selection, number), values)
        case "powersgd":
            codec = PowerSgd(_number(spec, selection, number, 1, MAX_RANK), values, cast_of(raw, kind), dense)
        case _:
            codec = values
    return _compressed(spec, codec, 1 if selection else ITEM_BYTES.get(name, 1), stages)


def _compressed(spec: str, codec: Codec, item_bytes: int, stages: Stages) -> Codec:
    if "bytes" not in stages:
        return codec
    library, number = stages["bytes"]
    default = LIBRARIES[library].default_level
    if number is None or not default:
        if number is not None:
            raise ConfigError(
                f"codec {spec!r}: {library} has no levels. Write {library!r}, or zstd or lz4 with a level."
            )
        return Lossless(codec, library, default, item_bytes)
    return Lossless(codec, library, _number(spec, library, number, 1, MAX_LEVEL), item_bytes)


def _parsed(spec: str) -> Stages:
    """Return the stages by kind, checked for order."""
    if len(spec) > MAX_SPEC_LENGTH:
        raise ConfigError(f"a codec's name of {len(spec)} characters; {MAX_SPEC_LENGTH} are the most. Shorten it.")
    stages: Stages = {}
    reached = -1
    for text in spec.split("+"):
        found = _STAGE.fullmatch(text)
        if found is None or found[1] not in _KIND_OF:
            raise ConfigError(f"codec {spec!r}: there is no stage {text!r}. {_KNOWN}")
        kind = _KIND_OF[found[1]]
        if _KINDS.index(kind) <= reached:
            raise ConfigError(f"codec {spec!r}: {text!r} does not go after what is before it. {_KNOWN}")
        reached = _KINDS.index(kind)
        stages[kind] = found[1], found[2]
    return stages


def _leaf(spec: str, name: str, dtype: DType) -> Codec:
    if name in ("int8s", "int4s"):
        return Blockwise(8 if name == "int8s" else 4, dtype, "stochastic")
    if name in BLOCKWISE:
        return Blockwise({"int8": 8, "int4": 4, "int2": 2}[name], dtype)  # type: ignore[arg-type]
    wrong = "fp32" if dtype == np.int16 else "grid16"
    if name == wrong:
        right = "grid16" if dtype == np.int16 else "fp32"
        raise ConfigError(f"codec {spec!r}: {wrong} is not for {dtype} values. Write {right!r} instead.")
    return cast_of(name, dtype)


def _ratio(spec: str, name: str, number: str | None) -> float:
    try:
        ratio = float(number or "")
    except ValueError:
        ratio = 0.0
    if not 1e-6 <= ratio <= 1.0:
        raise ConfigError(f"codec {spec!r}: {name} takes a share of the entries, 0.000001 to 1, such as {name}:0.01.")
    return ratio


def _number(spec: str, name: str, number: str | None, low: int, high: int) -> int:
    if number is None or not number.isdecimal() or not low <= int(number) <= high:
        raise ConfigError(
            f"codec {spec!r}: {name} takes a whole number, {low} to {high}, such as {name}:{min(4, high)}."
        )
    return int(number)


_KNOWN: Final = (
    "Known, in this order, joined by '+': topk:R, topkc:R, randomk:R, powersgd:K; fp32, grid16, fp16, bf16, int8, int8s, "
    "int4, int4s, int2; zstd:1 to zstd:9, lz4:1 to lz4:9, snappy."
)
