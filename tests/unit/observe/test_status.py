"""The file in which a peer says how it is: whole at every moment, and written no more often than anybody looks."""

from pathlib import Path

import msgspec
import pytest

from barnraise.errors import ConfigError
from barnraise.observe.counters import Meter
from barnraise.observe.status import IDLE_EVERY_S, Connected, LinkRow, MemberStatus, Status, StatusFile, read

STATUS = Status(
    time=1.0,
    pid=1,
    run="00",
    peer="me",
    round=0,
    rounds=3,
    phase="training",
    members=(MemberStatus(peer="me", counts_from=0),),
    connected=(Connected(peer="other", silent_s=0.5, latency_s=0.01, bandwidth_bytes_s=1e6),),
    links=(LinkRow(peer="me", uplink_kb_s=5, latencies_us=(0,), bandwidths_kb_s=(0,)),),
    parameters=100,
    exchange=Meter().plus(took_s=0.5, sent_bytes=10, received_bytes=20, failed=1),
)


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def changed(**changes: object) -> Status:
    return msgspec.structs.replace(STATUS, **changes)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read(tmp_path / "status.json") is None
    StatusFile(tmp_path / "status.json").write(STATUS)
    assert read(tmp_path / "status.json") == STATUS
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_it_is_written_at_most_once_a_second_and_seldom_when_nothing_happens(tmp_path: Path) -> None:
    path, clock = tmp_path / "status.json", Clock()
    file = StatusFile(path, clock)
    file.write(STATUS)
    steps = (
        (0.5, changed(time=2.0, round=1), False),
        (0.5, changed(time=2.0, round=1), True),
        (1.0, changed(time=3.0, round=1, connected=(Connected(peer="other", silent_s=1.5),)), False),
        (0.1, changed(time=4.0, round=1, connected=()), True),
        (1.0, changed(time=5.0, round=1, connected=(), links=()), False),
        (IDLE_EVERY_S, changed(time=9.0, round=1, connected=(), links=()), True),
    )
    for passed, status, is_written in steps:
        clock.now += passed
        file.write(status)
        assert (read(path) == status) is is_written
    file.write(changed(time=9.1, phase="finished"), is_last=True)
    found = read(path)
    assert found is not None
    assert found.phase == "finished"


def test_a_full_disk_is_told_once_and_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    file = StatusFile(tmp_path / "gone" / "status.json", clock)
    for _ in range(3):
        file.write(STATUS)
        clock.now += 10
    assert capsys.readouterr().err.count("The run goes on.") == 1


@pytest.mark.parametrize("text", ["", "[]", '{"time": "now"}', "x" * 100])
def test_what_is_no_status_is_told_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(ConfigError, match="Delete it"):
        read(tmp_path / "status.json")
