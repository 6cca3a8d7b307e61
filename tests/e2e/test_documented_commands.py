"""Every command of the documents that trains or looks at a run, run as it stands there, with a small model.

Also the Python programs of the documents. `tests/unit/test_docs.py` sees to it that no command is missing here.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from barnraise.config import ModelConfig, RoundConfig, RunConfig, save
from barnraise.errors import ConfigError
from barnraise.net.addresses import lan_address

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    ".venv/bin/barnraise train --kill peer:0@round:3 --kill trainer:1@round:5",
    ".venv/bin/barnraise train --data notes.txt --rounds 10",
    ".venv/bin/barnraise train --config runs/20260102-030405-a1b2c3/run.toml",
    ".venv/bin/barnraise train --json",
    "NO_COLOR=1 .venv/bin/barnraise train",
    "BARNRAISE_RUN_OUTER__LR=0.7 .venv/bin/barnraise train --steps 50",
    ".venv/bin/barnraise train --trust open",
)
BEGIN = ".venv/bin/barnraise train --listen lan"
RESUME = ".venv/bin/barnraise train --resume"
JOIN = ".venv/bin/barnraise join"
JOIN_BY_FILE = ".venv/bin/barnraise join runs/20260102-030405-a1b2c3/invitation"
LOOKING = {
    ".venv/bin/barnraise status": "members",
    ".venv/bin/barnraise status --json": '"round"',
    ".venv/bin/barnraise peers": "connected",
    ".venv/bin/barnraise log --last 5": "result",
    ".venv/bin/barnraise show": "voted for by",
    ".venv/bin/barnraise dag": "checkpoint",
    ".venv/bin/barnraise doctor": "healthy",
    ".venv/bin/barnraise key": "fingerprint",
    ".venv/bin/barnraise peers --plan": "the planner would choose",
}
"""What is said while a run goes on."""
TAKING = {
    '.venv/bin/barnraise generate --prompt "ROMEO:"': "ROMEO:",
    ".venv/bin/barnraise export model": "transformers.AutoModelForCausalLM",
    ".venv/bin/barnraise verify model": "the model in model.safetensors is the one",
    '.venv/bin/barnraise generate --from model --prompt "JULIET:" --bytes 200': "JULIET:",
    ".venv/bin/barnraise key --new-cluster friends.key": "fingerprint",
    ".venv/bin/barnraise doctor --repair": "healthy",
}
"""What is said when it is over, in this order."""
ASKING = {
    ".venv/bin/barnraise upgrade round.rounds=40 outer.lr=0.5": "upgrade 1: outer.lr = 0.5, round.rounds = 40",
    ".venv/bin/barnraise key rotate --dir runs/20260102-030405-a1b2c3/peer-1": "goes on as",
    ".venv/bin/barnraise key revoke --dir runs/20260102-030405-a1b2c3/peer-2": "any more",
}
"""What the members are asked for; a peer that runs there hands it to them."""
CONTINUE = ".venv/bin/barnraise train --init model --profile 2 --tensorboard curves"
WRITE = ".venv/bin/barnraise config --preset distributed -o peer.yaml"
START = ".venv/bin/barnraise start -c peer.yaml"
BENCH = ".venv/bin/barnraise bench allreduce --mb 1,10 --codec fp32,int8"
SIMULATE = ".venv/bin/barnraise simulate --seeds 200 --peers 7"
ONE_WORLD = ".venv/bin/barnraise simulate --seed 3 --peers 4 --verbose"

SMALL = {"MODEL__HIDDEN_SIZE": 32, "MODEL__NUM_LAYERS": 1, "MODEL__NUM_HEADS": 1, "ROUND__ROUNDS": 7, "ROUND__STEPS": 2}
LONG = {**SMALL, "MODEL__NUM_LAYERS": 2, "ROUND__ROUNDS": 10_000, "ROUND__STEPS": 4}
FEW = {**SMALL, "MODEL__NUM_LAYERS": 2, "ROUND__ROUNDS": 3}
"""Two layers: with attention among them, without which transformers' generate() has nothing to count by."""
EARLIER = Path("runs/20260102-030405-a1b2c3")
_PROGRAM = re.compile(r"^```python\n((?:import|from) .*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the text that the documents speak of."""
    (tmp_path / "notes.txt").write_text("Many hands raise a barn in a day. " * 400)
    return tmp_path


@contextmanager
def started(command: str, place: Path, settings: Mapping[str, int] = SMALL) -> Iterator[subprocess.Popen[str]]:
    """Start a documented command with this interpreter's package, and see to it that it ends."""
    words = shlex.split(command)
    split = words.index(".venv/bin/barnraise")
    run = {f"BARNRAISE_RUN_{key}": str(value) for key, value in settings.items()}
    environment = {**surroundings(place), **run, **dict(word.split("=", 1) for word in words[:split])}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "barnraise", *words[split + 1 :]],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if "--json" not in words else None,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()  # the peers notice, and leave
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def surroundings(place: Path) -> dict[str, str]:
    """Return an environment whose keys and runs are nobody else's."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "BARNRAISE_HOME": str(place / "home"), "BARNRAISE_JOIN": ""}


def run(command: str, place: Path, settings: Mapping[str, int] = SMALL) -> str:
    """Run a documented command to its end; return what it printed."""
    with started(command, place, settings) as process:
        out, _ = process.communicate()
    assert process.returncode == 0, f"{command}\n{out[-4000:]}"
    return out


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read lines until one has these words; return that line."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"{words!r} was never said: {''.join(lines)[-4000:]}")


def leave(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; return what was printed since."""
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


