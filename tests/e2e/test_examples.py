"""Every example runs as its first lines say: alone, and joined by a second one."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = [
    EXAMPLES / f"{name}.py"
    for name in ("own_loop", "digits", "huggingface_trainer", "lightning_trainer", "torchrun_ddp", "torchrun_fsdp")
]
MAX_LINES = 60
PATIENCE_S = 170.0
FEW = {"STEPS": "40", "ROUNDS": "4", "OMP_NUM_THREADS": "1", "BARNRAISE_JOIN": ""}
UNDER_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@contextmanager
def started(path: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    options: dict[str, Any] = {"cwd": path, "env": {**os.environ, **FEW, **environment}, "text": True}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        process.terminate()  # torchrun passes it on to its ranks, which a kill would leave behind
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def output_of(path: Path, *command: str, **environment: str) -> str:
    with started(path, *command, **environment) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def test_examples_fit_a_screen() -> None:
    assert [file.name for file in EXAMPLES.glob("*.py") if len(file.read_text().splitlines()) > MAX_LINES] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_an_example_founds_a_run_trains_and_leaves(script: Path, tmp_path: Path) -> None:
    output = output_of(tmp_path, str(script))
    assert "barnraise1-" in output
    assert re.search(r"(loss|accuracy) \d", output), output
    assert list((tmp_path / "runs").glob("*/events.jsonl"))


@pytest.mark.parametrize("name", ["torchrun_ddp", "torchrun_fsdp"])
def test_two_ranks_are_one_peer_and_end_with_the_same_parameters(name: str, tmp_path: Path) -> None:
    output = output_of(tmp_path, *UNDER_TORCHRUN, str(EXAMPLES / f"{name}.py"))
    sums = re.findall(r"rank (\d): loss \S+ parameters sum to (-?\d+\.\d{6})", output)
    assert {rank for rank, _ in sums} == {"0", "1"}, output
    assert len({total for _, total in sums}) == 1, output
    assert len(list((tmp_path / "runs").glob("*"))) == 1
    assert "round 1  1 peers" in output


def test_the_second_terminal_joins_the_first(tmp_path: Path) -> None:
    script = str(EXAMPLES / "own_loop.py")
    with started(tmp_path, script, STEPS="1000000") as founder:
        assert founder.stdout is not None
        invitation = re.search(r"barnraise1-\S+", founder.stdout.readline())
        assert invitation is not None
        output = output_of(tmp_path, script, STEPS="300", BARNRAISE_JOIN=invitation.group(), SEED="7")
    assert "2 peers" in output, output
