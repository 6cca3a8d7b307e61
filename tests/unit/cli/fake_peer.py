"""A process that behaves towards the launcher as a peer does, and trains nothing: ``fake_peer.py MODE PEER RUN``.

Modes: ``well``; ``hold``: peer 1 stays in round 1 until somebody ends it; ``refuse``: peer 1 fails before it is up;
``differ``: peer 1 ends with another checkpoint; ``wait``: all wait for ever; ``deaf``: does not leave when asked to;
``mumble``: prints what is no event; ``mute``: never says that it is up; ``heed``: all stay in round 1 until they are
asked to leave, and do; ``company``: the same with a member of another machine; ``stubborn``: all stay in round 1, and
nobody does as it is told; ``joined``: the run's configuration is not there at first, as for a peer that joins.

What is read from stdin is kept in the file ``wishes``.
"""

import signal
import subprocess
import sys
from pathlib import Path

from barnraise.config import PeerConfig, RoundConfig, RunConfig, load_peer_config, load_run_config, save
from barnraise.identity import Identity
from barnraise.observe.events import EventLog

PORT = 4001
STRANGER = "12D3KooWstranger"


def main() -> None:
    """Play the mode's part."""
    mode, peer_file, run_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    settings = load_peer_config(peer_file)
    if mode == "joined" and not run_file.exists():
        save(RunConfig(founders=(STRANGER,), round=RoundConfig(rounds=3, steps=5)), run_file)
    config = load_run_config(run_file)
    log = EventLog(settings.data_dir / "metrics.jsonl", sys.stdout)
    second = settings.data_dir.name == "peer-1"
    if mode == "mute":
        (settings.data_dir / "mute").touch()
        wait_for_the_end(settings)
    if mode == "refuse" and second:
        log.emit("error", message="port 4001 is in use.", next="Choose another.")
        sys.exit(2)
    start(log, settings, config, mode)
    for number in range(config.round.rounds):
        play_round(log, config, number, (STRANGER,) if mode == "company" else ())
        if number == 1 and ((mode == "hold" and second) or mode == "stubborn"):
            wait_for_the_end(settings, deaf=mode == "stubborn")
        if number == 1 and mode in ("heed", "company"):
            leave_when_asked(log, settings)
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
    peer = Identity.load(settings.data_dir / "identity.key").peer_id
    index = int(settings.data_dir.name.removeprefix("peer-"))
    address = f"/ip4/127.0.0.1/tcp/{PORT + index}/p2p/{peer}"
    log.emit("peer.started", peer=peer, address=address, run=config.run_id.hex(), pid=1)
    if mode == "mumble":
        print("Hello, world!", flush=True)
    # In one mode the trainer holds the peer's stdout open, so that the pipe does not end with the peer.
    stdout = None if mode == "deaf" else subprocess.DEVNULL
    trainer = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=stdout)
    (settings.data_dir / "trainer.pid").write_text(str(trainer.pid))
    log.emit("trainer.started", pid=trainer.pid, device="cpu", reason="none other")


def play_round(log: EventLog, config: RunConfig, number: int, strangers: tuple[str, ...]) -> None:
    """Emit what a peer emits before it commits a round."""
    steps = config.round.steps
    log.emit("round.planned", round=number, members=config.founders + strangers, first_sample=0, samples=8)
    log.emit("round.progress", round=number, step=steps, steps=steps, loss=2.5)


def wait_for_the_end(settings: PeerConfig, *, deaf: bool = False) -> None:
    """Leave when the launcher lets go, and leave a trace of having done so."""
    for wish in sys.stdin:
        note(settings, wish)
    (settings.data_dir / "left").touch()
    if deaf:
        signal.pause()
    sys.exit(0)


def leave_when_asked(log: EventLog, settings: PeerConfig) -> None:
    """Finish the round at the first wish and go."""
    note(settings, sys.stdin.readline())
    log.emit("round.committed", round=1, vertex="v1", tokens=100, took_s=0.5)
    log.emit("run.left", reason="stopped", vertex="v1", theta_path="/nowhere", rounds=2, tokens=200)
    sys.exit(0)


def note(settings: PeerConfig, wish: str) -> None:
    """Keep what was asked of us."""
    with (settings.data_dir / "wishes").open("a") as file:
        file.write(wish)


if __name__ == "__main__":
    main()
