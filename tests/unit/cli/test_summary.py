"""The final figures."""

import sys
from datetime import datetime
from pathlib import Path

import pytest

from barnraise.cli import summary
from barnraise.config import RunConfig
from barnraise.errors import LocalError
from barnraise.observe.view import View, apply, empty
from barnraise.observe.vocabulary import RunFinished
from barnraise.runs import directory as rundir


def test_ddp_bytes_are_those_of_a_ring_all_reduce() -> None:
    assert summary.ddp_bytes(4, 1000, 1) == 6000
    assert summary.ddp_bytes(2, 1000, 10) == 40_000
    assert summary.ddp_bytes(1, 1000, 10) == 0


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit('no such model')", "failed with exit code 1: no such model"),
        ("print('{}')", "is no report"),
        ("print('nonsense')", "is no report"),
    ],
)
def test_a_report_that_fails_says_where_the_parameters_are(program: str, said: str, tmp_path: Path) -> None:
    made = rundir.create(RunConfig(), 1, tmp_path / "run", datetime(2026, 1, 2))
    theta = tmp_path / "theta.f32"
    theta.write_bytes(bytes(8))
    with pytest.raises(LocalError) as raised:
        summary.measure(finished(theta), made, (sys.executable, "-c", program))
    assert said in str(raised.value)
    assert str(theta) in str(raised.value)


def finished(theta: Path) -> View:
    return apply(empty(1), 0, RunFinished(vertex="v", theta_path=str(theta), rounds=2))
