"""Compression of tensors for whoever moves them by other means than a collective: bytes that describe themselves.

A message is a list in msgpack: format version, codec, shape, type, whether it was a torch tensor, the seed of random
choices, and the codec's bytes. Tensors of other types than float32 are encoded as float32.
"""

import math
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import numpy as np

from barnraise.codec.chain import MAX_SPEC_LENGTH, codec_of
from barnraise.codec.codec import Malformed, Place
from barnraise.codec.feedback import Feedback
from barnraise.codec.grid import Float32
from barnraise.codec.scattered import decoded
from barnraise.errors import ConfigError

FORMAT_VERSION: Final = 1
MAX_ELEMENTS: Final = 1 << 28
"""Of a tensor in a message unless the caller says otherwise: 1 GiB of float32."""
MAX_DIMENSIONS: Final = 16
HEADER_BYTES: Final = 512
"""The most that a message has beyond its payload."""

DType = Literal["float16", "bfloat16", "float32", "float64"]
DTYPES: Final[tuple[str, ...]] = get_args(DType)

Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class _Message(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    format: int
    codec: Annotated[str, msgspec.Meta(max_length=MAX_SPEC_LENGTH)]
    shape: Annotated[tuple[Length, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    dtype: DType
    is_tensor: bool
    seed: int
    payload: bytes


class Compressor:
    """Turns tensors into small messages and back; what is lost of one update is made good by the next (error feedback).

    `compress` counts on its message's being used. If it was not, `rollback` before the next one, or what was sent in
    vain is lost.

    >>> compressor = Compressor("topk:0.1")
    >>> update = np.arange(-4, 6, dtype=np.float32)
    >>> compressor.decompress(compressor.compress(update))
    array([0., 0., 0., 0., 0., 0., 0., 0., 0., 5.], dtype=float32)
    >>> compressor.decompress(compressor.compress(np.zeros(10, np.float32)))
    array([-4.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.,  0.], dtype=float32)
    """

    def __init__(self, strategy: str = "topk:0.1", error_feedback: bool = True) -> None:
        """Compress by a codec.

        Args:
            strategy: such as ``int8``, ``topk:0.016+int2+zstd``, ``powersgd:4``; `barnraise.codec.chain` names all.
            error_feedback: keep what is lost and add it to the next tensor of the same name.

        Raises:
            ConfigError: there is no such codec.
        """
        self.strategy = codec_of(strategy, np.float32).name
        self._error_feedback = error_feedback
        self._streams: dict[str, Feedback] = {}
        self._count = 0

    def compress(self, tensor: Any, name: str = "") -> bytes:
        """Return the message of a tensor.

        Args:
            tensor: a torch tensor on any device or a numpy array, of any shape, of a floating-point type up to float64.
            name: which of several tensors this is. Each has its own residual, and one shape for good.

        Raises:
            ConfigError: it is none of these, it is not finite, or its size is another than before.
        """
        values, shape, dtype, is_tensor = _taken(tensor)
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Feedback(codec_of(self.strategy, np.float32), len(values))
        if len(values) != len(stream.residual):
            raise ConfigError(
                f"tensor {name!r} has {len(values)} elements and had {len(stream.residual)}. Give it another name."
            )
        self._count += 1
        out = np.empty(stream.codec.bound_bytes(len(values)), np.uint8)
        place = Place(self._count, 0)
        if self._error_feedback:
            stream.commit()
            size = stream.encode(values, out, place)
        else:
            size = stream.codec.encode(values, out, place)
        message = _Message(
            format=FORMAT_VERSION,
            codec=self.strategy,
            shape=shape,
            dtype=dtype,
            is_tensor=is_tensor,
            seed=self._count,
            payload=out[:size].tobytes(),
        )
        return msgspec.msgpack.encode(message)

    def rollback(self) -> None:
        """Keep each name's residual as it was before its last `compress`, whose message was not used."""
        for stream in self._streams.values():
            stream.restore()

    def decompress(self, data: bytes, max_elements: int = MAX_ELEMENTS) -> Any:
        """Return what a message decodes to, a tensor or an array as was compressed, on the CPU.

        Any `Compressor` reads any message. The bytes may come from strangers.

        Args:
            data: the message.
            max_elements: refuse tensors that are larger.

        Raises:
            Malformed: no compressor made it, or it is larger.
        """
        message = _checked(data, max_elements)
        try:
            codec = codec_of(message.codec, np.float32)
        except ConfigError as error:
            raise Malformed(str(error)) from error
        count = math.prod(message.shape)
        payload = np.frombuffer(message.payload, np.uint8)
        if len(payload) > codec.bound_bytes(count):
            raise Malformed(f"{len(payload)} bytes are more than {count} elements of {codec.name} take")
        values = decoded(codec, payload, count, Place(message.seed, 0)).astype(np.float32, copy=False)
        return _given(values, message)


def _checked(data: bytes, max_elements: int) -> _Message:
    if len(data) > HEADER_BYTES + 9 * max_elements:
        raise Malformed(f"{len(data)} bytes are more than {max_elements} elements can take. Raise max_elements.")
    try:
        message = msgspec.msgpack.decode(data, type=_Message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"it is no message: {error}") from error
    if message.format != FORMAT_VERSION:
        raise Malformed(f"it is of format {message.format}, and {FORMAT_VERSION} is known. Use the sender's version.")
    # Of a shape with a 0 as well, or what makes arrays says that the rest is too long.
    if math.prod(max(length, 1) for length in message.shape) > max_elements:
        raise Malformed(f"a shape of {message.shape}; at most {max_elements} elements. Raise max_elements.")
    return message


def _taken(tensor: Any) -> tuple[Float32, tuple[int, ...], DType, bool]:
    """Return a tensor's values, flat, and what there is to say of it."""
    told = str(getattr(tensor, "dtype", type(tensor).__name__))
    is_tensor, dtype = told.startswith("torch."), told.removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConfigError(f"a compressor takes floating-point torch tensors and numpy arrays, not {dtype}. Convert it.")
    shape = tuple(int(length) for length in tensor.shape)
    if len(shape) > MAX_DIMENSIONS:
        raise ConfigError(f"a tensor of {len(shape)} dimensions; {MAX_DIMENSIONS} are the most. Reshape it.")
    with np.errstate(over="ignore"):
        values = _flat(tensor) if is_tensor else np.ascontiguousarray(tensor, np.float32).reshape(-1)
    if not np.isfinite(values).all():
        raise ConfigError("the tensor has values that are not finite in float32. Do not send it.")
    return values, shape, dtype, is_tensor  # type: ignore[return-value]


def _flat(tensor: Any) -> Float32:
    import torch

    values: Float32 = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy()
    return values


def _given(values: Float32, message: _Message) -> Any:
    """Return decoded values as the message says."""
    if message.is_tensor:
        import torch

        return torch.from_numpy(values).to(getattr(torch, message.dtype)).reshape(message.shape)
    if message.dtype == "bfloat16":
        raise Malformed("numpy has no bfloat16")
    with np.errstate(over="ignore"):
        return values.astype(message.dtype).reshape(message.shape)
