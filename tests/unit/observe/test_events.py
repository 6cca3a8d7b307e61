"""Events: what is written, what happens when it cannot be, what is read."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.errors import ConfigError
from barnraise.observe.events import EventLog, describe
from barnraise.observe.vocabulary import MAX_LINE_BYTES, RoundCommitted, RoundPlanned, decode


def test_an_event_is_one_line_in_the_file_and_on_the_stream(tmp_path: Path) -> None:
    stream = io.StringIO()
    with EventLog(tmp_path / "metrics.jsonl", stream, clock=lambda: 12.3456) as log:
        log.emit("peer.joined", other="12D3KooW")
        log.emit("round.planned", round=3, members=("a", "b"))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == stream.getvalue().splitlines()
    assert json.loads(lines[0]) == {"time": 12.346, "event": "peer.joined", "other": "12D3KooW"}
    assert decode(lines[1].encode())[1] == RoundPlanned(time=12.346, round=3, members=("a", "b"))


def test_what_is_there_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        with EventLog(tmp_path / "metrics.jsonl") as log:
            log.emit("peer.waiting", reason="nobody is there")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_place_that_cannot_be_written_is_the_users_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        EventLog(tmp_path / "nowhere" / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with EventLog(Path("/dev/full"), stream) as log:
        for number in range(3):
            log.emit("round.planned", round=number)
    assert len(stream.getvalue().splitlines()) == 3
    assert capsys.readouterr().err.count(os.strerror(errno.ENOSPC)) == 1


def test_a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, iter([7, 10_000, 10_000])
    monkeypatch.setattr("barnraise.observe.events.os.write", lambda file, data: write(file, data[: next(room)]))
    with EventLog(tmp_path / "metrics.jsonl") as log:
        for number in range(3):
            log.emit("round.planned", round=number)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["round"] for line in lines[1:]] == [1, 2]


class Closed(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_reader_that_went_away_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog(None, Closed())
    for number in range(3):
        log.emit("round.planned", round=number)
    assert capsys.readouterr().err.count("nobody reads") == 1


def test_an_event_in_plain_words() -> None:
    record = {
        "time": 1.0,
        "event": "round.committed",
        "round": 12,
        "vertex": "0123456789abcdef",
        "members": ["a", "b", "c", "d"],
        "took_s": 3.21456,
        "train_loss": None,
    }
    expected = "round.committed round=12 vertex=0123456789ab members=4 took_s=3.215 train_loss=none"
    assert describe(record) == expected
    said = describe({"event": "peer.lost", "other": "12D3KooWabcdef", "reason": "it did not answer"})
    assert said == 'peer.lost other=abcdef reason="it did not answer"'


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"[]",
        b"{}",
        b'{"event": "no.such.thing"}',
        b'{"event": "round.planned"}',
        b'{"event": "round.planned", "round": "three"}',
        b"\xff\xfe",
        b'{"event": "error", "message": "' + b"a" * MAX_LINE_BYTES + b'"}',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(line)


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_a_value_error(line: bytes) -> None:
    try:
        decode(line)
    except ValueError:
        return


def test_a_newer_writer_is_understood() -> None:
    record, event = decode(b'{"time": 1, "event": "round.committed", "round": 1, "colour": "red"}')
    assert record["colour"] == "red"
    assert event == RoundCommitted(time=1.0, round=1)
