"""The object interface with real processes: the examples as they stand, and a rank that is killed in mid-flight."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from barnraise.identity import ClusterKey

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES_OF_OBJECTS = [
    "static_peers.py",
    "auto_discovery.py",
    "averaged_gradients.py",
    "codec_by_links.py",
    "coordinator.py",
    "node_train.py",
]
PATIENCE_S = 200


def run_example(name: str, directory: Path) -> str:
    """Run an example as the user does, in a session of its own so that nothing of it is left; return its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name_of_variable in ("BARNRAISE_JOIN", "PYTHONUNBUFFERED"):  # the latter splits lines of several processes
        environment.pop(name_of_variable, None)
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name)],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, f"{out}\n{error}"
    return out


def test_the_example_of_static_peers(tmp_path: Path) -> None:
    lines = sorted(run_example("static_peers.py", tmp_path).splitlines())
    assert lines == [f"rank {rank} of 2: weights [3.0, -1.0, 2.0]" for rank in range(2)]


def test_the_example_of_auto_discovery(tmp_path: Path) -> None:
    lines = sorted(run_example("auto_discovery.py", tmp_path).splitlines())
    assert lines == [f"rank {rank} of 3: mean of the ranks 1.0" for rank in range(3)]


def test_the_example_of_averaged_gradients(tmp_path: Path) -> None:
    lines = sorted(run_example("averaged_gradients.py", tmp_path).splitlines())
    found = [re.fullmatch(r"rank (\d) of 3: error (0\.\d{6})", line) for line in lines]
    assert [match and match[1] for match in found] == ["0", "1", "2"], lines
    (error,) = {match[2] for match in found if match}  # equal on all machines
    assert float(error) < 0.01


def test_the_example_of_a_codec_by_links(tmp_path: Path) -> None:
    lines = sorted(run_example("codec_by_links.py", tmp_path).splitlines())
    found = [re.fullmatch(r"rank (\d): \S+ by \w+, error (0\.\d{4}): .+", line) for line in lines]
    assert [match and match[1] for match in found] == ["0", "1", "2"], lines
    assert all(float(match[2]) < 0.02 for match in found if match)  # int4 alone, without feedback, loses 0.1


def test_the_example_of_the_coordinator(tmp_path: Path) -> None:
    lines = run_example("coordinator.py", tmp_path).splitlines()
    errors = [float(found) for line in lines for found in re.findall(r"error ([0-9.]+)", line)]
    assert len(errors) == 8
    assert errors[-1] < 0.05 < errors[0]
    assert [line.split(": ")[1].split(" ")[0] for line in lines[:3]] == ["4", "3", "4"]


def test_the_example_of_a_node(tmp_path: Path) -> None:
    out = run_example("node_train.py", tmp_path)
    found = re.findall(r"(\d+) rounds, loss ([0-9.]+) -> ([0-9.]+), parameters ([0-9a-f]{12})", out)
    assert len(found) == 2, out
    assert len({parameters for *_, parameters in found}) == 1, "both nodes end with the same bits"
    for rounds, first, last, _ in found:
        assert int(rounds) >= 8
        assert float(last) < float(first)


@pytest.mark.parametrize("name", EXAMPLES_OF_OBJECTS)
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 50


ADDING_UP = """
import sys
import numpy as np
from barnraise import static_peers
from barnraise.errors import Unavailable
with static_peers(sys.argv[2:], int(sys.argv[1]), cluster_key=sys.stdin.read()) as context:
    context.wait_for_peers(timeout_s=60)
    vector = np.ones(1_000_000, np.float32)
    count = 0
    try:
        while True:
            before = vector.copy()
            context.all_reduce(vector)
            count += 1
            if count == 5:
                print("going", flush=True)
    except Unavailable as error:
        assert (vector == before).all()
        print(error, flush=True)
"""


@contextmanager
def adding_up(count: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Run so many ranks that add up without end."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    key = ClusterKey.generate().to_text()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ADDING_UP, str(rank), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for process in started:
            assert process.stdin is not None
            process.stdin.write(key)
            process.stdin.close()
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_who_is_left_without_a_quorum_is_told_and_has_its_tensor_as_it_was() -> None:
    with adding_up(2) as processes:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "going\n"
        processes[0].kill()
        assert processes[1].stdout is not None
        assert "1 of 2 ranks" in processes[1].stdout.readline()
        assert processes[1].wait(60) == 0
