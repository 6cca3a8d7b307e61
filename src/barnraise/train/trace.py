"""A torch.profiler trace of some rounds, as files that chrome://tracing and Perfetto open; off unless asked for."""

import logging
from pathlib import Path
from typing import Final

import torch
from torch import profiler

TRACED_STEPS: Final = 10
"""Of a round; a step of the default model is some 3000 events, 0.1 MB when compressed."""

log = logging.getLogger("barnraise.train")


class Tracer:
    """Traces the rounds that a trainer does from its second on; its first also warms caches up."""

    def __init__(self, directory: Path | None = None, num_rounds: int = 0) -> None:
        """Args:
        directory: where to leave ``round-XXXX.json.gz``; made when needed.
        num_rounds: how many rounds; 0: none.
        """
        self._directory = directory
        self._num_rounds = num_rounds
        self._begun = 0
        self._steps = 0
        self._round = 0
        self._running: profiler.profile | None = None

    def begin(self, round_: int) -> None:
        """A round begins; one that was under way is not traced to its end and leaves no file."""
        self._stop()
        self._begun += 1
        if self._directory is None or not 1 < self._begun <= 1 + self._num_rounds:
            return
        activities = [profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(profiler.ProfilerActivity.CUDA)
        self._round, self._steps = round_, 0
        # acc_events: there is one cycle; without it, torch 2.11 warns that those of others are forgotten.
        self._running = profiler.profile(
            activities=activities, record_shapes=True, profile_memory=True, acc_events=True
        )
        self._running.start()

    def step(self) -> None:
        """A step was taken."""
        self._steps += 1
        if self._steps == TRACED_STEPS:
            self.end()

    def end(self) -> None:
        """The round is over: write what was traced of it."""
        running = self._stop()
        if running is None or self._directory is None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        final = self._directory / f"round-{self._round:04d}.json.gz"
        partial = final.with_name(f".partial-{final.name}")
        running.export_chrome_trace(str(partial))
        partial.replace(final)
        log.info("trainer.traced round=%d steps=%d file=%s", self._round, self._steps, final)

    def _stop(self) -> profiler.profile | None:
        running, self._running = self._running, None
        if running is not None:
            running.stop()
        return running
