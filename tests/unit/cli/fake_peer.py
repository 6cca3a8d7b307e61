"""A process that behaves towards the launcher as a peer does, and trains nothing: ``fake_peer.py MODE PEER RUN``.

Modes: ``well``; ``hold``: peer 1 stays in round 1 until somebody ends it; ``refuse``: peer 1 fails before it is up;
``differ``: peer 1 ends with another checkpoint; ``wait``: all wait for ever; ``deaf``: does not leave when asked to;
``mumble``: prints what is no event; ``mute``: never says that it is up.
"""

import signal
import subprocess
import sys
from pathlib import Path

from barnraise.config import PeerConfig, RunConfig, load_peer_config, load_run_config
from barnraise.observe.events import EventLog


def main() -> None:
    """Play the mode's part."""
    mode, peer_file, run_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    settings, config = load_peer_config(peer_file), load_run_config(run_file)
    log = EventLog(settings.data_dir / "metrics.jsonl", sys.stdout)
    second = settings.data_dir.name == "peer-1"
    if mode == "mute":
        wait_for_the_end(settings)
    if mode == "refuse" and second:
        log.emit("error", message="port 4001 is in use.", next="Choose another.")
        sys.exit(2)
    start(log, settings, config, mode)
    for number in range(config.round.rounds):
        play_round(log, config, number)
        if mode == "hold" and second and number == 1:
            wait_for_the_end(settings)
        if mode == "wait":
            log.emit("peer.waiting", reason="too few members to agree")
            wait_for_the_end(settings)
        log.emit("round.committed", round=number, vertex=f"v{number}", members=config.founders, tokens=100, took_s=0.5)
    theta = settings.data_dir / "theta.f32"
    theta.write_bytes(bytes(4000))
    vertex = "another" if mode == "differ" and second else "v"
    log.emit(
        "run.finished",
        vertex=vertex,
        theta_path=str(theta),
        rounds=config.round.rounds,
        tokens=100 * config.round.rounds,
        bytes_sent=1000,
        bytes_received=900,
    )
    if mode == "deaf":
        signal.pause()
    wait_for_the_end(settings)


def start(log: EventLog, settings: PeerConfig, config: RunConfig, mode: str) -> None:
    """Say that the peer is up; its trainer is a process that would never end by itself."""
    index = int(settings.data_dir.name.removeprefix("peer-"))
    log.emit("peer.started", peer=config.founders[index], address=f"/ip4/127.0.0.1/tcp/{index}", run="r", pid=1)
    if mode == "mumble":
        print("Hello, world!", flush=True)
    # In one mode the trainer holds the peer's stdout open, so that the pipe does not end with the peer.
    stdout = None if mode == "deaf" else subprocess.DEVNULL
    trainer = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=stdout)
    (settings.data_dir / "trainer.pid").write_text(str(trainer.pid))
    log.emit("trainer.started", pid=trainer.pid, device="cpu", reason="none other")


def play_round(log: EventLog, config: RunConfig, number: int) -> None:
    """Emit what a peer emits before it commits a round."""
    steps = config.round.steps
    log.emit("round.planned", round=number, members=config.founders, first_sample=0, samples=8)
    log.emit("round.progress", round=number, step=steps, steps=steps, loss=2.5)


def wait_for_the_end(settings: PeerConfig) -> None:
    """Leave when the launcher lets go, and leave a trace of having done so."""
    sys.stdin.read()
    (settings.data_dir / "left").touch()
    sys.exit(0)


if __name__ == "__main__":
    main()
