"""Vectors sealed on disk: they come back, nothing of them can be read or changed there, and a wrong key is told."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from barnraise.codec.grid import Float32
from barnraise.config import PeerConfig
from barnraise.dag import sealing
from barnraise.dag.blobs import Blobs
from barnraise.dag.sealing import MEMORY_VARIABLE, PASSPHRASE_VARIABLE, PIECE_BYTES, SUFFIX, Seal, SealedBlobs, Source
from barnraise.errors import ConfigError, LocalError
from barnraise.identity import ClusterKey
from barnraise.ids import Digest
from barnraise.swarm.workspace import as_bytes, root_of

KEY = ClusterKey(b"k" * 32)
VECTOR = np.arange(1000, dtype=np.float32)
CHEAP = 4
"""log2 of scrypt's N: what keeps a guesser busy would keep a test busy."""


def seal(secret: bytes = b"s" * 32) -> Seal:
    return Seal("cluster", secret)


@pytest.fixture
def blobs(tmp_path: Path) -> SealedBlobs:
    return SealedBlobs(tmp_path / "blobs", seal(), made(tmp_path / "memory"))


def made(path: Path) -> Path:
    path.mkdir()
    return path


def config_of(home: Path, encrypt: Source | str) -> PeerConfig:
    home.mkdir(exist_ok=True)
    return PeerConfig(data_dir=home, cluster_key_file=home / "cluster.key", encrypt=encrypt)  # type: ignore[arg-type]


@pytest.fixture
def memory(tmp_path: Path) -> dict[str, str]:
    """An environment in which a directory of the test's own passes for one in memory."""
    return {MEMORY_VARIABLE: str(made(tmp_path / "shm"))}


