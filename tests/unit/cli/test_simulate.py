"""``barnraise simulate``: what is printed, what fails, and how a failure is seen again."""

import json
import shlex

import pytest

from barnraise import cli
from barnraise.sim.mutants import MUTANTS


def record(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    cli.main(("simulate", *words, "--json"))
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "--seeds", "20", "--peers", "4")
    assert found["schedules"] == 20
    assert found["violations"] == 0
    assert found["failures"] == []
    assert found["mutants"] == found["mutants_caught"] == 0
    assert isinstance(found["per_s"], float)


def test_the_table_says_how_many_worlds_there_were(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(("simulate", "--seeds", "20", "--peers", "4")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "how", "many", "which"]
    assert lines[1].split() == ["worlds", "20", "4", "peers,", "pbft,", "1", "of", "4", "may", "lie"]


def test_a_broken_promise_is_told_with_the_command_that_shows_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(("simulate", "--seeds", "5", "--peers", "7", "--mutant", "small-quorum")) == 1
    told = capsys.readouterr().out
    again = next(line for line in told.splitlines() if line.startswith("  again: "))
    words = shlex.split(again.removeprefix("  again: barnraise "))
    assert cli.main(words) == 1
    assert "peer-" in capsys.readouterr().out


def test_one_world_is_told_event_by_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(("simulate", "--seed", "3", "--peers", "4", "--verbose")) == 0
    told = capsys.readouterr().out
    assert "begins at height 0" in told
    assert "hears from" in told
    assert told.splitlines()[-1].startswith("seed 3: all promises kept")


def test_one_world_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert record(capsys, "--seed", "3", "--peers", "4")["violation"] is None
    found = record(capsys, "--seed", "0", "--peers", "7", "--mutant", "small-quorum")
    assert found["command"] == "barnraise simulate --seed 0 --peers 7 --mutant small-quorum"


def test_defects_are_listed_whether_noticed_or_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: MUTANTS[name] for name in ("small-quorum", "unjudged-value", "forgotten-certificate")}
    monkeypatch.setattr("barnraise.cli.simulate.MUTANTS", few)
    words = ("simulate", "--seeds", "2", "--peers", "7", "--mutants")
    assert cli.main(words) == 1
    told = capsys.readouterr().out
    assert "noticed: peer-" in told
    assert "NOT NOTICED" in told
    found = record(capsys, *words[1:])
    assert (found["mutants"], found["mutants_caught"]) == (3, 2)


def test_several_processes_find_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    alone = record(capsys, "--seeds", "110", "--peers", "4", "--first", "7")
    together = record(capsys, "--seeds", "110", "--peers", "4", "--first", "7", "--jobs", "2")
    assert (alone["schedules"], alone["messages"]) == (together["schedules"], together["messages"])


def test_a_time_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert record(capsys, "--hours", "0.00001", "--peers", "4")["violations"] == 0
    assert record(capsys, "--hours", "1", "--seeds", "3", "--peers", "4")["schedules"] == 3


def test_a_home_is_simulated_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert record(capsys, "--seeds", "20", "--peers", "3", "--protocol", "raft")["violations"] == 0


def test_too_many_traitors_break_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "--seeds", "20", "--peers", "4", "--traitors", "2")
    assert found["violations"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--peers", "3"), "pbft agrees among 4 to 100"),
        (("--mutant", "nonsense"), "there is none of that name"),
        (("--protocol", "raft", "--traitors", "1"), "do not lie"),
        (("--traitors", "7"), "at most 6 can lie"),
        (("--seeds", "0"), "count from 1"),
        (("--jobs", "0"), "count from 1"),
    ],
)
def test_what_does_not_fit_is_refused(words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(("simulate", *words)) == 2
    assert says in capsys.readouterr().err
