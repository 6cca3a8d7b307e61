"""What it takes to check a checkpoint's certificate: CPU time, bytes, and the whole command from start to end.

    python bench/certificates.py                    a committee of 100, also with 10 changes of members on the way
    python bench/certificates.py --members 7 --json certificates.json

METHODOLOGY.md says what each figure is and how it is taken.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from measure.report import report

from barnraise.config import RunConfig
from barnraise.consensus.agreement import Decision
from barnraise.consensus.pbft_messages import Commit
from barnraise.dag import proof
from barnraise.dag.proof import Proof
from barnraise.dag.proving import assemble
from barnraise.identity import Identity
from barnraise.ids import Digest
from barnraise.swarm import records
from barnraise.swarm.records import Contribution, Cut, LogEvent, Metrics, Result, Vertex
from barnraise.swarm.state import follow, genesis

MAX_CHECK_S: Final = 0.1
ROOT: Final = Digest(bytes(32))
COMMAND: Final = (sys.executable, "-P", "-m", "barnraise", "verify")
Figures = dict[str, float]


class Log:
    """A run whose members agree on rounds that nobody trains; their signatures are real."""

    def __init__(self, members: int, newcomers: int) -> None:
        made = sorted((Identity.generate() for _ in range(members + newcomers)), key=lambda key: key.peer_id)
        self.keys = {key.peer_id: key for key in made}
        self.waiting = list(self.keys)[members:]
        self.config = RunConfig(profile="open", founders=tuple(list(self.keys)[:members]))
        self.state = genesis(self.config, 1, ROOT, ROOT)
        self.decisions: list[Decision] = []
        self.vertices: list[Vertex] = []

    def round(self, joined: tuple[str, ...] = (), left: tuple[str, ...] = ()) -> None:
        """Agree on a round."""
        everybody = tuple(Contribution(peer, bytes(32), 1) for peer in self.state.peers)
        self._say(Cut(**self._about(), contributions=everybody))
        values: dict[str, Any] = dict.fromkeys(("gram", "ledger"), b"") | dict.fromkeys(("excluded", "exponents"), ())
        roots = dict.fromkeys(("cut", "aggregate_root", "theta_root", "momentum_root", "vertex"), bytes(32))
        values |= {**roots, "cut": self.state.head, "joined": joined, "left": left}
        result = Result(**self._about(), **values, metrics=Metrics(0, -1, 0), time=0)
        vertex = follow(self.state, result)[1]
        if vertex is None:
            raise AssertionError("a result makes a checkpoint")
        self._say(msgspec.structs.replace(result, vertex=records.vertex_id(vertex)))

    def proof(self) -> Proof:
        """Return the newest checkpoint's."""
        identities = {peer: key.public.encode() for peer, key in self.keys.items()}
        return assemble(self.config, self.decisions, self.vertices[-1], identities)

    def _about(self) -> dict[str, Any]:
        state = self.state
        return {"run": state.run, "epoch": state.epoch, "round": state.round, "attempt": 0, "previous": state.head}

    def _say(self, event: LogEvent) -> None:
        value = records.encode(event)
        statement = self.state.scope.statement(0, records.digest(value))
        voters = () if isinstance(event, Cut) else self.state.committee  # a cut's votes are in no certificate
        votes = tuple((peer, self.keys[peer].sign(Commit.context, statement)) for peer in voters)
        self.decisions.append(Decision(value=value, view=0, votes=votes))
        self.state, vertex = follow(self.state, event)
        self.vertices += [vertex] if vertex else []


def measure(members: int, changes: int, repeats: int, directory: Path) -> Figures:
    """Take all figures."""
    log = Log(members, changes)
    log.round()
    quiet = log.proof()
    for peer in log.waiting:
        log.round(joined=(peer,), left=(log.state.peers[0],))
    log.round()
    changed = log.proof()
    file = directory / proof.FILE_NAME
    file.write_bytes(proof.encode(quiet))
    signers = len(proof.check(quiet).signers)
    figures = {
        "signers": float(signers),
        "certificate_bytes": float(len(proof.encode(quiet))),
        "check_cpu_s": _median(lambda: _cpu_s(proof.encode(quiet)), repeats),
        "changes": float(changes),
        "changed_bytes": float(len(proof.encode(changed))),
        "changed_check_cpu_s": _median(lambda: _cpu_s(proof.encode(changed)), max(1, repeats // 4)),
    }
    runs = [_command(file) for _ in range(max(1, repeats // 4))]
    figures["check_cpu_s_per_signer"] = figures["check_cpu_s"] / signers
    figures["command_s"] = statistics.median(wall for wall, _ in runs)
    figures["command_cpu_s"] = statistics.median(cpu for _, cpu in runs)
    return figures


def _median(once: Callable[[], float], repeats: int) -> float:
    return statistics.median(once() for _ in range(repeats))


def _cpu_s(data: bytes) -> float:
    began = time.process_time()
    proof.check(proof.decode(data))
    return time.process_time() - began


def _command(file: Path) -> tuple[float, float]:
    """Return seconds and CPU seconds of the whole command, the interpreter's start included."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*COMMAND, file, "--json"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu_s


def show(figures: Mapping[str, float]) -> None:
    """Print the table."""
    for name, value in figures.items():
        verdict = f"<= {MAX_CHECK_S:g} {'holds' if value <= MAX_CHECK_S else 'DOES NOT HOLD'}"
        print(f"{name:26}{value:14,.4f}  {verdict if name == 'check_cpu_s' else ''}".rstrip())


def main() -> int:
    """Measure, print, and write the figures; return another code than 0 only if the measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--changes", type=int, default=10, help="of members, on the way to the second certificate")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()

    def measured() -> Mapping[str, float]:
        with tempfile.TemporaryDirectory(prefix="barnraise-bench-") as directory:
            return measure(arguments.members, arguments.changes, arguments.repeats, Path(directory))

    return report("certificates", measured, show, arguments.json, digits=5)


if __name__ == "__main__":
    sys.exit(main())
