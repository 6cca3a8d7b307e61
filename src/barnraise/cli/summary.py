"""What a run came to: the final figures beside what they must be measured against, as text and as JSON."""

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from barnraise.dag.sealing import SUFFIX
from barnraise.errors import BarnraiseError, LocalError
from barnraise.observe.figures import count, size
from barnraise.observe.view import View
from barnraise.runs.directory import RunDirectory

REPORT_COMMAND: Final = (sys.executable, "-P", "-m", "barnraise.train.report")
REPORT_TIMEOUT_S: Final = 1800.0
"""Measuring the large preset on a long held-out text, on a CPU."""
FLOAT32_BYTES: Final = 4


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer's side says of the final parameters, measured on the whole held-out text."""

    val_bits_per_byte: float
    unigram_bits_per_byte: float
    five_gram_bits_per_byte: float
    sample: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of a run."""

    report: Report
    directory: Path
    theta_path: Path
    """float32[d], little-endian, as the peers hash it."""
    checkpoint: Path
    """The same as safetensors."""
    vertex: str
    peers: int
    finished: int
    rounds: int
    tokens: int
    wall_s: float
    bytes_sent_per_peer: int
    """Mean of the peers that finished."""
    bytes_received_per_peer: int
    ddp_bytes_per_peer: int


def is_sealed(view: View) -> bool:
    """Tell whether what the peers that finished hold is sealed: nothing of it is written in the open unasked."""
    return any(row.finished and row.finished.theta_path.endswith(SUFFIX) for row in view.peers)


def measure(view: View, directory: RunDirectory, command: Sequence[str] = REPORT_COMMAND) -> Outcome:
    """Gather a finished run's figures and have its parameters measured by ``command``.

    Raises:
        LocalError: the report could not be made.
    """
    ends = [row.finished for row in view.peers if row.finished is not None]
    theta = Path(ends[0].theta_path)
    checkpoint = directory.path / f"checkpoint-{ends[0].vertex[:12]}.safetensors"
    steps = ends[0].rounds * directory.resolved().round.steps
    return Outcome(
        report=_report(command, directory.run_file, theta, checkpoint),
        directory=directory.path,
        theta_path=theta,
        checkpoint=checkpoint,
        vertex=ends[0].vertex,
        peers=len(view.peers),
        finished=len(ends),
        rounds=ends[0].rounds,
        tokens=max(end.tokens for end in ends),
        wall_s=view.wall_s,
        bytes_sent_per_peer=sum(end.bytes_sent for end in ends) // len(ends),
        bytes_received_per_peer=sum(end.bytes_received for end in ends) // len(ends),
        ddp_bytes_per_peer=ddp_bytes(len(view.peers), theta.stat().st_size // FLOAT32_BYTES, steps),
    )


def ddp_bytes(num_peers: int, num_parameters: int, steps: int) -> int:
    """Return what each peer would send if it averaged float32 gradients at every step, by a ring all-reduce.

    2 (n - 1) / n times the gradient's size a step (Patarasuk and Yuan, 2009).
    """
    return 2 * (num_peers - 1) * FLOAT32_BYTES * num_parameters * steps // num_peers


def json_line(outcome: Outcome) -> str:
    """Return the launcher's ``run.finished``, the last line of ``--json``."""
    report = outcome.report
    record: dict[str, Any] = {
        "time": round(time.time(), 3),
        "event": "run.finished",
        "source": "launcher",
        "val_bits_per_byte": report.val_bits_per_byte,
        "val_nats_per_byte": report.val_bits_per_byte * math.log(2),
        "unigram_bits_per_byte": report.unigram_bits_per_byte,
        "five_gram_bits_per_byte": report.five_gram_bits_per_byte,
        "wall_s": round(outcome.wall_s, 3),
        "tokens": outcome.tokens,
        "rounds": outcome.rounds,
        "bytes_sent_per_peer": outcome.bytes_sent_per_peer,
        "bytes_received_per_peer": outcome.bytes_received_per_peer,
        "ddp_bytes_per_peer": outcome.ddp_bytes_per_peer,
        "vertex": outcome.vertex,
        "checkpoint": str(outcome.checkpoint),
        "theta_path": str(outcome.theta_path),
        "directory": str(outcome.directory),
        "peers": outcome.peers,
        "peers_finished": outcome.finished,
        "sample": report.sample,
    }
    return msgspec.json.encode(record).decode()


def error_line(error: BarnraiseError) -> str:
    """Return the ``error`` event that ends ``--json`` when the run came to nothing."""
    record = {"time": round(time.time(), 3), "event": "error", "source": "launcher", "message": str(error), "next": ""}
    return msgspec.json.encode(record).decode()


def text(outcome: Outcome) -> str:
    """Return the final figures for a person."""
    report = outcome.report
    bits = report.val_bits_per_byte
    ddp, sent = outcome.ddp_bytes_per_peer, outcome.bytes_sent_per_peer
    ratio = f", {ddp / sent:.0f} times as much" if sent else ""
    return f"""
{report.sample}

held-out text      {bits:.3f} bits per byte ({bits * math.log(2):.3f} nats); \
5-gram {report.five_gram_bits_per_byte:.3f}, unigram {report.unigram_bits_per_byte:.3f}
trained            {outcome.rounds} rounds, {count(outcome.tokens)} tokens in {outcome.wall_s:.1f} s, set-up apart; \
{outcome.finished} of {outcome.peers} peers saw the end
sent per peer      {size(sent)}; averaging gradients at every step would have sent {size(ddp)}{ratio}
checkpoint         {outcome.vertex}
                   {outcome.checkpoint}
run                {outcome.directory}"""


def _report(command: Sequence[str], run_file: Path, theta: Path, checkpoint: Path) -> Report:
    """Have the trainer's side measure and save parameters, in a process of its own: this one loads no torch."""
    # One thread: on a busy machine two of them wait for each other, several times longer than one needs alone.
    options = ("--config", run_file, "--theta", theta, "--save", checkpoint, "--threads", "1", "--json")
    command = [*command, *map(str, options)]
    where = f"The parameters are in {theta}. Measure them again: {' '.join(command)}"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=REPORT_TIMEOUT_S, check=True
        )
        return msgspec.json.decode(done.stdout, type=Report)
    except subprocess.TimeoutExpired as error:
        raise LocalError(f"the final report took longer than {REPORT_TIMEOUT_S:.0f} s. {where}") from error
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip()[-500:]
        raise LocalError(f"the final report failed with exit code {error.returncode}: {words} {where}") from error
    except msgspec.DecodeError as error:
        raise LocalError(f"the final report is no report: {error}. {where}") from error
