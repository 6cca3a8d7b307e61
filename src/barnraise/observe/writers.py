"""Hands a run's figures to TensorBoard or Weights & Biases, one point a round; both are extras, imported when asked for.

Figures are told to whoever looks at curves; nothing of the run depends on them.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from barnraise.errors import ConfigError
from barnraise.observe.vocabulary import AnyEvent, RoundCommitted


class Sink(Protocol):
    """Takes the figures of one round."""

    def write(self, figures: Mapping[str, float], round_: int) -> None:
        """Write named figures; raises OSError where it cannot."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class Writer:
    """A fold over a run's events: the first peer that tells of a round makes its point on every curve."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        """``sinks`` are named for what is told when one fails."""
        self._sinks = dict(sinks)
        self._last = -1

    def event(self, event: AnyEvent) -> None:
        """Take in one event; rounds that were told before, by another peer, are passed over."""
        if not isinstance(event, RoundCommitted) or event.round <= self._last:
            return
        self._last = event.round
        for name, sink in list(self._sinks.items()):
            try:
                sink.write(figures(event), event.round)
            except OSError as error:
                del self._sinks[name]
                print(f"barnraise: {name} takes no more figures ({error}). The run goes on.", file=sys.stderr)


def figures(event: RoundCommitted) -> dict[str, float]:
    """Return what a round came to, by name: losses of the run, bytes and seconds of the peer that tells."""
    measured = {"loss/train_nats_per_token": event.train_loss, "loss/held_out_bits_per_byte": event.val_bits_per_byte}
    found = {name: value for name, value in measured.items() if value is not None}
    found |= {
        "round/members": float(len(event.members)),
        "round/contributors": float(len(event.contributors)),
        "bytes/sent": float(event.bytes_sent),
        "bytes/received": float(event.bytes_received),
    }
    for part in ("train_s", "wait_s", "exchange_s", "agree_s", "apply_s", "took_s"):
        found[f"seconds/{part.removesuffix('_s')}"] = getattr(event, part)
    if event.took_s > 0:
        found["speed/tokens_per_s"] = event.tokens / event.took_s
    return found


@contextmanager
def opened(*, tensorboard: Path | None, wandb: str | None, name: str) -> Iterator[Writer]:
    """Open a writer to everything that was asked for, and close it at the end.

    Args:
        tensorboard: directory for TensorBoard's event files.
        wandb: project of Weights & Biases.
        name: what the run is called there.

    Raises:
        ConfigError: a package is not installed, or cannot write there.
    """
    with ExitStack() as stack:
        sinks: dict[str, Sink] = {}
        if tensorboard is not None:
            sinks["TensorBoard"] = stack.enter_context(contextlib.closing(TensorBoard(tensorboard)))
        if wandb is not None:
            sinks["Weights & Biases"] = stack.enter_context(contextlib.closing(WeightsAndBiases(wandb, name)))
        yield Writer(sinks)


class TensorBoard:
    """Writes scalars to an event file."""

    def __init__(self, directory: Path) -> None:
        """Open a new event file in ``directory``; raises `ConfigError` where that cannot be."""
        try:
            from tensorboard.summary import Writer as EventWriter  # type: ignore[import-untyped]
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        try:
            self._writer: Any = EventWriter(str(directory))
        except OSError as error:
            raise ConfigError(f"--tensorboard {directory}: cannot be written ({error.strerror}).") from error

    def write(self, figures: Mapping[str, float], round_: int) -> None:
        """Write a point on each curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, round_)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """Logs to a project; WANDB_MODE=offline keeps all of it on this machine."""

    def __init__(self, project: str, name: str) -> None:
        """Begin a run there; raises `ConfigError` where that cannot be."""
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        self._error = wandb.Error
        settings = wandb.Settings(console="off", quiet=True)  # stdout has the table of the run
        try:
            self._run = wandb.init(project=project, name=name, settings=settings)
        except wandb.Error as error:
            raise ConfigError(
                f"--wandb {project}: {error}. Log in with `wandb login`, or keep it here: WANDB_MODE=offline."
            ) from error

    def write(self, figures: Mapping[str, float], round_: int) -> None:
        """Log a point on each curve."""
        try:
            self._run.log(dict(figures), step=round_)
        except self._error as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Send or keep what is left."""
        self._run.finish()


def _missing(extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"{error.name or extra} is not installed. Install it: pip install 'barnraise[{extra}]'.")
