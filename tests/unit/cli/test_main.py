"""The command line itself: help, errors, exit codes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from barnraise import __version__, cli
from barnraise.errors import Aborted, BarnraiseError, ConfigError, LocalError, Unavailable


def test_no_word_says_what_to_type_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    first, _, last = capsys.readouterr().out.partition("Start here:\n")
    assert first.startswith("barnraise ")
    assert [line.split("  ")[1] for line in last.splitlines()[:3]] == [
        "barnraise train",
        "barnraise join INVITATION",
        "with barnraise.join(model, optimizer) as swarm: ...",
    ]
    assert all(len(line) <= 120 for line in last.splitlines())


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_verb(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in cli.VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, barnraise.cli; barnraise.cli.main(['--help']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "barnraise.cli" in loaded
    assert not loaded & {"cyclopts", "rich", "trio", "torch", "libp2p", "numpy", "msgspec", "barnraise.config"}


def test_what_raises_a_swarm_loads_neither_torch_nor_libp2p() -> None:
    code = "import sys, barnraise.cli.train, barnraise.data.corpus; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "trio" in loaded
    assert not loaded & {"torch", "libp2p"}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_module_and_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert f"Usage: barnraise {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "Unknown command"),
        (["train", "--peers", "many"], "--peers"),
        (["train", "--peers", "0"], "--peers 0 is outside 1 .. 64"),
        (["train", "--peers", "65"], "--peers 65 is outside 1 .. 64"),
        (["train", "--bogus"], "--bogus"),
        (["train", "extra"], "extra"),
        (["train", "--preset", "huge"], "local"),
        (["train", "--rounds", "0"], "the command line: round.rounds = 0 is outside"),
        (["train", "--steps", "-1"], "round.steps = -1 is outside"),
        (["train", "--kill", "everything"], "--kill 'everything' is not understood"),
        (["train", "--data", "/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
        (["train", "--config", "/nowhere/run.toml"], "/nowhere/run.toml: cannot be read"),
    ],
)
def test_bad_words_are_a_paragraph_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("barnraise: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_with_json_the_error_is_the_last_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--peers", "0", "--json"]) == 2
    assert '"event":"error"' in capsys.readouterr().out.splitlines()[-1]


def raising(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LocalError("ours"), 1),
        (ConfigError("yours"), 2),
        (Unavailable("nobody's"), 3),
        (Aborted("all's"), 4),
        (KeyboardInterrupt(), 1),
        (ZeroDivisionError("a bug"), 1),
        (ExceptionGroup("nursery", [ExceptionGroup("nursery", [Unavailable("deep")])]), 3),
    ],
)
def test_an_error_is_told_once_and_without_a_traceback(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._guarded(raising(error), debug=False) == code
    err = capsys.readouterr().err
    assert err.startswith("barnraise: ")
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._guarded(raising(LocalError("ours")), debug=True) == BarnraiseError.exit_code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "--log-level", "debug"], ["train", "--log-level=debug"]])
def test_debug_is_asked_for_by_the_log_level(words: list[str]) -> None:
    assert cli._wants_debug(words)
    assert not cli._wants_debug(["train", "--data", "debug"])


def test_what_calls_for_the_end_of_the_process_goes_on() -> None:
    with pytest.raises(SystemExit):
        cli._guarded(raising(SystemExit(5)), debug=False)
