"""Identities, key files and the cluster key: what holds, what is refused, and that libp2p agrees on peer ids."""

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.errors import ConfigError, LocalError
from barnraise.identity import (
    BINDING_CONTEXT,
    ED25519_SIGNATURE_BYTES,
    MAX_KEY_FILE_BYTES,
    PUBLIC_IDENTITY_BYTES,
    SIGNATURE_BYTES,
    ClusterKey,
    Identity,
    PublicIdentity,
    ed25519_of,
    peer_id_of,
)
from barnraise.ids import PeerId

ALICE = Identity(bytes(32), bytes(range(32)))
BOB = Identity(bytes([1]) * 32, bytes([2]) * 32)
KEY = ClusterKey(bytes(range(32)))


def test_libp2p_gives_the_same_peer_id_to_the_same_seed() -> None:
    libp2p_keys = pytest.importorskip("libp2p.crypto.ed25519")
    libp2p_id = pytest.importorskip("libp2p.peer.id")
    pair = libp2p_keys.create_new_key_pair(ALICE.ed25519_seed)
    assert str(libp2p_id.ID.from_pubkey(pair.public_key)) == ALICE.peer_id


def test_peer_id_of_a_known_key() -> None:
    # Ed25519's public key of the zero seed; the id is go-libp2p's for it.
    public = bytes.fromhex("3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29")
    assert peer_id_of(public) == ALICE.peer_id == "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def test_signature_holds_for_its_context_message_and_signer_only() -> None:
    signature = ALICE.sign("vote", b"yes")
    assert len(signature) == SIGNATURE_BYTES
    assert ALICE.public.verify("vote", b"yes", signature)
    assert not ALICE.public.verify("commitment", b"yes", signature)
    assert not ALICE.public.verify("vote", b"no", signature)
    assert not BOB.public.verify("vote", b"yes", signature)


def test_context_and_message_do_not_run_into_each_other() -> None:
    assert not ALICE.public.verify("votey", b"es", ALICE.sign("vote", b"yes"))


@pytest.mark.parametrize("position", [0, ED25519_SIGNATURE_BYTES - 1, ED25519_SIGNATURE_BYTES, SIGNATURE_BYTES - 1])
def test_both_halves_of_a_signature_must_hold(position: int) -> None:
    signature = bytearray(ALICE.sign("vote", b"yes"))
    signature[position] ^= 1
    assert not ALICE.public.verify("vote", b"yes", bytes(signature))


@given(st.binary(max_size=SIGNATURE_BYTES + 1))
def test_no_bytes_pass_for_a_signature(signature: bytes) -> None:
    assert not ALICE.public.verify("vote", b"yes", signature)


@pytest.mark.parametrize("context", ["", "x" * 256, "é" * 128])
def test_context_has_a_length(context: str) -> None:
    with pytest.raises(LocalError, match="has 1 "):
        ALICE.sign(context, b"")


def test_public_identity_survives_its_encoding() -> None:
    encoded = ALICE.public.encode()
    assert len(encoded) == PUBLIC_IDENTITY_BYTES
    assert PublicIdentity.decode(encoded) == ALICE.public


def test_another_peers_ml_dsa_key_is_refused() -> None:
    borrowed = dataclasses.replace(ALICE.public, ml_dsa=BOB.public.ml_dsa)
    with pytest.raises(ValueError, match="not signed by both"):
        PublicIdentity.decode(borrowed.encode())


def test_binding_signed_by_only_one_of_the_keys_is_refused() -> None:
    message = ALICE.public.ed25519 + BOB.public.ml_dsa
    halves = ALICE.sign(BINDING_CONTEXT, message), BOB.sign(BINDING_CONTEXT, message)
    for one, other in (halves, halves[::-1]):
        binding = one[:ED25519_SIGNATURE_BYTES] + other[ED25519_SIGNATURE_BYTES:]
        mixed = dataclasses.replace(ALICE.public, ml_dsa=BOB.public.ml_dsa, binding=binding)
        if one is halves[0]:
            assert PublicIdentity.decode(mixed.encode()).peer_id == ALICE.peer_id  # both really signed
        else:
            with pytest.raises(ValueError, match="not signed by both"):
                PublicIdentity.decode(mixed.encode())


def test_a_claim_to_a_key_takes_the_peers_own_signature_alone() -> None:
    assert PublicIdentity.decode_claim(ALICE.public.encode()) == ALICE.public
    borrowed = dataclasses.replace(ALICE.public, ml_dsa=BOB.public.ml_dsa)
    with pytest.raises(ValueError, match="not signed by its key"):
        PublicIdentity.decode_claim(borrowed.encode())
    binding = ALICE.sign(BINDING_CONTEXT, ALICE.public.ed25519 + BOB.public.ml_dsa)
    claimed = dataclasses.replace(borrowed, binding=binding)  # with a signature by the wrong ML-DSA key
    identity = PublicIdentity.decode_claim(claimed.encode())
    with pytest.raises(ValueError, match="not signed by both"):
        PublicIdentity.decode(claimed.encode())
    assert not identity.verify("vote", b"yes", ALICE.sign("vote", b"yes"))  # it has no such key, so it signs nothing
    for data in (b"", bytes(PUBLIC_IDENTITY_BYTES)):
        with pytest.raises(ValueError, match="identity"):
            PublicIdentity.decode_claim(data)


