"""Invitations: what goes in comes out, a damaged one is refused, and no error or repr shows the secret."""

import base64
import hashlib
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.errors import ConfigError, LocalError
from barnraise.identity import Identity
from barnraise.ids import PeerId, RunId
from barnraise.runs.invitation import MAX_ADDRESSES, MAX_CHARS, PREFIX, Invitation, parse

PEER = Identity(bytes(32), bytes(32)).peer_id
RUN = RunId(bytes(range(32)))
SECRET = bytes(range(100, 132))
ADDRESSES = (
    f"/ip4/192.168.1.7/tcp/4001/p2p/{PEER}",
    f"/ip6/fd00::7/tcp/65535/p2p/{PEER}",
    f"/dns4/barn.example.org/tcp/1/p2p/{PEER}",
)


def invitation(addresses: tuple[str, ...] = ADDRESSES) -> Invitation:
    return Invitation(run=RUN, addresses=addresses, secret=SECRET)


def word_of(body: bytes) -> str:
    """Return a word whose checksum fits whatever the body is."""
    checksum = hashlib.sha256(b"barnraise invitation" + body).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


@pytest.mark.parametrize("addresses", [(), ADDRESSES[:1], ADDRESSES])
def test_what_goes_in_comes_out(addresses: tuple[str, ...]) -> None:
    assert parse(invitation(addresses).encode()) == invitation(addresses)


def test_an_invitation_is_one_short_word_for_any_shell() -> None:
    word = invitation(ADDRESSES[:1]).encode()
    assert set(word) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert len(word) < 180  # two lines of a terminal


@given(st.integers(0, 2**32 - 1), st.integers(1, 65535), st.binary(min_size=32, max_size=32))
def test_any_ip4_address_survives(host: int, port: int, seed: bytes) -> None:
    text = f"{host >> 24}.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}"
    address = f"/ip4/{text}/tcp/{port}/p2p/{Identity(seed, seed).peer_id}"
    try:
        word = invitation((address,)).encode()
    except LocalError:
        assert host >> 28 == 14 or host == 0  # multicast, or no address at all
    else:
        assert parse(word).addresses == (address,)


def test_more_addresses_than_fit_are_left_out() -> None:
    addresses = tuple(f"/dns4/{'a' * 40}/tcp/{port}/p2p/{PEER}" for port in range(1, 20))
    word = invitation(addresses).encode()
    assert parse(word).addresses == addresses[:MAX_ADDRESSES]
    assert len(word) < MAX_CHARS


@pytest.mark.parametrize("around", ["  {}\n", "barnraise join {}", "> {}"])
def test_what_a_mail_puts_around_does_not_matter(around: str) -> None:
    word = invitation().encode()
    assert parse(around.format(word)) == invitation()
    assert parse(word[:70] + "\n    " + word[70:]) == invitation()


@given(st.data())
def test_every_cut_and_every_changed_character_is_noticed(data: st.DataObject) -> None:
    word = invitation().encode()
    position = data.draw(st.integers(len(PREFIX), len(word) - 1))
    with pytest.raises(ConfigError, match="not whole"):
        parse(word[:position])
    other = data.draw(st.sampled_from("AZaz09-_").filter(lambda character: character != word[position]))
    changed = word[:position] + other + word[position + 1 :]
    padding = base64.urlsafe_b64decode(changed.removeprefix(PREFIX) + "=" * (-len(changed.removeprefix(PREFIX)) % 4))
    if padding != base64.urlsafe_b64decode(word.removeprefix(PREFIX) + "=" * (-len(word.removeprefix(PREFIX)) % 4)):
        with pytest.raises(ConfigError, match="not whole"):
            parse(changed)


@given(st.text(max_size=300))
def test_no_text_after_the_prefix_gets_past_as_anything_but_a_config_error(rest: str) -> None:
    with pytest.raises(ConfigError):
        parse(PREFIX + rest)


