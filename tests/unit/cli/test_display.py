"""Which display is chosen, and that it shows what it is told."""

import io
import json

import pytest

from barnraise.cli.display import JsonDisplay, PlainDisplay, TableDisplay, display, wants_table
from barnraise.observe.view import View, apply, empty
from barnraise.observe.vocabulary import PeerWaiting, RoundCommitted

WORD = "barnraise1-secret"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_a_table_is_for_terminals(stream: io.StringIO, environment: dict[str, str], wanted: bool) -> None:
    assert wants_table(stream, environment) is wanted


def test_programs_get_the_record_as_it_was() -> None:
    stream, view, event = io.StringIO(), empty(1), PeerWaiting(reason="alone")
    record = {"event": "peer.waiting", "reason": "alone", "colour": "red", "source": 0}
    JsonDisplay(stream).event(view, apply(view, 0, event), 0, record, event)
    assert json.loads(stream.getvalue()) == record


def test_plain_lines() -> None:
    stream, view, event = io.StringIO(), empty(1), PeerWaiting(reason="alone")
    PlainDisplay(stream).event(view, apply(view, 0, event), 0, {}, event)
    assert stream.getvalue() == "peer 0 waits: alone\n"


def test_the_table_scrolls_what_happened_and_draws_the_rest() -> None:
    said: list[str] = []
    drawn: list[View] = []
    shown, view = TableDisplay(said.append, drawn.append), empty(1)
    for event in (PeerWaiting(reason="alone"), RoundCommitted(round=0)):
        before, view = view, apply(view, 0, event)
        shown.event(before, view, 0, {}, event)
    shown.tick(view)
    assert said == ["peer 0 waits: alone"]
    assert drawn[-1] == view


def test_on_a_terminal_the_live_table_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with display(json=False) as shown:
        shown.tick(empty(3))
    assert "0/3 peers" in stream.getvalue()


def test_a_person_is_told_the_invitation_and_a_program_only_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    stream, said = io.StringIO(), list[str]()
    PlainDisplay(stream).invite(WORD, "/run/invitation")
    TableDisplay(said.append, lambda view: None).invite(WORD, "/run/invitation")
    assert f"barnraise join {WORD}" in stream.getvalue()
    assert f"barnraise join {WORD}" in said[0]
    stream = io.StringIO()
    JsonDisplay(stream).invite(WORD, "/run/invitation")
    told = capsys.readouterr()
    assert WORD not in stream.getvalue() + told.out + told.err
    assert "barnraise join /run/invitation" in told.err
