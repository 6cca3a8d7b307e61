"""Collectives between real processes, of which one is killed or stopped in the middle; large enough for many chunks."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from barnraise.identity import ClusterKey

pytestmark = pytest.mark.e2e

PROGRAM = """
import json, sys
import numpy as np
from barnraise.api.context import static_peers

rank, size, schedule = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with static_peers(sys.argv[4:], rank, cluster_key=sys.stdin.readline().strip()) as context:
    context.wait_for_peers(timeout_s=40)
    vector = np.empty(size, np.float32)
    for number in range(4):
        vector[:] = rank + 1
        context.all_reduce(vector, op="sum", schedule=schedule, timeout_s=10)
        found = sorted({float(value) for value in (vector.min(), vector.max())})
        print(json.dumps([number, found, context.members, sorted(context.lost)]), flush=True)
"""


class Processes:
    """The ranks of a test."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def start(self, count: int, size: int, schedule: str) -> None:
        taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]
        for one in taken:
            one.close()
        key = ClusterKey.generate().to_text()
        for rank in range(count):
            command = [sys.executable, "-c", PROGRAM, str(rank), str(size), schedule, *addresses]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            self.all.append(process)
            assert process.stdin is not None
            process.stdin.write(f"{key}\n")
            process.stdin.flush()

    def line(self, rank: int) -> Any:
        """Return what a rank says next."""
        output = self.all[rank].stdout
        assert output is not None
        return json.loads(output.readline())


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    for process in made.all:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("blow", "victim", "schedule", "size"),
    [
        (signal.SIGKILL, 2, "ring", 2_000_000),
        (signal.SIGKILL, 0, "shards", 1_000_000),
        (signal.SIGSTOP, 1, "auto", 1_000_000),
    ],
)
def test_the_others_finish_with_exact_sums(
    processes: Processes, blow: signal.Signals, victim: int, schedule: str, size: int
) -> None:
    processes.start(4, size, schedule)
    assert processes.line(victim) == [0, [10.0], [0, 1, 2, 3], []]
    processes.all[victim].send_signal(blow)  # it is in the second one by now, or about to be
    rest = [rank for rank in range(4) if rank != victim]
    lines = {rank: [processes.line(rank) for _ in range(4)] for rank in rest}
    without = 10.0 - (victim + 1)
    for rank in rest:
        for _, found, members, lost in lines[rank]:
            assert found in ([10.0], [without])  # never a part of a sum
            assert (members, lost) in ((rest, [victim]), ([0, 1, 2, 3], []))
        assert lines[rank][3] == [3, [without], rest, [victim]]
        assert [found for _, found, _, _ in lines[rank]] == [found for _, found, _, _ in lines[rest[0]]]
        assert processes.all[rank].wait(20) == 0
