"""The peer's end of the trainer, against small scripts that die, babble and overdo it."""

import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from barnraise.errors import LocalError
from barnraise.link import messages, process
from barnraise.link.messages import Begin, Done, Finished, Hello, Initialise, Initialised, Leave, Progress, Segment
from barnraise.link.process import MAX_DEATHS, ExternalTrainer, TrainerGone, TrainerLink, TrainerProcess, TrainerUp

DEADLINE_S = 30.0
PREAMBLE = """
import os, socket, sys
import msgspec
from barnraise.link.messages import *
from barnraise.link import messages

connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[sys.argv.index("--socket") + 1])
stream = connection.makefile("rwb")


def say(message):
    stream.write(messages.frame(message))
    stream.flush()


def hear():
    prefix = stream.read(4)
    if not prefix:
        sys.exit(0)
    return messages.from_peer(stream.read(messages.body_length(prefix)))


def hello(**changes):
    fields = dict(version=messages.VERSION, pid=os.getpid(), layout=(), data_digest=b"", device="cpu")
    return messages.Hello(**(fields | changes))
"""
DILIGENT = """
say(hello())
while True:
    work = hear()
    if isinstance(work, messages.Initialise):
        say(messages.Initialised())
    elif isinstance(work, messages.Finished):
        sys.exit(0)
    elif isinstance(work, messages.Begin):
        say(messages.Done(round=work.round, order=work.order, steps=work.steps, samples=1, tokens=1, loss=1.0, validation_nats=0.0,
                          validation_tokens=0, took_s=0.0))
"""
SLOW = """
say(hello())
while True:
    work = hear()
    say(messages.Progress(round=work.round, step=1, loss=1.0))
"""


def begin(round_: int) -> Begin:
    return Begin(
        round=round_,
        fragment=0,
        order=1,
        theta_path="",
        update_path="",
        segments=(Segment(0, 1),),
        steps=1,
        first_step=0,
        total_steps=1,
        seconds=0.0,
        num_members=1,
        snapshot_in="",
        snapshot_out="",
        evaluate=Segment(0, 0),
    )


def trainer_of(tmp_path: Path, script: str) -> TrainerProcess:
    file = tmp_path / "trainer.py"
    file.write_text(PREAMBLE + textwrap.dedent(script))
    return TrainerProcess([sys.executable, str(file)], tmp_path / "trainer.log")


@asynccontextmanager
async def running(trainer: TrainerLink) -> AsyncIterator[None]:
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trainer.run)
            yield
            nursery.cancel_scope.cancel()


async def up(trainer: TrainerLink) -> TrainerUp:
    event = await trainer.events.receive()
    assert isinstance(event, TrainerUp)
    return event


async def failure_of(trainer: TrainerProcess) -> LocalError:
    """Return what the trainer's death comes to; whatever it said before is dropped."""
    with trio.fail_after(DEADLINE_S):
        with pytest.RaisesGroup(LocalError, allow_unwrapped=True, flatten_subgroups=True) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain, trainer)
                await trainer.run()
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LocalError)
    return error


async def drain(trainer: TrainerProcess) -> None:
    async for _ in trainer.events:
        pass


async def test_work_is_given_and_done_in_order(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DILIGENT)
    async with running(trainer):
        assert (await up(trainer)).died is None
        await trainer.assign(Initialise(path=""))
        assert await trainer.events.receive() == Initialised()
        for round_ in range(3):
            await trainer.assign(begin(round_))
            done = await trainer.events.receive()
            assert isinstance(done, Done)
            assert done.round == round_


async def test_a_trainer_that_is_killed_comes_back_to_the_same_work(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SLOW)
    async with running(trainer):
        first = await up(trainer)
        await trainer.assign(begin(7))
        progress = await trainer.events.receive()
        os.kill(first.hello.pid, signal.SIGKILL)
        second = await up(trainer)
        assert second.died == -signal.SIGKILL
        assert second.hello.pid != first.hello.pid
        assert await trainer.events.receive() == progress


async def test_work_given_before_it_is_up_is_not_lost(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DILIGENT)
    await trainer.assign(begin(4))
    async with running(trainer):
        await up(trainer)
        done = await trainer.events.receive()
        assert isinstance(done, Done)
        assert done.round == 4


async def test_leaving_takes_the_process_along(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SLOW)
    async with running(trainer):
        pid = (await up(trainer)).hello.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_trainer_that_was_told_the_end_is_not_replaced(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DILIGENT)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trainer.run)
            await up(trainer)
            await trainer.assign(Finished(round=3, theta_path=""))
    with pytest.raises(trio.WouldBlock):
        trainer.events.receive_nowait()


async def test_five_deaths_end_it_with_the_last_words(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 'say(hello())\nsys.exit("out of memory, say")')
    error = await failure_of(trainer)
    assert f"died {MAX_DEATHS} times" in str(error)
    assert "exit status 1" in str(error)
    assert str(error).endswith("out of memory, say")


