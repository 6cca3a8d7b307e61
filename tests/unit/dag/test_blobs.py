"""Vectors on disk: whole or not there, and damage is noticed."""

import subprocess
import sys
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


FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
import numpy as np
from barnraise.dag.blobs import Blobs

blobs = Blobs(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
try:
    blobs.put(np.arange(1000, dtype=np.float32))
except OSError as error:
    sys.exit(0 if error.errno == errno.EFBIG else 2)
sys.exit(3)
"""


def test_a_full_disk_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    """In a process of its own: the limit on a file's size would hold for what the test runner writes, too."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], check=False)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_torn_is_found_missing_and_can_be_written_again(blobs: Blobs) -> None:
    name = blobs.put(VECTOR)
    blobs.path(name).write_bytes(bytes(100))
    assert blobs.find(name) is None
    assert not blobs.path(name).exists()
    blobs.put(VECTOR, name)
    found = blobs.find(name)
    assert found is not None
    assert np.array_equal(found, VECTOR)