SIZES = [0, 1, PIECE_BYTES // 4 - 1, PIECE_BYTES // 4, PIECE_BYTES // 4 + 1, PIECE_BYTES // 2]


@pytest.mark.parametrize("size", SIZES)
def test_a_vector_comes_back_and_the_disk_never_saw_it(blobs: SealedBlobs, size: int) -> None:
    vector = np.arange(size, dtype=np.float32) + 1
    name = blobs.put(vector)
    assert name == root_of(vector)
    assert np.array_equal(blobs.get(name), vector)
    data = blobs.path(name).read_bytes()
    assert len(data) == 92 + 4 * size + 16 * -(-4 * size // PIECE_BYTES)
    for start in range(0, 4 * size - 64, max(64, size)):
        assert as_bytes(vector)[start : start + 64].tobytes() not in data


def test_the_same_vector_sealed_twice_shows_nothing_alike() -> None:
    one, other = (b"".join(seal().sealed(as_bytes(VECTOR))) for _ in range(2))
    assert one[92:] != other[92:]


def every_part(data: bytes) -> list[bytes]:
    flipped = []
    for place in [*range(93), len(data) // 2, len(data) - 1]:
        changed = bytearray(data)
        changed[place] ^= 1
        flipped.append(bytes(changed))
    return [*flipped, data[:-1], data + b"\0", data[:92], data[:50], b""]


def test_any_change_is_noticed(blobs: SealedBlobs) -> None:
    name = blobs.put(VECTOR)
    for data in every_part(blobs.path(name).read_bytes()):
        blobs.path(name).write_bytes(data)
        with pytest.raises((LocalError, ConfigError)):
            blobs.get(name)


def test_pieces_cannot_be_exchanged_or_cut_off(blobs: SealedBlobs) -> None:
    vector = np.zeros(PIECE_BYTES // 2, np.float32)
    name = blobs.put(vector)
    data = blobs.path(name).read_bytes()
    head, one, other = data[:92], data[92 : 92 + PIECE_BYTES + 16], data[92 + PIECE_BYTES + 16 :]
    for wrong in (head + other + one, head + one + one, head + one):
        blobs.path(name).write_bytes(wrong)
        with pytest.raises(LocalError, match=r"damaged|cut off"):
            blobs.get(name)


def test_one_vector_under_the_name_of_another_is_noticed(blobs: SealedBlobs) -> None:
    one, other = blobs.put(VECTOR), blobs.put(VECTOR + 1)
    blobs.path(one).write_bytes(blobs.path(other).read_bytes())
    with pytest.raises(LocalError, match="damaged"):
        blobs.get(one)


def test_what_is_damaged_is_found_missing_and_a_wrong_key_deletes_nothing(tmp_path: Path, blobs: SealedBlobs) -> None:
    name = blobs.put(VECTOR)
    stranger = SealedBlobs(tmp_path / "elsewhere", seal(b"t" * 32), tmp_path / "memory")
    stranger.path(name).write_bytes(blobs.path(name).read_bytes())
    with pytest.raises(ConfigError, match="is sealed by another cluster key"):
        stranger.find(name)
    assert stranger.path(name).exists()
    blobs.path(name).write_bytes(blobs.path(name).read_bytes()[:-1])
    assert blobs.find(name) is None
    assert not blobs.path(name).exists()


def test_a_wrong_key_is_told_at_the_start(tmp_path: Path, blobs: SealedBlobs) -> None:
    blobs.put(VECTOR)
    with pytest.raises(ConfigError, match=r"sealed by another cluster key. Give the one that this peer had"):
        SealedBlobs(tmp_path / "blobs", seal(b"t" * 32), tmp_path / "memory")
    with pytest.raises(ConfigError, match=r"sealed by the cluster key. Set encrypt = 'cluster'"):
        SealedBlobs(tmp_path / "blobs", Seal("passphrase", b"x", log2_n=CHEAP), tmp_path / "memory")


def test_a_passphrase_opens_what_it_sealed_and_another_one_does_not(tmp_path: Path) -> None:
    memory = made(tmp_path / "memory")
    name = SealedBlobs(tmp_path / "blobs", Seal("passphrase", b"correct", log2_n=CHEAP), memory).put(VECTOR)
    again = SealedBlobs(tmp_path / "blobs", Seal("passphrase", b"correct", log2_n=CHEAP), memory)  # another salt
    assert np.array_equal(again.get(name), VECTOR)
    with pytest.raises(ConfigError, match="is sealed by another passphrase"):
        SealedBlobs(tmp_path / "blobs", Seal("passphrase", b"Correct", log2_n=CHEAP), memory)


def test_a_header_does_not_ask_for_more_memory_than_a_limit(tmp_path: Path) -> None:
    blobs = SealedBlobs(tmp_path / "blobs", Seal("passphrase", b"x", log2_n=CHEAP), made(tmp_path / "memory"))
    name = blobs.put(VECTOR)
    data = bytearray(blobs.path(name).read_bytes())
    data[19] = 40
    blobs.path(name).write_bytes(data)
    with pytest.raises(LocalError, match="no sealed file of this version"):
        blobs.get(name)


def test_plain_copies_are_in_memory_alone_and_go(tmp_path: Path, blobs: SealedBlobs) -> None:
    name = blobs.put(VECTOR)
    copy = blobs.plain(name)
    assert copy.parent == blobs.scratch == tmp_path / "memory"
    assert copy.read_bytes() == as_bytes(VECTOR)
    (blobs.scratch / "update.f32").write_bytes(b"of the trainer")
    with blobs.hold(name):
        blobs.keep([name])
        assert copy.exists()
    blobs.keep([name])
    assert not copy.exists()
    assert blobs.path(name).exists()
    assert (blobs.scratch / "update.f32").exists()
    assert blobs.plain(name).exists()
    blobs.close()
    assert not blobs.scratch.exists()


def test_what_is_not_there_has_no_plain_copy(blobs: SealedBlobs) -> None:
    assert not blobs.plain(Digest(bytes(32))).exists()


def test_what_was_fetched_in_memory_is_sealed(blobs: SealedBlobs) -> None:
    fetched = blobs.scratch / f"{root_of(VECTOR).hex()}.partial"
    fetched.write_bytes(as_bytes(VECTOR))
    blobs.take(root_of(VECTOR), fetched)
    assert not fetched.exists()
    assert np.array_equal(blobs.get(root_of(VECTOR)), VECTOR)


def test_what_lay_in_the_open_is_sealed_and_removed(tmp_path: Path, memory: dict[str, str]) -> None:
    home = tmp_path / "home"
    config = config_of(home, "")
    plain = sealing.open_blobs(config, KEY, memory)
    name, torn = plain.put(VECTOR), plain.put(VECTOR + 1)
    plain.path(torn).write_bytes(b"torn")
    (home / "trainer").mkdir()
    leftovers = [home / "update.f32", home / "trainer" / "round-00000001.safetensors"]
    for file in leftovers:
        file.write_bytes(b"plain")
    sealed = sealing.open_blobs(config_of(home, "cluster"), KEY, memory)
    assert [file.name for file in (home / "blobs").iterdir()] == [name.hex() + SUFFIX]
    assert not any(file.exists() for file in leftovers)
    assert np.array_equal(sealed.get(name), VECTOR)
    with pytest.raises(ConfigError, match=r"is sealed by the cluster key. Set encrypt = 'cluster', as it was"):
        sealing.open_blobs(config, KEY, memory)


def test_the_passphrase_is_taken_out_of_the_environment(
    tmp_path: Path, memory: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seal.__init__, "__defaults__", (b"", CHEAP))
    config = config_of(tmp_path / "home", "passphrase")
    with pytest.raises(ConfigError, match=f"there is none. Set {PASSPHRASE_VARIABLE} before"):
        sealing.open_blobs(config, KEY, memory)
    memory[PASSPHRASE_VARIABLE] = "correct horse"
    name = sealing.open_blobs(config, KEY, memory).put(VECTOR)
    assert PASSPHRASE_VARIABLE not in memory
    memory[PASSPHRASE_VARIABLE] = "correct horse"
    assert np.array_equal(sealing.open_blobs(config, KEY, memory).get(name), VECTOR)
    memory[PASSPHRASE_VARIABLE] = "battery staple"
    with pytest.raises(ConfigError, match="sealed by another passphrase"):
        sealing.open_blobs(config, KEY, memory)


def test_the_directory_in_memory_is_ours_alone_and_empty(tmp_path: Path, memory: dict[str, str]) -> None:
    home = made(tmp_path / "home")
    scratch = sealing.scratch_of(home, memory)
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    (scratch / "of a life before").write_bytes(b"")
    assert sealing.scratch_of(home, memory) == scratch
    assert list(scratch.iterdir()) == []
    assert sealing.scratch_of(made(tmp_path / "other"), memory) != scratch


def test_a_link_in_its_place_is_not_followed(tmp_path: Path, memory: dict[str, str]) -> None:
    home, elsewhere = made(tmp_path / "home"), made(tmp_path / "elsewhere")
    (elsewhere / "precious").write_bytes(b"")
    sealing.scratch_place(home, memory).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="no directory for plain copies can be made there"):
        sealing.scratch_of(home, memory)
    assert (elsewhere / "precious").exists()


def test_memory_is_where_the_system_says_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_in_memory", lambda: frozenset({tmp_path}))
    assert sealing.memory_place({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path
    with pytest.raises(ConfigError, match=f"name a directory on it: {MEMORY_VARIABLE}"):
        sealing.memory_place({})
    assert sealing.memory_place({MEMORY_VARIABLE: "/named"}) == Path("/named")


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="this system mounts no /dev/shm")
def test_linux_tells_of_its_shared_memory() -> None:
    assert Path("/dev/shm") in sealing._in_memory()


def test_plain_vectors_need_no_key(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    name = blobs.put(VECTOR)
    assert sealing.damage_of(blobs.path(name), name, None) == ""
    blobs.path(name).write_bytes(b"123")
    assert "no whole number" in sealing.damage_of(blobs.path(name), name, None)
    blobs.path(name).write_bytes(b"1234")
    assert "another hash" in sealing.damage_of(blobs.path(name), name, None)
    assert "No such file" in sealing.damage_of(tmp_path / "nothing", name, None)


def test_sealed_vectors_are_examined_with_their_key(blobs: SealedBlobs) -> None:
    name: Digest = blobs.put(VECTOR)
    empty: Float32 = np.zeros(0, np.float32)
    assert sealing.damage_of(blobs.path(name), name, seal()) == ""
    assert "no key was given" in sealing.damage_of(blobs.path(name), name, None)
    assert "another cluster key" in sealing.damage_of(blobs.path(name), name, seal(b"t" * 32))
    assert sealing.damage_of(blobs.path(blobs.put(empty)), root_of(empty), seal()) == ""