async def test_a_trainer_that_dies_before_hello_ends_it_too(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such device')")
    trainer = TrainerProcess([sys.executable, str(tmp_path / "broken.py")], tmp_path / "trainer.log")
    assert "no such device" in str(await failure_of(trainer))


async def test_a_trainer_that_never_comes_ends_it_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CONNECT_DEADLINE_S", 0.3)
    monkeypatch.setattr(process, "LEAVE_DEADLINE_S", 0.1)
    (tmp_path / "stuck.py").write_text("import signal\nsignal.pause()")
    trainer = TrainerProcess([sys.executable, str(tmp_path / "stuck.py")], tmp_path / "trainer.log")
    assert "has not come to its socket" in str(await failure_of(trainer))


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("stream.write(bytes([4, 0, 0, 0]) + b'nope')\nstream.flush()\nhear()", "malformed"),
        ("say(hello(device='x'))\nstream.write(bytes([2, 0, 0, 0, 0x91, 0xc1]))\nstream.flush()\nhear()", "malformed"),
        ("stream.write(bytes([255, 255, 255, 255]))\nstream.flush()\nhear()", "over the limit"),
        ("say(hello(version=99))\nhear()", f"instead of a Hello of version {messages.VERSION}"),
        ("say(messages.Initialised())\nhear()", "instead of a Hello"),
        ("say(hello())\nsay(hello())\nhear()", "hello twice"),
        ("say(hello())\nsay(messages.Leave())\nhear()", "for its peer to say"),
    ],
    ids=["no message", "not msgpack", "oversized", "another version", "no hello", "two hellos", "leave"],
)
async def test_a_trainer_that_breaks_the_protocol_is_named(tmp_path: Path, script: str, complaint: str) -> None:
    assert complaint in str(await failure_of(trainer_of(tmp_path, script)))


# ---- a trainer that somebody else starts ---------------------------------------------------------------------------


class Loop:
    """A user's loop as far as the socket shows it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def __aenter__(self) -> "Loop":
        while True:
            try:
                self.stream = await trio.open_unix_socket(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):  # it is not bound yet, or does not listen yet
                await trio.lowlevel.checkpoint()
            else:
                return self

    async def __aexit__(self, *details: object) -> None:
        await self.stream.aclose()

    async def say(self, *said: messages.FromTrainer) -> None:
        await self.stream.send_all(b"".join(messages.frame(message) for message in said))

    async def hear(self) -> messages.FromPeer:
        prefix = await self._exactly(4)
        return messages.from_peer(await self._exactly(messages.body_length(prefix)))

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self.stream.receive_some(size - len(data))
        return data


HELLO = Hello(version=messages.VERSION, pid=1, layout=(), data_digest=b"", device="cpu")
DONE = Done(
    round=4, order=1, steps=1, samples=1, tokens=1, loss=1.0, validation_nats=0.0, validation_tokens=0, took_s=0.0
)


async def test_a_loop_that_comes_late_gets_the_work_that_waits(tmp_path: Path) -> None:
    trainer = ExternalTrainer(tmp_path / "socket")
    await trainer.assign(begin(4))
    async with running(trainer), Loop(tmp_path / "socket") as loop:
        await loop.say(HELLO)
        assert await trainer.events.receive() == TrainerUp(hello=HELLO, died=None)
        assert await loop.hear() == begin(4)
        await loop.say(Progress(round=4, step=1, loss=1.0), DONE)
        assert await trainer.events.receive() == Progress(round=4, step=1, loss=1.0)
        assert await trainer.events.receive() == DONE


async def test_a_loop_that_is_done_says_so_and_hears_the_end(tmp_path: Path) -> None:
    trainer = ExternalTrainer(tmp_path / "socket")
    finished = Finished(round=5, theta_path="/theta")
    async with running(trainer):
        async with Loop(tmp_path / "socket") as loop:
            await loop.say(HELLO, Leave())
            await up(trainer)
            assert await trainer.events.receive() == TrainerGone(hung_up=False)
            await trainer.assign(finished)
            assert await loop.hear() == finished
        assert await trainer.events.receive() == TrainerGone(hung_up=True)


@pytest.mark.parametrize("said", [(), (HELLO,)])
async def test_a_loop_that_hangs_up_is_told_and_not_replaced(
    tmp_path: Path, said: tuple[messages.FromTrainer, ...]
) -> None:
    trainer = ExternalTrainer(tmp_path / "socket")
    async with running(trainer):
        async with Loop(tmp_path / "socket") as loop:
            await loop.say(*said)
        events = [await trainer.events.receive() for _ in range(len(said) + 1)]
        assert events[-1] == TrainerGone(hung_up=True)
        await trainer.assign(begin(1))
        assert not (tmp_path / "socket").exists()


async def test_nobody_else_can_connect_once_the_loop_has(tmp_path: Path) -> None:
    trainer = ExternalTrainer(tmp_path / "socket")
    async with running(trainer), Loop(tmp_path / "socket") as loop:
        await loop.say(HELLO)
        await up(trainer)
        with socket.socket(socket.AF_UNIX) as second, pytest.raises(FileNotFoundError):
            second.connect(str(tmp_path / "socket"))


@pytest.mark.parametrize("said", [(Leave(),), (HELLO, HELLO)])
async def test_a_loop_that_breaks_the_protocol_is_named(tmp_path: Path, said: tuple[messages.FromTrainer, ...]) -> None:
    trainer = ExternalTrainer(tmp_path / "socket")

    async def converse() -> None:
        async with Loop(tmp_path / "socket") as loop:
            await loop.say(*said)
            await trio.sleep_forever()

    with pytest.RaisesGroup(LocalError, flatten_subgroups=True):
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(converse)
                await trainer.run()
