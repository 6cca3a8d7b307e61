"""The user's tensors as flat vectors in this machine's memory: the memory itself where that can be, else a copy and back."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from barnraise.collective.buffers import Vector
from barnraise.errors import ConfigError

WIRE_TYPES: Final = (np.dtype(np.float32), np.dtype(np.float64))


class Tensors:
    """Makes vectors of tensors; keeps the memory through which those of other devices go."""

    nothing: Vector = np.empty(0, np.float32)

    def __init__(self) -> None:
        self._pinned: Any = None
        self._stream: Any = None

    @contextlib.contextmanager
    def flat(self, tensor: object) -> Iterator[Vector]:
        """Yield a tensor's values as float32[d] or float64[d]; what they are at the end, the tensor is afterwards.

        If the block raises, the tensor stays as it was, provided that the block has written nothing.

        Raises:
            ConfigError: it is neither a torch tensor nor a numpy array, not of a floating-point type, or read-only.
        """
        if isinstance(tensor, np.ndarray):
            vector = _array_as_vector(tensor)
            yield vector
            if not np.shares_memory(vector, tensor):
                tensor[...] = vector.reshape(tensor.shape)
        else:
            with self._torch(tensor) as vector:
                yield vector

    @contextlib.contextmanager
    def _torch(self, tensor: Any) -> Iterator[Vector]:
        import torch

        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
            what = getattr(tensor, "dtype", type(tensor).__name__)
            raise ConfigError(f"all_reduce takes dense floating-point torch tensors and numpy arrays, not {what}.")
        tensor = tensor.detach()
        if tensor.is_cuda:
            with self._cuda(tensor) as vector:
                yield vector
            return
        wire = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        flat = tensor.to("cpu", wire).contiguous().view(-1)
        yield flat.numpy()
        if flat.data_ptr() != tensor.data_ptr() or flat.dtype != tensor.dtype:
            with torch.no_grad():
                tensor.copy_(flat.view(tensor.shape))

    @contextlib.contextmanager
    def _cuda(self, tensor: Any) -> Iterator[Vector]:
        """Go through pinned memory that is kept, on a stream beside the user's."""
        import torch

        wire = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        size_bytes = tensor.numel() * wire.itemsize
        if self._pinned is None or self._pinned.numel() < size_bytes:
            self._pinned = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
        if self._stream is None or self._stream.device != tensor.device:
            self._stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]  # torch
        host = self._pinned[:size_bytes].view(wire)
        self._copy(host.view(tensor.shape), tensor)
        self._stream.synchronize()
        yield host.numpy()
        self._copy(tensor, host.view(tensor.shape))
        torch.cuda.current_stream(tensor.device).wait_stream(self._stream)
        self._stream.synchronize()  # the next call writes to the host's memory again

    def _copy(self, to: Any, source: Any) -> None:
        """Copy on the side stream, after all that the user has asked for so far; converts on the device, if at all."""
        import torch

        device = source.device if source.is_cuda else to.device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(self._stream):
            if source.is_cuda:
                to.copy_(source.to(to.dtype).contiguous(), non_blocking=True)
            else:
                to.copy_(source.to(device, non_blocking=True))


def _array_as_vector(array: np.ndarray[Any, Any]) -> Vector:
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ConfigError(f"all_reduce takes float16, float32 and float64, this array is {array.dtype}. Convert it.")
    if not array.flags.writeable:
        raise ConfigError("all_reduce writes its result into the array, and this one is read-only. Copy it.")
    if array.dtype in WIRE_TYPES and array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned:
        return array.reshape(-1)
    return array.astype(np.float64).ravel() if array.dtype.itemsize == 8 else array.astype(np.float32).ravel()