@pytest.mark.parametrize("command", TRAINING)
def test_it_trains_to_the_end(command: str, place: Path) -> None:
    (place / EARLIER).mkdir(parents=True)
    save(RunConfig(model=ModelConfig(), round=RoundConfig(rounds=3)), place / EARLIER / "run.toml")
    out = run(command, place)
    if command.endswith("--json"):
        last = json.loads(out.splitlines()[-1])
        assert (last["event"], last["peers_finished"], last["rounds"]) == ("run.finished", 4, 7)
        assert last["ddp_bytes_per_peer"] > 0
        assert last["wall_s"] > 0
        return
    seen = 3 if "peer:0" in command else 4
    assert f"{seen} of 4 peers saw the end" in out
    assert "bits per byte" in out
    if "--kill" in command:
        assert "killed peer:0" in out
        assert "peer 1 restarted its trainer" in out


def beginning() -> str:
    """Return the command that begins a run for others; on a machine without a network, for other terminals of it."""
    try:
        lan_address()
    except ConfigError:
        return BEGIN.removesuffix(" --listen lan")
    return BEGIN


def test_others_join_a_run_that_is_looked_at_paused_and_gone_on_with(place: Path) -> None:
    with started(beginning(), place, LONG) as train:
        invitation = read_until(train, "barnraise join barnraise1-")
        (made,) = (place / "runs").iterdir()
        (place / EARLIER).symlink_to(made.name)  # the documents cannot know its name
        assert (made / "invitation").read_text().strip() == invitation.split()[-1]
        read_until(train, "round 1 ")
        with started(JOIN, place) as newcomer, started(JOIN_BY_FILE, place) as other:
            for command, words in LOOKING.items():
                assert words in run(command, place), command
            for process in (newcomer, other):
                read_until(process, "done  6 peers")
            assert "left after" in leave(newcomer)
            assert "left after" in leave(other)
        assert "train --resume" in leave(train)
    with started(RESUME, place) as train:
        read_until(train, "done  4 peers")
        assert "train --resume" in leave(train)


def test_a_model_is_taken_away_and_begun_with(place: Path) -> None:
    run(".venv/bin/barnraise train --peers 1", place, FEW)
    for command, words in TAKING.items():
        assert words in run(command, place), command
    run_the_programs(place)
    assert "4 of 4 peers saw the end" in run(CONTINUE, place, FEW)
    assert list((place / "curves").rglob("events.out.*"))
    traces = sorted(file.name for file in place.glob("runs/*/peer-0/profile/*"))
    assert traces == ["round-0001.json.gz", "round-0002.json.gz"]


def test_the_members_are_asked_for_changes(place: Path) -> None:
    run(".venv/bin/barnraise train --peers 3", place, FEW)
    (made,) = (place / "runs").iterdir()
    (place / EARLIER).symlink_to(made.name)
    for command, words in ASKING.items():
        assert words in run(command, place), command
    assert len(list(made.glob("peer-*/petitions/*.petition"))) == 3 + 1 + 1


def run_the_programs(place: Path) -> None:
    """Run the Python programs of the documents, where a model was exported; in one process, as each imports torch."""
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    programs = [program for page in pages for program in _PROGRAM.findall(page.read_text())]
    assert len(programs) >= 2
    environment = {**surroundings(place), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "\n".join(programs)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ROMEO:" in done.stdout
    assert "others join with BARNRAISE_JOIN=barnraise1-" in done.stdout


def test_a_long_lived_peer_starts_from_the_file_that_was_written(place: Path) -> None:
    run(WRITE, place)
    file = place / "peer.yaml"
    text = file.read_text()
    for theirs, ours in (("/ip4/lan/tcp/52415", "/ip4/127.0.0.1/tcp/0"), ("lan:52416", "127.0.0.1:0")):
        assert theirs in text
        text = text.replace(theirs, ours)  # somebody may have the ports, and this machine no network
    file.write_text(text)
    assert "1 of 1 peers saw the end" in run(START, place, FEW)


def test_agreement_is_not_broken(place: Path) -> None:
    assert "broken promises" in run(SIMULATE, place)
    assert "all promises kept" in run(ONE_WORLD, place)


def test_the_links_of_this_machine_are_measured(place: Path) -> None:
    out = run(BENCH, place)
    assert "bus MB/s" in out
    assert "the planner would choose" in out