@given(st.binary(max_size=200))
def test_no_body_with_a_fitting_checksum_gets_past_as_anything_but_a_config_error(body: bytes) -> None:
    with pytest.raises(ConfigError):
        parse(word_of(body))


KEY = bytes(32)


@pytest.mark.parametrize(
    "body",
    [
        [RUN[:-1], [], SECRET],
        [RUN, [], SECRET + b"x"],
        [RUN, [], SECRET, 1],
        [RUN, [[0, bytes(5), 1, KEY]], SECRET],
        [RUN, [[1, bytes([127, 0, 0, 1]), 1, KEY]], SECRET],
        [RUN, [[5, bytes([127, 0, 0, 1]), 1, KEY]], SECRET],
        [RUN, [[-1, bytes([127, 0, 0, 1]), 1, KEY]], SECRET],
        [RUN, [[0, bytes(4), 1, KEY]], SECRET],
        [RUN, [[0, bytes([224, 0, 0, 1]), 1, KEY]], SECRET],
        [RUN, [[0, bytes([127, 0, 0, 1]), 0, KEY]], SECRET],
        [RUN, [[0, bytes([127, 0, 0, 1]), 65536, KEY]], SECRET],
        [RUN, [[2, b"a/tcp/1/p2p-circuit", 1, KEY]], SECRET],
        [RUN, [[2, b"a" * 200, 1, KEY]], SECRET],
        [RUN, [[2, b"\xff", 1, KEY]], SECRET],
        [RUN, [[0, bytes([127, 0, 0, 1]), 1, KEY]] * (MAX_ADDRESSES + 1), SECRET],
        [RUN, "x", SECRET],
        {"run": RUN},
    ],
)
def test_a_well_summed_word_of_nonsense_is_refused(body: object) -> None:
    with pytest.raises(ConfigError, match="not whole"):
        parse(word_of(msgspec.msgpack.encode(body)))


def test_an_endless_word_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ConfigError, match="1000011 of them"):
        parse(PREFIX + "A" * 1_000_000)


@pytest.mark.parametrize("text", ["", "nosuchfile", "brk1abc", "a\0b", "x" * 5000])
def test_what_is_no_invitation_is_called_so(text: str) -> None:
    with pytest.raises(ConfigError, match="starts with barnraise1-"):
        parse(text)


def test_a_file_is_written_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "invitation"
    path.write_text("what was there before")
    invitation().write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert parse(str(path)) == invitation()
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        parse(str(path))


def test_a_file_without_an_invitation_or_with_half_of_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "invitation"
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no invitation"):
        parse(str(path))
    path.write_text(invitation().encode()[:-9])
    with pytest.raises(ConfigError, match=r"the file .*invitation is not whole"):
        parse(str(path))
    path.write_bytes(b"x" * 1_000_000)
    with pytest.raises(ConfigError, match="over 4096 bytes"):
        parse(str(path))


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="no invitation can be written there"):
        invitation().write(tmp_path / "taken")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_no_error_and_no_repr_shows_the_secret() -> None:
    word = invitation().encode()
    tail = word[-60:]
    assert repr(SECRET)[2:20] not in repr(invitation())
    with pytest.raises(ConfigError) as caught:
        parse(word[:-1])
    assert tail[:20] not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "wrong",
    [
        Invitation(run=RunId(b"short"), addresses=(), secret=SECRET),
        Invitation(run=RUN, addresses=(), secret=b"short"),
        Invitation(run=RUN, addresses=("/ip4/1.2.3.4/udp/1",), secret=SECRET),
        Invitation(run=RUN, addresses=(f"/ip4/0.0.0.0/tcp/1/p2p/{PEER}",), secret=SECRET),
        Invitation(run=RUN, addresses=(f"/ip4/1.2.3.4/tcp/1/p2p/{PeerId('12D3KooW' + 'z' * 44)}",), secret=SECRET),
    ],
)
def test_an_invitation_that_could_not_be_read_is_not_made(wrong: Invitation) -> None:
    with pytest.raises(LocalError):
        wrong.encode()