@given(st.binary(max_size=PUBLIC_IDENTITY_BYTES + 2))
def test_decode_refuses_any_other_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="identity"):
        PublicIdentity.decode(data)


@given(st.integers(0, PUBLIC_IDENTITY_BYTES - 1), st.integers(1, 255))
def test_decode_refuses_an_identity_with_one_byte_changed(position: int, change: int) -> None:
    data = bytearray(ALICE.public.encode())
    data[position] ^= change
    with pytest.raises(ValueError, match="identity"):
        PublicIdentity.decode(bytes(data))


def test_secrets_do_not_show_in_repr() -> None:
    assert ALICE.ed25519_seed.hex() not in repr(ALICE)
    assert KEY.to_text() not in repr(KEY)


def test_key_file_gives_the_same_identity_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "identity.key"
    created = Identity.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert Identity.load_or_create(path).public == Identity.load(path).public == created.public


def test_key_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Identity.create(tmp_path / "identity.key")
    finally:
        os.umask(before)
    assert (tmp_path / "identity.key").stat().st_mode & 0o777 == 0o600


def test_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    Identity.create(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        Identity.create(path)
    assert path.read_bytes() == before


def test_key_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists already"):
        Identity.create(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_key_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    Identity.create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=r"chmod 600"):
        Identity.load(path)


@pytest.mark.parametrize("load", [Identity.load, ClusterKey.load])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"barnraise identity 1\n", b"barnraise identity 2\n", b"x" * (MAX_KEY_FILE_BYTES + 1)]
)
def test_any_other_file_is_refused_in_plain_words(load: object, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=str(path)):
        load(path)  # type: ignore[operator]


def test_damaged_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    Identity.create(path)
    text = path.read_text()
    for damaged in (text[:-1], text[:60], text + "x", text.replace(text[30], "0" if text[30] != "0" else "1", 1)):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match="damaged"):
            Identity.load(path)


def test_missing_and_odd_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Identity.load(tmp_path / "missing")
    with pytest.raises(ConfigError):
        Identity.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Identity.create(tmp_path / "file" / "identity.key")


def test_full_disk_leaves_no_half_written_key(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which only some systems have")
    from barnraise import identity

    descriptor = os.open("/dev/full", os.O_WRONLY)
    path = tmp_path / "identity.key"
    path.touch()
    with pytest.raises(ConfigError, match="Free some space"):
        identity._write_and_sync(descriptor, path, "secret", "an identity")
    assert not path.exists()


def test_cluster_key_survives_file_and_text(tmp_path: Path) -> None:
    created = ClusterKey.create(tmp_path / "cluster.key")
    assert (tmp_path / "cluster.key").stat().st_mode & 0o777 == 0o600
    text = created.to_text()
    assert text.isalnum()
    assert len(text) == 62
    for again in (ClusterKey.load(tmp_path / "cluster.key"), ClusterKey.from_text(f" {text.upper()}\n")):
        assert again.derive(b"x") == created.derive(b"x")


@given(st.integers(0, 61), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_mistyped_cluster_key_is_noticed(position: int, letter: str) -> None:
    text = KEY.to_text()
    mistyped = text[:position] + letter + text[position + 1 :]
    if mistyped != text:
        with pytest.raises(ValueError, match="cluster key"):
            ClusterKey.from_text(mistyped)


@given(st.text(max_size=80))
def test_no_text_passes_for_a_cluster_key(text: str) -> None:
    for attempt in (text, "brk1" + text):
        with pytest.raises(ValueError, match="cluster key"):
            ClusterKey.from_text(attempt)


def test_derived_keys_differ_by_purpose_and_cluster() -> None:
    assert len(KEY.derive(b"one", 48)) == 48
    assert len({KEY.derive(b"one"), KEY.derive(b"two"), ClusterKey.generate().derive(b"one")}) == 3


def test_proof_is_good_for_its_role_channel_and_key_only() -> None:
    proof = KEY.prove(b"dialer", b"channel")
    assert KEY.check(b"dialer", b"channel", proof)
    assert not KEY.check(b"listener", b"channel", proof)
    assert not KEY.check(b"dialer", b"channel 2", proof)
    assert not KEY.check(b"dialerc", b"hannel", proof)
    assert not ClusterKey.generate().check(b"dialer", b"channel", proof)
    assert not KEY.check(b"dialer", b"channel", b"")


def test_cluster_key_has_32_bytes() -> None:
    with pytest.raises(LocalError, match="31 bytes"):
        ClusterKey(bytes(31))


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_gives_its_key_back(key: bytes) -> None:
    assert ed25519_of(peer_id_of(key)) == key


@pytest.mark.parametrize("text", ["", "12D3KooW", "0" * 52, "12D3KooW" + "z" * 44, ALICE.peer_id + "1", "é" * 52])
def test_what_is_no_peer_id_gives_no_key(text: str) -> None:
    with pytest.raises(ValueError, match=r"peer id|substring"):
        ed25519_of(PeerId(text))


def test_a_cluster_key_is_kept_once_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    for _ in range(2):
        assert ClusterKey.keep(KEY.secret, path).to_text() == KEY.to_text()
    assert ClusterKey.load(path).to_text() == KEY.to_text()
    with pytest.raises(ConfigError, match="another cluster"):
        ClusterKey.keep(b"x" * 32, path)
    assert ClusterKey.load(path).to_text() == KEY.to_text()
