"""Vectors on disk: whole or not there, and damage is noticed."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from barnraise.codec.grid import Float32
from barnraise.dag.blobs import Blobs
from barnraise.errors import LocalError
from barnraise.ids import EMPTY_DIGEST
from barnraise.swarm.workspace import root_of

VECTOR = np.arange(1000, dtype=np.float32)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "deeper" / "blobs")


@pytest.fixture
def no_room() -> Iterator[None]:
    """Let no file of this process grow beyond 1 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("vector", [VECTOR, VECTOR[:1], np.zeros(0, np.float32)])
def test_a_vector_comes_back_under_its_hash(blobs: Blobs, vector: Float32) -> None:
    name = blobs.put(vector)
    assert name == root_of(vector)
    assert np.array_equal(blobs.get(name), vector)


def test_what_is_read_is_memory_of_its_own(blobs: Blobs) -> None:
    name = blobs.put(VECTOR)
    blobs.get(name)[:] = 0
    assert np.array_equal(blobs.get(name), VECTOR)


def test_writing_twice_is_writing_once(blobs: Blobs) -> None:
    name = blobs.put(VECTOR)
    before = blobs.path(name).stat()
    assert blobs.put(VECTOR) == name
    assert blobs.path(name).stat().st_ino == before.st_ino


@pytest.mark.parametrize("damage", [b"", b"\xff" * 4000, bytes(3999), bytes(5000)])
def test_a_damaged_file_is_noticed(blobs: Blobs, damage: bytes) -> None:
    name = blobs.put(VECTOR)
    blobs.path(name).write_bytes(damage)
    with pytest.raises(LocalError, match="damaged"):
        blobs.get(name)


def test_one_flipped_bit_is_noticed(blobs: Blobs) -> None:
    name = blobs.put(VECTOR)
    data = bytearray(blobs.path(name).read_bytes())
    data[1234] ^= 1
    blobs.path(name).write_bytes(data)
    with pytest.raises(LocalError, match="damaged"):
        blobs.get(name)


def test_a_missing_file_is_named(blobs: Blobs) -> None:
    with pytest.raises(LocalError, match=EMPTY_DIGEST.hex()):
        blobs.get(EMPTY_DIGEST)


def test_all_but_the_named_are_deleted(blobs: Blobs) -> None:
    kept, dropped = blobs.put(VECTOR), blobs.put(VECTOR + 1)
    blobs.path(dropped).with_suffix(".partial").write_bytes(b"from a crash")
    blobs.keep([kept])
    assert [file.name for file in blobs.path(kept).parent.iterdir()] == [kept.hex()]


def test_a_full_disk_leaves_nothing_under_the_name(blobs: Blobs, no_room: None) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        blobs.put(VECTOR)
    assert list(blobs.path(EMPTY_DIGEST).parent.iterdir()) == []
